"""Which outputs of a run are denoised together, and which after others, hearing them finished.

The paper denoises all outputs together (section 3.4). While all of them are mostly noise, none can hear yet what the others will show,
and two that decide at the same time may decide differently. An output that is made in a later turn hears the earlier ones clean, through
the same environment encoders and connectors, from its first step on; every output still takes the same number of steps."""

from __future__ import annotations

from collections.abc import Collection

from .config import MODALITIES
from .errors import CoDiError

TOGETHER = "together"
IN_TURN = "in turn"
ORDERS = {TOGETHER: "+".join(MODALITIES), IN_TURN: "text, audio, video, image"}
"""Orders that have a name. In turn, the smallest latent comes first: without a prompt a caption or a sound still is of one scene, while a
picture or a clip may come out between two, which nothing that hears it can put right."""


def parse_order(text: str, outputs: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The turns of a run that makes `outputs`: "video, audio+text" makes the clip first, then sound and text together.

    text: a name in ORDERS, or turns of outputs. Outputs that a run does not make are passed over; those that the order does not name
    come last, together. Raises CoDiError for an unknown output and for one that is named twice."""
    named = [[name.strip() for name in turn.split("+")] for turn in ORDERS.get(text.strip(), text).split(",") if turn.strip()]
    flat = [name for turn in named for name in turn]
    for name in flat:
        if name not in MODALITIES:
            raise CoDiError(f"unknown output {name!r} in order {text!r}: give {' or '.join(ORDERS)}, or turns such as video, audio+text")
        if flat.count(name) > 1:
            raise CoDiError(f"order {text!r} names {name} twice: each output is made once")
    turns = [*named, [m for m in MODALITIES if m not in flat]]
    made = (tuple(m for m in turn if m in outputs) for turn in turns)
    return tuple(turn for turn in made if turn)

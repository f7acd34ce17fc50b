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

BRIDGED = {frozenset({"image", "video"}): "(text), video, image"}
"""What `IN_TURN` means for sets of outputs that it would begin with a picture or a clip which others must hear. Text is the bridge, as it
is between the prompt encoders (section 3.2): a caption is made first, heard by both, and not given out."""


def parse_order(
    text: str, outputs: Collection[str], made: Collection[str] | None = None, lent: Collection[str] = MODALITIES
) -> tuple[tuple[str, ...], ...]:
    """The turns of a run of `outputs`: "video, audio+text" makes the clip first, then sound and text together.

    text: a name in ORDERS, or turns of outputs. made: outputs that are generated and not given; all by default. Those that a run does not
    make are passed over, save in a turn in parentheses: "(text), video" makes a caption for the clip to hear that is not given out. lent:
    what may be made so. Outputs that the order does not name come last, together.
    Raises CoDiError for an unknown output and for one that is named twice."""
    made = outputs if made is None else made
    order = text.strip()
    if order == IN_TURN:
        order = BRIDGED.get(frozenset(outputs), order)
    named = [_turn(turn.strip()) for turn in ORDERS.get(order, order).split(",") if turn.strip()]
    flat = [name for turn, _ in named for name in turn]
    for name in flat:
        if name not in MODALITIES:
            raise CoDiError(
                f"unknown output {name!r} in order {text!r}: give {' or '.join(ORDERS)}, or turns such as video, audio+text; "
                "a turn in parentheses is made for the later ones to hear and not given out"
            )
        if flat.count(name) > 1:
            raise CoDiError(f"order {text!r} names {name} twice: each output is made once")
    turns = [tuple(m for m in turn if m in made or (bridging and m in lent and m not in outputs)) for turn, bridging in named]
    turns.append(tuple(m for m in MODALITIES if m in made and m not in flat))
    while turns and not any(m in outputs for m in turns[-1]):
        turns.pop()  # nothing is left that would hear it
    return tuple(turn for turn in turns if turn)


def _turn(text: str) -> tuple[list[str], bool]:
    """Names in a turn, and whether it is in parentheses."""
    bridging = text.startswith("(") and text.endswith(")")
    return [name.strip() for name in (text[1:-1] if bridging else text).split("+")], bridging

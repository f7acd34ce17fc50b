"""Which outputs of a run are denoised together, and which in stages, one after the other.

The paper denoises all outputs together (section 3.4). In stages, a later output attends to the finished ones through the same environment
encoders and connectors, from its first step on; every output takes the same number of steps."""

from __future__ import annotations

from collections.abc import Collection

from .errors import CoDiError
from .modalities import MODALITIES

TOGETHER, SEQUENTIAL = "together", "sequential"
SCHEDULES = {TOGETHER: "+".join(MODALITIES), SEQUENTIAL: "text, audio, video, image"}
"""Schedules that have a name. The sequential one makes the image last: it alone shows nothing of what happens in time."""


def parse_schedule(text: str, outputs: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The stages of a run that generates `outputs`: "video, audio+text" makes the video first, then audio and text together.

    text: a name in SCHEDULES, or stages of outputs; those that the run does not generate are passed over, and outputs that it does not
    name come last, together. Raises CoDiError for an unknown output and for one that is named twice."""
    named = [[name.strip() for name in stage.split("+")] for stage in SCHEDULES.get(text.strip(), text).split(",") if stage.strip()]
    flat = [name for stage in named for name in stage]
    for name in flat:
        if name not in MODALITIES:
            raise CoDiError(
                f"unknown output {name!r} in schedule {text!r}: give {' or '.join(SCHEDULES)}, or stages such as video, audio+text"
            )
        if flat.count(name) > 1:
            raise CoDiError(f"schedule {text!r} names {name} twice: each output is made once")
    stages = [tuple(name for name in stage if name in outputs) for stage in named]
    stages.append(tuple(name for name in MODALITIES if name in outputs and name not in flat))
    return tuple(stage for stage in stages if stage)

"""A joint LATENT sampled in stages: what is finished is kept, and attended to by what comes after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...codi_models.config import CoDiConfig
from ...codi_models.modalities import MODALITIES
from ...codi_models.stages import parse_schedule
from .joining import put_together, take_apart
from .parts import join


def sample_in_stages(run: Callable[[Mapping[str, Any]], Any], latent: Mapping[str, Any], config: CoDiConfig, schedule: str) -> Any:
    """The LATENT that `run` makes of this one, called once for each stage of the schedule (see `parse_schedule`).

    A stage gets the parts that are kept or finished, masked, and those that it makes; parts that come later are not there yet."""
    pieces = take_apart(latent, config)
    kept = [m for m, piece in pieces.items() if "noise_mask" in piece and not bool(piece["noise_mask"].any())]
    stages = parse_schedule(schedule, [m for m in pieces if m not in kept])
    if len(stages) < 2:
        return run(latent)
    finished = {m: pieces[m] for m in kept}
    for stage in stages:
        asked = {m: finished.get(m, pieces[m]) for m in MODALITIES if m in finished or m in stage}
        made = take_apart(run(put_together(list(asked.values()), config)), config)
        for m in stage:
            part = made[m]["samples"]
            finished[m] = {**pieces[m], "samples": part, "noise_mask": torch.zeros(part.shape[0], 1, *part.shape[2:])}
    return {**latent, "samples": join({m: finished[m]["samples"] for m in pieces})}

"""A joint LATENT sampled in turns: what is finished is kept, and heard clean by what comes after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from ...codi_models.config import MODALITIES, CoDiConfig
from ...codi_models.order import TOGETHER, parse_order
from .joining import put_together, take_apart
from .parts import empty, join


def sample_in_turns(
    run: Callable[[Mapping[str, Any]], Any], latent: Mapping[str, Any], config: CoDiConfig, order: str, lent: Collection[str] = ()
) -> Any:
    """The LATENT that `run` makes of this one, called once for each turn of `order` (see `parse_order`).

    A turn gets the parts that are kept or finished, masked, and those that it makes; parts that come later are not there yet.
    lent: parts that may be made for the others to hear where the order wants them; the LATENT that comes out does not hold them."""
    if order == TOGETHER:
        return run(latent)
    pieces = take_apart(latent, config)
    kept = [m for m, piece in pieces.items() if "noise_mask" in piece and not bool(piece["noise_mask"].any())]
    given = tuple(pieces)
    turns = parse_order(order, given, [m for m in given if m not in kept], lent)
    if len(turns) < 2:
        return run(latent)
    batch = max(len(piece["samples"]) for piece in pieces.values())
    base = {k: v for k, v in latent.items() if k not in ("samples", "noise_mask")}
    for m in {m for turn in turns for m in turn} - set(given):  # a caption has no size
        pieces[m] = {**base, **empty(config, [m], width=64, height=64, frames=1, seconds=1.0, batch=batch)}
    finished = {m: pieces[m] for m in kept}
    for turn in turns:
        asked = {m: finished.get(m, pieces[m]) for m in MODALITIES if m in finished or m in turn}
        made = take_apart(run(put_together(list(asked.values()), config)), config)
        for m in turn:
            part = made[m]["samples"]
            finished[m] = {**pieces[m], "samples": part, "noise_mask": torch.zeros(part.shape[0], 1, *part.shape[2:])}
    return {**latent, "samples": join({m: finished[m]["samples"] for m in given})}

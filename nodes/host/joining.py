"""Joint LATENTs put together and taken apart along their outputs and along the batch, masks included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...codi_models.config import CoDiConfig
from ...codi_models.errors import CoDiError
from ...codi_models.modalities import MODALITIES
from .masks import masks_of, with_masks
from .parts import check_room, join, split

Latent = Mapping[str, Any]


def take_apart(latent: Latent, config: CoDiConfig) -> dict[str, dict[str, Any]]:
    """Modality -> LATENT of that output alone."""
    parts, masks = split(latent, config), masks_of(latent, config)
    out = {}
    for m, part in parts.items():
        own = {**latent, "samples": part}
        if "noise_mask" in latent:
            own["noise_mask"] = masks[m]
        out[m] = own
    return out


def put_together(latents: Sequence[Latent], config: CoDiConfig) -> dict[str, Any]:
    """One joint LATENT of several; a batch of one goes with every other.

    Raises CoDiError where an output comes twice or batches do not go together."""
    parts: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for latent in latents:
        own = split(latent, config)
        if twice := [m for m in own if m in parts]:
            raise CoDiError(f"{twice[0]} comes twice: each output may be in one of the LATENTs only; take it out with CoDi Split Latent")
        parts |= own
        masks |= masks_of(latent, config)
    batch = max(len(p) for p in parts.values())
    if wrong := {m: len(p) for m, p in parts.items() if len(p) not in (1, batch)}:
        raise CoDiError(
            f"batches of {', '.join(f'{n} {m}' for m, n in wrong.items())} and {batch} do not go together: use CoDi Repeat Latent"
        )
    parts = {m: p.expand(batch, *p.shape[1:]).clone() for m, p in parts.items()}
    base = {k: v for k, v in latents[0].items() if k != "noise_mask"}
    if not any("noise_mask" in latent for latent in latents):
        return {**base, "samples": join(parts)}
    return with_masks(base, parts, {m: mask.expand(batch, *mask.shape[1:]) for m, mask in masks.items()})


def joined(latents: Sequence[Latent], config: CoDiConfig) -> dict[str, Any]:
    """LATENTs of the same outputs as one batch, of different ones as one joint LATENT.

    Raises CoDiError as `batched` and `put_together` do, for others, which share some of their outputs, too."""
    held = [set(split(latent, config)) for latent in latents]
    return batched(latents, config) if all(names == held[0] for names in held) else put_together(latents, config)


def rows(latent: Latent, chosen: Sequence[int] | None, config: CoDiConfig, *, repeat: int = 1) -> dict[str, Any]:
    """Some samples of a LATENT, in the order given, or all where None are; `repeat` times one after another, as samples of their own.

    Raises CoDiError for a number that is not there, and where the result would not fit the machine's memory."""
    parts = split(latent, config)
    batch = min(len(p) for p in parts.values())
    chosen = list(range(batch) if chosen is None else chosen) * repeat
    if not chosen or any(not -batch <= i < batch for i in chosen):
        raise CoDiError(f"samples {', '.join(map(str, chosen)) or 'none'} of a batch of {batch}: give numbers from 0 to {batch - 1}")
    index = [i % batch for i in chosen]
    check_room(sum(p[0].numel() for p in parts.values()) * len(index), f"a LATENT of {len(index)} samples of this size")
    out = {**latent, "samples": join({m: p[index] for m, p in parts.items()})}
    numbers = out.pop("batch_index", None)
    if numbers is not None and repeat == 1:
        out["batch_index"] = [numbers[i] for i in index]
    if "noise_mask" not in latent:
        return out
    return with_masks(out, {m: p[index] for m, p in parts.items()}, {m: k[index] for m, k in masks_of(latent, config).items()})


def batched(latents: Sequence[Latent], config: CoDiConfig) -> dict[str, Any]:
    """Samples of several LATENTs in one. Raises CoDiError where outputs or their sizes differ."""
    every = [split(latent, config) for latent in latents]
    for other in every[1:]:
        if list(other) != list(every[0]):
            raise CoDiError(
                f"a LATENT of {', '.join(every[0])} and one of {', '.join(other)} make no batch: they must hold the same outputs"
            )
        for m in other:
            if other[m].shape[1:] != every[0][m].shape[1:]:
                raise CoDiError(
                    f"{m} of {tuple(every[0][m].shape[1:])} and {tuple(other[m].shape[1:])} make no batch: use one size and length"
                )
    parts = {m: torch.cat([e[m].to(every[0][m]) for e in every]) for m in MODALITIES if m in every[0]}
    out = {k: v for k, v in latents[0].items() if k not in ("noise_mask", "batch_index")} | {"samples": join(parts)}
    if not any("noise_mask" in latent for latent in latents):
        return out
    masks = [masks_of(latent, config) for latent in latents]
    return with_masks(out, parts, {m: torch.cat([k[m] for k in masks]) for m in parts})

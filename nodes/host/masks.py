"""Which places of a joint LATENT are generated (1) and which are kept (0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ...codi_models.config import CoDiConfig
from ...codi_models.errors import CoDiError
from ...codi_models.modalities import MODALITIES
from .parts import join, split


def masks_of(latent: Mapping[str, Any], config: CoDiConfig) -> dict[str, Tensor]:
    """Modality -> (B, 1, ...) of the part's size; ones where the LATENT has none. Raises CoDiError for a mask of another size."""
    parts = split(latent, config)
    given = latent.get("noise_mask")
    if given is None:
        masks: list[Tensor] = []
    else:
        masks = list(given.unbind()) if given.is_nested else [given]
    found = {m: torch.ones(part.shape[0], 1, *part.shape[2:]) for m, part in parts.items()}
    for (m, part), mask in zip(parts.items(), masks, strict=False):
        wanted = (part.shape[0], 1, *part.shape[2:])
        mask = mask.float().cpu()
        if mask.ndim == part.ndim:
            mask = mask[:, :1]
        if mask.ndim != part.ndim or any(a not in (1, b) for a, b in zip(mask.shape, wanted, strict=True)):
            if m not in ("image", "video") or mask.ndim < 2:
                raise CoDiError(f"the noise mask of {m} is {tuple(mask.shape)}, the part is {tuple(part.shape)}: use CoDi Mask Latent")
            mask = spatial(mask.reshape(-1, *mask.shape[-2:]), part)
        found[m] = mask.expand(wanted).clone()
    return found


def with_masks(latent: Mapping[str, Any], parts: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """The LATENT with these parts and masks."""
    out = {**latent, "samples": join(parts)}
    ordered = [masks[m] for m in MODALITIES if m in parts]
    out["noise_mask"] = ordered[0] if len(ordered) == 1 else NestedTensor(ordered)
    return out


def spatial(mask: Tensor, part: Tensor) -> Tensor:
    """MASK (N, H, W), white to be generated, -> (B, 1, h, w) or (B, 1, F, h, w). A latent element that a white pixel touches is generated.

    N is 1, the batch of pictures, or the frames of a clip. Raises CoDiError for other numbers and values that are not finite."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
    if not mask.numel() or not bool(torch.isfinite(mask).all()):
        raise CoDiError("the mask is empty, or holds NaN or infinite values: look at the node that made it")
    small = torch.nn.functional.interpolate(mask, size=part.shape[-2:], mode="area")
    small = (small > 1e-3).float()  # (N, 1, h, w)
    clip = part.ndim == 5
    count = part.shape[2] if clip else part.shape[0]
    if len(small) not in (1, count):
        raise CoDiError(f"{len(small)} masks do not go with {count} {'frames' if clip else 'images'}: give one, or one for each")
    if clip:
        return small.movedim(0, 1)[None].expand(part.shape[0], 1, count, -1, -1)
    return small.expand(part.shape[0], -1, -1, -1)

"""Pixels of any size and kind to the size that is wanted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CoDiError


def rgb(pixels: Tensor, what: str = "image") -> Tensor:
    """Pixels (..., C, H, W) as (..., 3, H, W) in 0..1: grey repeated, alpha dropped, out of range clamped.

    Raises CoDiError for other channel counts, no pixels, integers and values that are not finite.
    """
    shape = tuple(pixels.shape)
    if len(shape) < 3 or shape[-3] not in (1, 3, 4) or not pixels.numel():
        raise CoDiError(f"the {what} has shape {shape}; it takes (..., channels, height, width) with 1, 3 or 4 channels and no empty axis")
    if not pixels.is_floating_point():
        raise CoDiError(f"the {what} holds {pixels.dtype}; it takes floating-point pixels in 0..1 (divide 8-bit pixels by 255)")
    if not bool(torch.isfinite(pixels).all()):
        raise CoDiError(f"the {what} holds NaN or infinite pixels; it takes values in 0..1. Check the node or file that it comes from")
    pixels = pixels.expand(*shape[:-3], 3, *shape[-2:]) if shape[-3] == 1 else pixels[..., :3, :, :]
    return pixels.clamp(0, 1)


def fill(pixels: Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    """Images (N, 3, H, W), 0..1 or 8 bits, at `size` (height, width): the largest part of that shape around the middle, resized by
    torch's bicubic filter and rounded to 8 bits. float32 in 0..1; one image at a time, so that memory follows the result."""
    return torch.stack([_filled(one, size, antialias) for one in pixels])


def _filled(pixels: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    (height, width), (high, wide) = pixels.shape[-2:], size
    if height * wide > width * high:
        box = max(1, round(width * high / wide)), width
    else:
        box = height, max(1, round(height * wide / high))
    top, left = (height - box[0] + 1) // 2, (width - box[1] + 1) // 2
    part = pixels[..., top : top + box[0], left : left + box[1]]
    part = part.float() if part.dtype == torch.uint8 else (part.float() * 255).round()
    if box != size:
        part = F.interpolate(part[None], size, mode="bicubic", align_corners=False, antialias=antialias)[0]
    return part.round().clamp(0, 255) / 255

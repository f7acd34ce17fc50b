"""Images for the training log: rows of images, frames of videos below each other, spectrograms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 96  # px of an image


def grid(x: Tensor) -> Tensor:
    """Images (B, 3, H, W) in 0..1 side by side, or videos (B, 3, F, H, W), frames below each other: (3, H', W') on the CPU."""
    frames = x[:, :, None] if x.ndim == 4 else x
    count, _, length = frames.shape[:3]
    small = functional.interpolate(frames.transpose(1, 2).flatten(0, 1).float(), (SIDE, SIDE), mode="area").unflatten(0, (count, length))
    return small.permute(2, 1, 3, 0, 4).reshape(3, length * SIDE, count * SIDE).clamp(0, 1).cpu()


def spectrograms(mel: Tensor) -> Tensor:
    """Log-mels (B, 1, T, M), natural logarithms, side by side, low pitches below, 60 dB from black to white: (3, M, B * T)."""
    decibels = 20 / 2.302585 * mel[:, 0].float().mT  # (B, M, T)
    grey = ((decibels - decibels.amax(dim=(1, 2), keepdim=True)) / 60 + 1).clamp(0, 1).flip(1)
    return torch.cat(list(grey), dim=1).expand(3, -1, -1).cpu()

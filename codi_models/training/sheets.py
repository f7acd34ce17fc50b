"""Images for the training log: rows of images, frames of videos below each other, spectrograms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..autoencoders.tokenizers import TextTokenizers
from ..modalities import MODALITIES
from .workspace import Workspace

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


def decoded(space: Workspace, modality: str, z: Tensor) -> Tensor | list[str] | None:
    """Latents (B, ...) in diffusion space as an image for the log, or as texts; None while the model folder has no decoder for them."""
    name = MODALITIES[modality].autoencoder
    if not space.has(name):
        return None
    net, config = space.trained(name), space.config
    z = z / MODALITIES[modality].latent_scale(config)
    if modality == "text":
        ids = net.generate(z, temperature=0.0)
        return TextTokenizers(space.folder, config.text_autoencoder).decode(ids)
    return spectrograms(net.decode(z)) if modality == "audio" else grid(net.decode(z) / 2 + 0.5)

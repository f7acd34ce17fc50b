"""Latents of a finished run to pixels, sound and text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .model import CoDi

DECODERS = {
    "image": ("picture_autoencoder",),
    "video": ("picture_autoencoder",),
    "audio": ("sound_autoencoder", "vocoder"),
    "text": ("text_autoencoder",),
}
"""Components that decode an output."""


@torch.inference_mode()
def decode_pixels(model: CoDi, latents: Tensor) -> Tensor:
    """(B, 4, h, w) or (B, 4, F, h, w) in diffusion space -> (B, 3, H, W) or (B, F, 3, H, W), float32 in 0..1."""
    pixels = model.picture_autoencoder.decode(latents / model.config.picture_autoencoder.scale).float()
    pixels = pixels if latents.ndim == 4 else pixels.transpose(1, 2)
    return ((pixels + 1) / 2).clamp(0, 1)


@torch.inference_mode()
def decode_sound(model: CoDi, latents: Tensor) -> Tensor:
    """(B, C, T / f, M / f) in diffusion space -> (B, N), float32 in -1..1, N = hop_length * T, at `config.mel.sample_rate`."""
    logmel = model.sound_autoencoder.decode(latents / model.config.sound_autoencoder.scale)  # (B, 1, T, M)
    return model.vocoder(logmel).float().clamp(-1, 1)


@torch.inference_mode()
def decode_text(model: CoDi, latents: Tensor, seeds: Sequence[int]) -> list[str]:
    """(B, D) in diffusion space -> B captions; `seeds` draw the words where the model's temperature is not 0."""
    config = model.config.text_autoencoder
    ids = model.text_autoencoder.generate(latents / config.scale, temperature=config.temperature, seeds=list(seeds))
    return model.text_tokenizers.decode(ids, faithful=False)

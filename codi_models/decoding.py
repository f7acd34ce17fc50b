"""Latents of a finished run to pixels, sound and text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .model import CoDi

DECODERS = {
    "image": ("image_autoencoder",),
    "video": ("image_autoencoder",),
    "audio": ("audio_autoencoder", "vocoder"),
    "text": ("text_autoencoder",),
}
"""Components that decode an output."""

PIXELS_AT_ONCE = 8 * 256 * 256  # pictures and frames beyond that many pixels are decoded one part after another
BINS_AT_ONCE = 8 * 1024 * 64  # the same for sounds, in mel bins


@torch.inference_mode()
def decode_pixels(model: CoDi, latents: Tensor) -> Tensor:
    """(B, 4, h, w) or (B, 4, F, h, w) in diffusion space -> (B, 3, H, W) or (B, F, 3, H, W), float32 in 0..1."""
    autoencoder, scale = model.image_autoencoder, model.config.image_autoencoder.scale
    z = (latents / scale).to(model.precision("image_autoencoder"))
    frames = z if z.ndim == 4 else z.transpose(1, 2).flatten(0, 1)  # (B * F, 4, h, w)
    size = frames.shape[-2] * frames.shape[-1] * autoencoder.factor**2
    pixels = torch.cat([autoencoder.decode(part).float() for part in frames.split(max(1, PIXELS_AT_ONCE // size))])
    pixels = pixels if latents.ndim == 4 else pixels.unflatten(0, (latents.shape[0], latents.shape[2]))
    return ((pixels + 1) / 2).clamp(0, 1)


@torch.inference_mode()
def decode_audio(model: CoDi, latents: Tensor) -> Tensor:
    """(B, C, T / f, M / f) in diffusion space -> (B, N), float32 in -1..1, N = hop_length * T, at `config.mel.sample_rate`."""
    z = (latents / model.config.audio_autoencoder.scale).to(model.precision("audio_autoencoder"))
    bins = z.shape[-2] * z.shape[-1] * model.audio_autoencoder.factor**2
    sounds = []
    for part in z.split(max(1, BINS_AT_ONCE // bins)):
        logmel = model.audio_autoencoder.decode(part)  # (b, 1, T, M)
        sounds.append(model.vocoder(logmel.to(model.precision("vocoder"))).float().clamp(-1, 1))
    return torch.cat(sounds)


@torch.inference_mode()
def decode_text(model: CoDi, latents: Tensor, seeds: Sequence[int]) -> list[str]:
    """(B, D) in diffusion space -> B captions; `seeds` draw the words where the model's temperature is not 0."""
    config = model.config.text_autoencoder
    z = (latents / config.scale).to(model.precision("text_autoencoder"))
    ids = model.text_autoencoder.generate(z, temperature=config.temperature, seeds=list(seeds))
    return model.text_tokenizers.decode(ids, faithful=False)

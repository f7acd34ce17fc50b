"""Media to latents: the counterpart of decoding.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .config import CoDiConfig
from .encoders.preprocess import resample, resize_clip, rgb, spread
from .errors import CoDiError
from .model import CoDi
from .prompts import Prompt

ENCODERS = {"image": "image_autoencoder", "video": "image_autoencoder", "audio": "audio_autoencoder", "text": "text_autoencoder"}
"""Component that makes the latent of a modality."""


def fitted(config: CoDiConfig, prompt: Prompt, *, size: int | None = None, frames: int | None = None) -> Any:
    """A read prompt (see `Prompt`) at the model's own sizes, or at these: image (3, S, S), video (F, 3, S, S) in 0..1, audio (N,) at
    `config.mel.sample_rate`, text a string.

    Pictures and frames are cut to their middle square; of a clip `frames` are taken, the last repeated where it has fewer; sound of
    any rate is resampled, then cut or filled up with silence. What has the right size stays as it is, pictures of 8 bits and sound to
    the bit. Raises CoDiError for values that are no such media."""
    value: Any = prompt.value
    if prompt.kind == "text":
        return str(value)
    if prompt.kind == "audio":
        wave, rate = value
        if not bool(torch.isfinite(wave).all()):
            raise CoDiError("the sound holds NaN or infinite samples; it takes values in -1..1. Check the file that it comes from")
        samples = config.mel.frames * config.mel.hop_length
        wave = resample(wave[None].float(), int(rate), config.mel.sample_rate)[0, :samples]
        return torch.nn.functional.pad(wave, (0, samples - len(wave)))
    usual = config.sampling
    if prompt.kind == "image":
        return resize_clip(rgb(value[None], "picture"), size or usual.image_size)[0]
    count = frames or usual.frames
    clip = resize_clip(rgb(value, "clip"), size or usual.video_size)
    clip = spread(clip[None], count)[0]
    return torch.cat([clip, clip[-1:].expand(count - len(clip), -1, -1, -1)])


@torch.inference_mode()
def encode_media(model: CoDi, prompt: Prompt, *, size: int | None = None, frames: int | None = None, whole: bool = False) -> Tensor:
    """The latent of a read prompt in diffusion space, float32, of the model's own sizes or of these, without batch axis:
    image (C, h, w), video (C, F, h, w), audio (C, T, M), text (D,).

    Fits and raises as `fitted` does; `whole` also for a text that is too long, which is cut otherwise."""
    config, device = model.config, model.device
    value = fitted(config, prompt, size=size, frames=frames)
    if prompt.kind == "text":
        latent = model.text_autoencoder.encode(model.text_tokenizers.encode([value], whole=whole).to(device))
        return latent[0].float() * config.text_autoencoder.scale
    if prompt.kind == "audio":
        return model.audio_autoencoder.encode(value[None].to(device, model.dtype))[0].float() * config.audio_autoencoder.scale
    pixels = value[None] if prompt.kind == "image" else value.transpose(0, 1)[None]  # (1, 3, H, W) or (1, 3, F, H, W)
    latent = model.image_autoencoder.encode((pixels * 2 - 1).to(device, model.dtype))
    return latent[0].float() * config.image_autoencoder.scale

"""Media to latents of diffusion space, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .conditioning import Prompt
from .config import CoDiConfig
from .encoders.preprocess import resample, resize_clip, rgb, spread
from .errors import CoDiError
from .model import CoDi

PIXELS_AT_ONCE = 8 * 256 * 256  # pictures and frames beyond that many pixels are decoded one part after another
BINS_AT_ONCE = 8 * 1024 * 64  # the same for sounds, in mel bins


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
def encode_media(model: CoDi, prompt: Prompt, *, size: int | None = None, frames: int | None = None, strict: bool = False) -> Tensor:
    """The latent of a read prompt in diffusion space, float32, of the model's own sizes or of these, without batch axis:
    image (C, h, w), video (C, F, h, w), audio (C, T, M), text (D,).

    Fits and raises as `fitted` does; `strict` also for a text that is too long, which is cut otherwise."""
    config, device = model.config, model.device
    value = fitted(config, prompt, size=size, frames=frames)
    if prompt.kind == "text":
        latent = model.text_autoencoder.encode(model.text_tokenizers.encode([value], strict=strict).to(device))
        return latent[0].float() * config.text_autoencoder.scale
    if prompt.kind == "audio":
        return model.audio_autoencoder.encode(value[None].to(device, model.dtype))[0].float() * config.audio_autoencoder.scale
    pixels = value[None] if prompt.kind == "image" else value.transpose(0, 1)[None]  # (1, 3, H, W) or (1, 3, F, H, W)
    latent = model.image_autoencoder.encode((pixels * 2 - 1).to(device, model.dtype))
    return latent[0].float() * config.image_autoencoder.scale


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

"""Media of the host to parts of a LATENT, of any size that the networks can make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ...codi_models.encoders.preprocess import resample
from ...codi_models.errors import CoDiError
from .handle import CoDiHandle
from .parts import factor
from .vae import PictureVAE, SoundVAE


def encode_part(codi: CoDiHandle, modality: str, media: Any, shape: Sequence[int], *, last: int = 0) -> Tensor:
    """IMAGE, VIDEO or frames, AUDIO or STRING -> latent for a part of the given shape (B, ...), in latent space.

    Pictures are scaled to fill the part and cut at their middle; of a clip the first frames are taken, or its last ones where `last`
    says how many; the sound is resampled. Clips and sounds may be shorter than the part: the result covers its beginning only.
    The batch is that of the media, 1 or B. Raises CoDiError for media that are empty, not finite, or do not go with the batch."""
    if modality == "text":
        ids = codi.model.text_tokenizers.encode([str(media)], whole=True)
        network = codi.model.text_autoencoder
        with torch.inference_mode():
            return network.encode(ids.to(codi.model.place("text_autoencoder"))).float().unsqueeze(-1).to(mm.intermediate_device())
    if modality == "audio":
        return _sound(codi, media, shape)
    side = factor(codi.config.picture_autoencoder)
    size = (shape[-2] * side, shape[-1] * side)
    if modality == "image":
        _fits(len(media), shape[0], "pictures")
        return PictureVAE(codi).encode(_filled(media, size))
    frames = media if isinstance(media, Tensor) else media.get_components().images
    frames = frames[-last:] if last else frames
    frames = _filled(frames[: shape[2]], size)  # (F, H, W, 3)
    return PictureVAE(codi).encode(frames).transpose(0, 1)[None]  # (1, C, F, h, w)


def _sound(codi: CoDiHandle, media: Any, shape: Sequence[int]) -> Tensor:
    if media is None:
        raise CoDiError("no sound was given: a clip without sound cannot be kept as audio")
    wave, mel = media["waveform"].float().cpu(), codi.config.mel
    _check(wave, "sound")
    _fits(len(wave), shape[0], "sounds")
    wave = resample(wave.mean(dim=1), int(media["sample_rate"]), mel.sample_rate)  # (B, N)
    unit = mel.hop_length * factor(codi.config.sound_autoencoder)
    wave = wave[:, : shape[2] * unit]
    return SoundVAE(codi).encode(wave.unsqueeze(-1))[:, :, : shape[2]]


def _filled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W, C) scaled to cover (height, width) and cut at the middle."""
    if pixels.ndim != 4:
        raise CoDiError(f"an IMAGE is (batch, height, width, channels), got {tuple(pixels.shape)}")
    _check(pixels, "picture")
    x = pixels.expand(-1, -1, -1, 3) if pixels.shape[-1] == 1 else pixels[..., :3]
    x = x.movedim(-1, 1).float()
    if tuple(x.shape[-2:]) != size:
        scale = max(size[0] / x.shape[-2], size[1] / x.shape[-1])
        around = [max(side, round(old * scale)) for side, old in zip(size, x.shape[-2:], strict=True)]
        x = torch.nn.functional.interpolate(x, size=around, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (around[0] - size[0]) // 2, (around[1] - size[1]) // 2
        x = x[..., top : top + size[0], left : left + size[1]]
    return x.movedim(1, -1)


def _check(x: Tensor, what: str) -> None:
    if not x.numel():
        raise CoDiError(f"the {what} is empty: give one of at least one frame or sample")
    if not bool(torch.isfinite(x).all()):
        raise CoDiError(f"the {what} holds NaN or infinite values: look at the node that made it")


def _fits(count: int, batch: int, what: str) -> None:
    if count not in (1, batch):
        raise CoDiError(f"{count} {what} do not go with a LATENT of {batch} samples: give one, or one for every sample")

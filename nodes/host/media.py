"""Media of the host to parts of a LATENT, of any size that the networks can make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ...codi_models.encoders.preprocess import resample
from ...codi_models.errors import CoDiError
from ...codi_models.media import MAX_SECONDS
from .checks import image
from .handle import CoDiHandle
from .parts import mel_frames
from .vae import AudioVAE, ImageVAE


def frames_of(video: Any) -> Tensor:
    """Frames (F, H, W, C) of a VIDEO, or of an IMAGE batch as it is.

    Raises CoDiError for a clip that is too long, cannot be read or has no frame."""
    from av.error import FFmpegError

    if isinstance(video, Tensor):
        return video
    try:
        if (seconds := video.get_duration()) > MAX_SECONDS:
            raise CoDiError(f"the clip is {seconds / 60:.1f} minutes long, {MAX_SECONDS / 60:g} are taken at most: trim it first")
        return image(video.get_components().images, "video")
    except CoDiError:
        raise
    except (FFmpegError, OSError, ValueError) as error:
        raise CoDiError(f"video: the clip cannot be read ({error}): give another file, or one that other players can play") from error


def encode_part(codi: CoDiHandle, modality: str, media: Any, shape: Sequence[int], *, last: float = 0) -> Tensor:
    """IMAGE, VIDEO or frames, AUDIO or STRING -> latent for a part of the given shape (B, ...), in latent space.

    Pictures are scaled to fill the part and cut at their middle; of a clip the first frames are taken, or its last ones where `last`
    says how many; the sound is resampled, and of it the beginning is taken, or its end where `last` says how many seconds (rounded to
    the length of a latent step). Clips and sounds may be shorter than the part: the result covers its beginning only.
    The batch is that of the media, 1 or B. Raises CoDiError for media that are empty, not finite, or do not go with the batch."""
    if modality == "text":
        ids = codi.model.text_tokenizers.encode([str(media)], strict=True)
        network = codi.model.text_autoencoder
        with torch.inference_mode():
            return network.encode(ids.to(codi.model.place("text_autoencoder"))).float().unsqueeze(-1).to(mm.intermediate_device())
    if modality == "audio":
        return _sound(codi, media, shape, float(last))
    side = codi.config.image_autoencoder.downsampling
    size = (shape[-2] * side, shape[-1] * side)
    if modality == "image":
        _fits(len(media), shape[0], "pictures")
        return ImageVAE(codi).encode(_filled(media, size))
    frames = frames_of(media)
    frames = frames[-int(last) :] if last else frames
    frames = _filled(frames[: shape[2]], size)  # (F, H, W, 3)
    return ImageVAE(codi).encode(frames).transpose(0, 1)[None]  # (1, C, F, h, w)


def _sound(codi: CoDiHandle, media: Any, shape: Sequence[int], last: float) -> Tensor:
    wave, mel = media["waveform"].float().cpu(), codi.config.mel
    _fits(len(wave), shape[0], "sounds")
    wave = resample(wave.mean(dim=1), int(media["sample_rate"]), mel.sample_rate)  # (B, N)
    unit = mel.hop_length * codi.config.audio_autoencoder.downsampling  # samples of a latent step
    if not last:
        wave = wave[:, : shape[2] * unit]
        return AudioVAE(codi).encode(wave.unsqueeze(-1))[:, :, : shape[2]]
    steps = max(1, min(round(last * mel.sample_rate / unit), wave.shape[1] // unit, shape[2]))
    # The networks make certain lengths only: the shortest that holds these steps, ending where the sound ends.
    whole = mel_frames(codi.config, 0) * mel.hop_length
    length = -(-steps * unit // whole) * whole
    wave = torch.nn.functional.pad(wave[:, -length:], (max(0, length - wave.shape[1]), 0))
    return AudioVAE(codi).encode(wave.unsqueeze(-1))[:, :, -steps:]


def _filled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W, C) scaled to cover (height, width) and cut at the middle. Raises CoDiError for pixels that are not finite."""
    if not bool(torch.isfinite(pixels).all()):
        raise CoDiError("the picture holds NaN or infinite values: look at the node that made it")
    x = pixels.expand(-1, -1, -1, 3) if pixels.shape[-1] == 1 else pixels[..., :3]
    x = x.movedim(-1, 1).float()
    if tuple(x.shape[-2:]) != size:
        scale = max(size[0] / x.shape[-2], size[1] / x.shape[-1])
        around = [max(side, round(old * scale)) for side, old in zip(size, x.shape[-2:], strict=True)]
        x = torch.nn.functional.interpolate(x, size=around, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (around[0] - size[0]) // 2, (around[1] - size[1]) // 2
        x = x[..., top : top + size[0], left : left + size[1]]
    return x.movedim(1, -1)


def _fits(count: int, batch: int, what: str) -> None:
    if count not in (1, batch):
        raise CoDiError(f"{count} {what} do not go with a LATENT of {batch} samples: give one, or one for every sample")

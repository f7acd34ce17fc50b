"""Media to latents of diffusion space, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .conditioning import Prompt
from .config import CoDiConfig
from .encoders.preprocess import resize_clip
from .errors import CoDiError
from .media import (
    Audio,
    Fit,
    Progress,
    Span,
    Video,
    audio_seconds,
    frames_at_rate,
    is_source,
    name_of,
    partly,
    read_audio,
    read_image,
    read_video,
    resample,
    rgb,
    video_seconds,
)
from .memory import BINS_AT_ONCE, PIXELS_AT_ONCE
from .model import CoDi

Note = Callable[[str], None]
"""Called with one line for a user who may not expect it: that only a part of a file is taken."""


def fitted(
    config: CoDiConfig, prompt: Prompt, *, size: int | None = None, frames: int | None = None,
    progress: Progress = lambda _: None, note: Note = lambda _: None,
) -> Any:  # fmt: skip
    """A prompt (see `Prompt`) at the model's own sizes, or at these: image (3, S, S), video (F, 3, S, S) in 0..1, audio (N,) at
    `config.mel.sample_rate`, text a string. Files are read.

    Images and frames are cut to their middle square. Of video and audio the prompt's span is taken, as far as the model can hold it: of
    video the frames at the model's rate by time, the last repeated where it is shorter; of audio the samples at the model's rate, then
    silence. What has the right size stays as it is, images of 8 bits and audio to the bit. Raises CoDiError for values that are no such
    media."""
    if prompt.kind == "text":
        return str(prompt.value)
    if prompt.kind == "audio":
        return _fitted_audio(config, prompt, progress, note)
    usual = config.sampling
    side = size or (usual.image_size if prompt.kind == "image" else usual.video_size)

    def fit(pixels: Tensor) -> Tensor:
        return resize_clip(pixels[None], side)[0]

    if prompt.kind == "image":
        value = prompt.value
        return read_image(value, fit=fit) if is_source(value) else fit(rgb(cast(Tensor, value)))
    count = frames or usual.frames
    made = _frames(prompt, count, usual.frame_rate, fit, progress, note)
    return torch.cat([made, made[-1:].expand(count - len(made), -1, -1, -1)])


def _frames(prompt: Prompt, count: int, rate: float, fit: Fit, progress: Progress, note: Note) -> Tensor:
    """At most `count` frames at the model's rate: (K, 3, S, S)."""
    value, span = prompt.value, prompt.span
    if is_source(value):
        video = read_video(value, count, rate=rate, span=span, fit=fit, progress=progress)
        if video.seconds > count / rate - 0.05:  # all that fits: there may be more
            _note(note, prompt, video.seconds, video_seconds(value, progress, exact=False))
        return frames_at_rate(video, rate, count)
    if not isinstance(value, Video):
        value = cast(Tensor, value)
        value = Video(value, torch.arange(len(value), dtype=torch.float64) / rate, len(value) / rate)
    part = value.part(span)
    _note(note, prompt, min(part.seconds, count / rate), value.seconds)
    return torch.stack([fit(rgb(frame, "video")) for frame in frames_at_rate(part, rate, count)])


def _fitted_audio(config: CoDiConfig, prompt: Prompt, progress: Progress, note: Note) -> Tensor:
    """(N,) at the model's rate and of its length."""
    value, rate, span = prompt.value, config.mel.sample_rate, prompt.span
    samples = config.mel.frames * config.mel.hop_length
    held = min(samples / rate, span.end - span.start)
    if is_source(value):
        wave = read_audio(value, rate=rate, span=Span(span.start, held), progress=progress).samples
        total = audio_seconds(value, progress)
    else:
        wave, given = cast("tuple[Tensor, int]", value)
        if not bool(torch.isfinite(wave).all()):
            raise CoDiError("the audio holds NaN or infinite samples; it takes values in -1..1. Check the file that it comes from")
        total = len(wave) / given
        part = Audio(wave, int(given)).part(Span(span.start, held))
        wave = resample(part.samples[None].float(), part.rate, rate)[0]
    _note(note, prompt, held, total)
    wave = wave[: round(held * rate)]
    return torch.nn.functional.pad(wave, (0, samples - len(wave)))


def _note(note: Note, prompt: Prompt, taken: float, total: float) -> None:
    what = name_of(prompt.value) if is_source(prompt.value) else prompt.kind
    if line := partly(what, prompt.span, taken, total):
        note(line)


@torch.inference_mode()
def encode_media(model: CoDi, prompt: Prompt, *, size: int | None = None, frames: int | None = None, strict: bool = False) -> Tensor:
    """The latent of a prompt in diffusion space, float32, of the model's own sizes or of these, without batch axis:
    image (C, h, w), video (C, F, h, w), audio (C, T, M), text (D,).

    Fits and raises as `fitted` does; `strict` also for a text that is too long, which is cut otherwise."""
    config, device = model.config, model.device
    value = fitted(config, prompt, size=size, frames=frames)
    if prompt.kind == "text":
        latent = model.text_autoencoder.encode(model.text_tokenizers.encode([value], strict=strict).to(device))
        return latent[0].float() * config.text_autoencoder.scale
    if prompt.kind == "audio":
        return model.audio_autoencoder.encode(value[None].to(device, model.dtype))[0].float() * config.audio_autoencoder.scale
    pictures: Tensor = value[None] if prompt.kind == "image" else value  # (F, 3, H, W)
    parts = pictures.split(max(1, PIXELS_AT_ONCE // math.prod(pictures.shape[-2:])))
    latent = torch.cat([model.image_autoencoder.encode((part * 2 - 1).to(device, model.dtype)).float() for part in parts])  # (F, C, h, w)
    latent = latent[0] if prompt.kind == "image" else latent.transpose(0, 1)
    return latent * config.image_autoencoder.scale


def _finite(decoded: Tensor, output: str) -> Tensor:
    """What was decoded. Raises CoDiError where it is not finite: a clamp would hide it."""
    if not bool(torch.isfinite(decoded).all()):
        raise CoDiError(f"the decoded {output} is NaN or infinite, which its latent was not: use fp32 (--dtype fp32), or other weights")
    return decoded


@torch.inference_mode()
def decode_pixels(model: CoDi, latents: Tensor, progress: Progress = lambda _: None) -> Tensor:
    """(B, 4, h, w) or (B, 4, F, h, w) in diffusion space -> (B, 3, H, W) or (B, F, 3, H, W), float32 in 0..1."""
    autoencoder, scale = model.image_autoencoder, model.config.image_autoencoder.scale
    z = (latents / scale).to(model.precision("image_autoencoder"))
    frames = z if z.ndim == 4 else z.transpose(1, 2).flatten(0, 1)  # (B * F, 4, h, w)
    size = frames.shape[-2] * frames.shape[-1] * autoencoder.factor**2
    parts = frames.split(max(1, PIXELS_AT_ONCE // size))
    decoded = []
    for number, part in enumerate(parts):
        progress(number / len(parts))
        pixels = _finite(autoencoder.decode(part).float(), "image" if z.ndim == 4 else "video")
        decoded.append(pixels.add_(1).div_(2).clamp_(0, 1))
    pixels = torch.cat(decoded)
    return pixels if latents.ndim == 4 else pixels.unflatten(0, (latents.shape[0], latents.shape[2]))


@torch.inference_mode()
def decode_audio(model: CoDi, latents: Tensor, progress: Progress = lambda _: None) -> Tensor:
    """(B, C, T / f, M / f) in diffusion space -> (B, N), float32 in -1..1, N = hop_length * T, at `config.mel.sample_rate`."""
    z = (latents / model.config.audio_autoencoder.scale).to(model.precision("audio_autoencoder"))
    bins = z.shape[-2] * z.shape[-1] * model.audio_autoencoder.factor**2
    sounds, parts = [], z.split(max(1, BINS_AT_ONCE // bins))
    for number, part in enumerate(parts):
        progress(number / len(parts))
        logmel = model.audio_autoencoder.decode(part)  # (b, 1, T, M)
        sounds.append(_finite(model.vocoder(logmel.to(model.precision("vocoder"))).float(), "audio").clamp(-1, 1))
    return torch.cat(sounds)


@torch.inference_mode()
def decode_text(model: CoDi, latents: Tensor, seeds: Sequence[int]) -> list[str]:
    """(B, D) in diffusion space -> B captions; `seeds` draw the words where the model's temperature is not 0."""
    config = model.config.text_autoencoder
    z = (latents / config.scale).to(model.precision("text_autoencoder"))
    ids = model.text_autoencoder.generate(z, temperature=config.temperature, seeds=list(seeds))
    return model.text_tokenizers.decode(ids, faithful=False)

"""Media of the host to parts of a LATENT, of any size that the networks can make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ...codi_models.errors import CoDiError
from ...codi_models.media import Audio, Span, fill, partly, resample, rgb
from .frames import Frames, working
from .handle import CoDiHandle
from .parts import mel_frames
from .vae import AudioVAE, ImageVAE

WHOLE = Span()
Note = Callable[[str], None]
"""Called with a line for the user: that only a part of what was given is taken."""


def encode_part(
    codi: CoDiHandle, modality: str, media: Any, shape: Sequence[int], *, last: float = 0, span: Span = WHOLE, note: Note = lambda _: None
) -> Tensor:
    """IMAGE, VIDEO or frames, AUDIO or STRING -> latent for a part of the given shape (B, ...), in latent space.

    Images are scaled to fill the part and cut at their middle. Of video and audio the span is taken as far as it fits, or the end of it
    where `last` says how many frames, or seconds (rounded to the length of a latent step): of video the frames at the model's rate by
    time, of audio the samples at the model's rate. Both may be shorter than the part: the result covers its beginning only.
    The batch is that of the media, 1 or B. Raises CoDiError for media that are empty, not finite, or do not go with the batch."""
    if modality == "text":
        ids = codi.model.text_tokenizers.encode([str(media)], strict=True)
        network = codi.model.text_autoencoder
        with torch.inference_mode():
            return network.encode(ids.to(codi.model.place("text_autoencoder"))).float().unsqueeze(-1).to(mm.intermediate_device())
    if modality == "audio":
        return _audio(codi, media, shape, float(last), span, note)
    side = codi.config.image_autoencoder.downsampling
    size = (shape[-2] * side, shape[-1] * side)
    if modality == "image":
        _fits(len(media), shape[0], "images")
        return ImageVAE(codi).encode(fill(rgb(media.movedim(-1, 1).float().cpu()), size).movedim(1, -1))
    return _video(codi, media, shape[2], size, int(last), span, note)


def _video(codi: CoDiHandle, media: Any, count: int, size: tuple[int, int], last: int, span: Span, note: Note) -> Tensor:
    rate, progress = codi.config.sampling.frame_rate, working()
    frames = media if isinstance(media, Frames) else Frames(media, rate)
    if last:
        end = min(span.end, frames.seconds(progress))
        start = max(span.start, end - last / rate)
        span, count = Span(start, end - start), min(last, count)
    video = frames.read(count, rate=rate, span=span, fit=lambda frame: fill(frame[None], size)[0], progress=progress)
    if (
        not last
        and video.seconds > count / rate - 0.05
        and (line := partly("video", span, video.seconds, frames.seconds(progress, exact=False)))
    ):
        note(line)
    return ImageVAE(codi).encode(video.frames.movedim(1, -1)).transpose(0, 1)[None]  # (1, C, F, h, w)


def _audio(codi: CoDiHandle, media: Any, shape: Sequence[int], last: float, span: Span, note: Note) -> Tensor:
    mel, given = codi.config.mel, int(media["sample_rate"])
    _fits(len(media["waveform"]), shape[0], "audio items")
    unit = mel.hop_length * codi.config.audio_autoencoder.downsampling  # samples of a latent step
    held = shape[2] * unit / mel.sample_rate
    total = media["waveform"].shape[-1] / given
    if not last:
        if line := partly("audio", span, held, total):
            note(line)
        span = Span(span.start, min(held, span.end - span.start))
    wave = Audio(media["waveform"], given).part(span).samples.float().cpu().mean(dim=1)
    wave = resample(wave, given, mel.sample_rate)  # (B, N)
    if not last:
        wave = wave[:, : shape[2] * unit]
        return AudioVAE(codi).encode(wave.unsqueeze(-1))[:, :, : shape[2]]
    steps = max(1, min(round(last * mel.sample_rate / unit), wave.shape[1] // unit, shape[2]))
    # The networks make certain lengths only: the shortest that holds these steps, ending where the sound ends.
    whole = mel_frames(codi.config, 0) * mel.hop_length
    length = -(-steps * unit // whole) * whole
    wave = torch.nn.functional.pad(wave[:, -length:], (max(0, length - wave.shape[1]), 0))
    return AudioVAE(codi).encode(wave.unsqueeze(-1))[:, :, -steps:]


def _fits(count: int, batch: int, what: str) -> None:
    if count not in (1, batch):
        raise CoDiError(f"{count} {what} do not go with a LATENT of {batch} samples: give one, or one for every sample")

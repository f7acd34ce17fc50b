"""Images, audio and video to files, nothing half-written."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CoDiError
from ..files import whole_file
from .lengths import fit_lengths
from .resampling import resample
from .values import Progress

AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Sample rates that the audio of an mp4 may have, in Hz."""


def allowed_rate(rate: float) -> int:
    """The lowest sample rate of an mp4's audio that loses nothing of audio at `rate` Hz, or the highest there is."""
    return next((allowed for allowed in AAC_RATES if allowed >= rate), AAC_RATES[-1])


def write_png(path: str | Path, image: Tensor) -> None:
    """(3, H, W) in 0..1 -> an 8-bit PNG."""
    from PIL import Image

    with whole_file(path) as temporary:
        Image.fromarray(_bytes(image).permute(1, 2, 0).numpy()).save(temporary, format="PNG")


def write_wav(path: str | Path, audio: Tensor, sample_rate: int) -> None:
    """(N,) in -1..1 -> mono 16-bit PCM. What was read from such a file is written to the bit."""
    samples = (audio.detach().float().cpu() * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()
    with whole_file(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())


def write_mp4(
    path: str | Path, frames: Tensor, frame_rate: float, audio: Tensor | None = None, sample_rate: int = 0, *, longer_audio: str = "cut",
    metadata: Mapping[str, Any] | None = None, progress: Progress = lambda _: None, note: Callable[[str], None] = lambda _: None,
) -> None:  # fmt: skip
    """(F, 3, H, W) in 0..1, H and W even -> H.264 (yuv420p, BT.709, nearly lossless), the index first; plays in every browser, and flat
    colours come back within about 2/255. audio: (N,), or (C, N) of one or two channels, in -1..1, as AAC, resampled where mp4 does not
    allow its rate. longer_audio: see `fit_lengths`, whose line `note` is called with.

    metadata: tags of the file; what is no text is written as JSON, as the host's Save Video does. Raises CoDiError for odd sizes."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    if frames.shape[-1] % 2 or frames.shape[-2] % 2:
        raise CoDiError(f"a video of {frames.shape[-1]}x{frames.shape[-2]} pixels cannot be written as mp4: width and height must be even")
    rate = Fraction(frame_rate).limit_denominator(1000)
    samples = None
    if audio is not None:
        frames, audio, line = fit_lengths(frames, float(rate), audio, sample_rate, longer_audio)
        samples = _samples(audio, sample_rate)
        if line:
            note(line)
    sample_rate = allowed_rate(sample_rate)
    with whole_file(path) as temporary, av.open(str(temporary), "w", options={"movflags": "use_metadata_tags+faststart"}) as file:
        for key, value in (metadata or {}).items():
            file.metadata[key] = value if isinstance(value, str) else json.dumps(value)
        # With mbtree, x264 makes other bytes from run to run at low frame rates.
        options = {"crf": "6", "preset": "medium", "x264-params": "mbtree=0"}
        video: Any = file.add_stream("libx264", rate=rate, options=options)
        video.height, video.width = frames.shape[-2:]
        video.pix_fmt = "yuv420p"
        context = video.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = ColorRange.MPEG, 1, 1, 1  # 1 = BT.709
        if samples is not None:
            layout = "mono" if len(samples) == 1 else "stereo"
            sound: Any = file.add_stream("aac", rate=sample_rate, layout=layout, bit_rate=6 * len(samples) * sample_rate)
        for number, frame in enumerate(frames):
            pixels = _bytes(frame).movedim(0, -1).numpy()  # (H, W, 3)
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            file.mux(video.encode(rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
            progress((number + 1) / len(frames))
        file.mux(video.encode(None))
        if samples is not None:
            block = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            block.sample_rate, block.pts, block.time_base = sample_rate, 0, Fraction(1, sample_rate)
            file.mux(sound.encode(block))
            file.mux(sound.encode(None))


def _samples(audio: Tensor, rate: int) -> np.ndarray:
    """(C, N) at a rate that mp4 allows."""
    audio = audio.detach().float().cpu()
    audio = resample(audio[None] if audio.ndim == 1 else audio, rate, allowed_rate(rate))
    return np.ascontiguousarray(audio.clamp(-1, 1).numpy())


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)

"""Files of Bounce World as other programs write them: any frame rate, container, size and order of streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codi.codi_models.bounce_world.render import render_audio, render_image
from codi.codi_models.bounce_world.world import DURATION, Nuisance, Scenes, hit_times


@dataclass
class Clip:
    """What a file shows. The scene is repeated every 1.28 s, with a beat more each time; its first `seconds` are written."""

    seconds: float = DURATION
    times: Sequence[float] | None = None  # when frames begin to show; else evenly at `rate`
    rate: float = 25.0
    audio_rate: int = 44100
    audio: tuple[float, float] | None = (0.0, DURATION)  # from when until when it has sound; None: no stream
    video_from: float = 0.0
    size: tuple[int, int] = (64, 64)  # height, width of the frames; the scene fills the middle square
    audio_first: bool = False
    channels: int = 1
    codec: str = "libx264"
    audio_codec: str = "aac"
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)


def beats_at(number: int) -> int:
    return 1 + number % 3


def scene(number: int) -> tuple[Scenes, Nuisance]:
    """The scene that a clip shows from `number` * 1.28 s: a blue star with 2, 3, 1, 2, ... bounces."""
    one = lambda value: torch.tensor([value])  # noqa: E731
    nuisance = Nuisance(grey=one(0.1), x=one(32.0), radius=one(10.0), time=one(0.0), detune=one(1.0), peak=one(0.7), noise_seed=one(3))
    return Scenes(one(3), one(4), one(beats_at(number) % 3)), nuisance


def hits(number: int = 0) -> torch.Tensor:
    """Seconds of the hits after the beginning of that scene."""
    times = hit_times(scene(number)[0].beats)[0]
    return times[~times.isnan()]


def picture(time: float, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """(H, W, 3), 8 bits: what the camera sees at a time."""
    scenes, nuisance = scene(int(time // DURATION))
    pixels = render_image(scenes, nuisance, torch.tensor([time % DURATION]))
    side = min(size)
    pixels = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear")[0] if side != 64 else pixels[0]
    whole = torch.full((3, *size), 0.1)
    top, left = (size[0] - side + 1) // 2, (size[1] - side + 1) // 2
    whole[:, top : top + side, left : left + side] = pixels
    return np.ascontiguousarray((whole.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy())


def sound(seconds: float, rate: int) -> torch.Tensor:
    """(N,) what is heard."""
    parts = [render_audio(*scene(number))[0] for number in range(int(seconds / DURATION) + 1)]
    whole = torch.cat(parts)[None]
    count = round(seconds * rate)
    places = torch.arange(count) * (16000 / rate)
    left = places.long().clamp(max=whole.shape[1] - 2)
    return whole[0, left] + (whole[0, left + 1] - whole[0, left]) * (places - left)


def write(path: Path, clip: Clip) -> Path:
    """Writes a clip; the container is that of the file's suffix."""
    import av

    times = clip.times
    if times is None:
        times = [clip.video_from + i / clip.rate for i in range(round((clip.seconds - clip.video_from) * clip.rate))]
    with av.open(str(path), "w") as file:

        def add_audio() -> Any:
            layout = "mono" if clip.channels == 1 else "stereo"
            return None if clip.audio is None else file.add_stream(clip.audio_codec, rate=clip.audio_rate, layout=layout)

        audio = add_audio() if clip.audio_first else None
        video = file.add_stream(clip.codec, rate=Fraction(clip.rate).limit_denominator(1001), options={"crf": "8", **clip.options})
        audio = audio if clip.audio_first else add_audio()
        (video.height, video.width), video.pix_fmt = clip.size, clip.pix_fmt
        base = 1 / Fraction(clip.rate).limit_denominator(1001) if clip.codec == "mpeg4" else Fraction(1, 90_000)
        video.time_base = video.codec_context.time_base = base
        ends = [*times[1:], clip.seconds]
        for begin, end in zip(times, ends, strict=True):
            frame = av.VideoFrame.from_ndarray(picture((begin + end) / 2, clip.size), format="rgb24").reformat(format=clip.pix_fmt)
            frame.pts, frame.time_base = round(begin / base), base
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if audio is not None and clip.audio is not None:
            begin, end = clip.audio
            samples = sound(end, clip.audio_rate)[round(begin * clip.audio_rate) :].numpy()[None]
            samples = np.ascontiguousarray(np.repeat(samples, clip.channels, axis=0))
            block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono" if clip.channels == 1 else "stereo")
            block.sample_rate, block.time_base, block.pts = clip.audio_rate, Fraction(1, clip.audio_rate), round(begin * clip.audio_rate)
            convert = av.AudioResampler(
                format=audio.codec_context.format, layout=audio.codec_context.layout, rate=clip.audio_rate,
                frame_size=audio.codec_context.frame_size or None,
            )  # fmt: skip
            for part in [*convert.resample(block), *convert.resample(None)]:
                file.mux(audio.encode(part))
            file.mux(audio.encode(None))
    return path

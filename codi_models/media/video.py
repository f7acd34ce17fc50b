"""Video from files, by time: frames are decoded one after the other, and only those that are wanted are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CoDiError
from .container import KINDS, Source, Track, name_of, opened
from .fitting import fill
from .stills import animation
from .values import TIE, Fit, Progress, Shown, Span, Video, moments_at_rate, moments_spread

FAR = 2.0  # seconds to the next wanted frame beyond which seeking is faster than decoding
WHOLE = Span()


def read_video(
    source: Source, count: int, *, rate: float | None = None, span: Span = WHOLE, fit: Fit | None = None,
    progress: Progress = lambda _: None,
) -> Video:  # fmt: skip
    """At most `count` frames of a span of a video.

    rate: the frames that are shown in the middles of `count` steps of 1 / rate seconds, of a shorter video fewer; a frame that is shown
    longer is taken more than once. Without a rate: `count` frames spread evenly over the time of the span, all of one that has fewer.
    fit: makes of each 8-bit frame (3, H, W) what is kept; without it frames have the size of the first.
    Frames are upright, transparency is laid on white. Memory: what is kept and a few frames.

    Raises CoDiError where the file has no video, is damaged or exceeds a limit (`Limits`), and where the span lies behind its end."""
    if (images := animation(source)) is not None:
        with images:
            return _read(images, count, rate, span, fit, progress)
    with opened(source, "video") as track:
        return _read(_Frames(track), count, rate, span, fit, progress)


def video_seconds(source: Source, progress: Progress = lambda _: None, *, exact: bool = True) -> float:
    """Length of a file's video in seconds, by the times of its frames, or, where that need not be exact, as its headers tell it.

    Raises CoDiError as `read_video` does."""
    if (images := animation(source)) is not None:
        with images:
            return images.seconds(progress)
    with opened(source, "video") as track:
        return track.told if track.told is not None and not exact else _Frames(track).seconds(progress)


def _read(frames: Any, count: int, rate: float | None, span: Span, fit: Fit | None, progress: Progress) -> Video:
    name, limits = name_of(frames.source), frames.limits
    if rate is not None:
        seconds = min(count / rate, span.end - span.start)
        moments = moments_at_rate(rate, count, seconds)
    else:
        limits.check("seconds", min(span.end, frames.told or 0) - span.start, name)  # before all packets are read
        total = frames.seconds(lambda done: progress(done / 10))
        if total <= span.start:
            raise _behind(name, span, total)
        seconds = min(span.end, total) - span.start
        moments = moments_spread(count, seconds)
    limits.check("seconds", seconds, name)
    kept: list[Tensor] = []
    times: list[float] = []
    last: Shown | None = None

    def tick() -> None:
        progress(0.1 + 0.9 * len(kept) / len(moments))

    for moment, shown in zip(moments.tolist(), _shown(frames, (moments + span.start).tolist(), tick), strict=False):
        if rate is not None and moment + span.start >= shown.end - TIE:  # behind the last frame
            if span.start >= shown.end - TIE:
                raise _behind(name, span, shown.end)
            if kept:
                break
        again = last is not None and shown.frame is last.frame
        if rate is not None or not again:
            kept.append(kept[-1] if again else _fitted(frames.pixels(shown.frame), fit, kept))
            times.append(max(0.0, shown.time - span.start) if rate is None else moment - 0.5 / rate)
        last = shown
    progress(1.0)
    if last is None:
        raise CoDiError(f"{name} holds no frame that can be decoded. Give {KINDS['video']}")
    if rate is not None and len(kept) < len(moments):  # the video ends before the span
        seconds = max(last.end - span.start, times[-1] + TIE)
    return Video(torch.stack(kept), torch.tensor(times, dtype=torch.float64), seconds)


def _fitted(pixels: np.ndarray, fit: Fit | None, kept: list[Tensor]) -> Tensor:
    frame = torch.from_numpy(pixels).movedim(-1, 0)  # (3, H, W), 8 bits
    if fit is not None:
        return fit(frame)
    if kept and kept[0].shape != frame.shape:  # the size changes within the video
        return fill(frame[None], (kept[0].shape[-2], kept[0].shape[-1]))[0]
    return frame.float() / 255


def _behind(name: str, span: Span, end: float) -> CoDiError:
    return CoDiError(f"{name}: start {span.start:g} s lies behind its end, the video is {end:.2f} s long. Give an earlier start")


def _shown(frames: Any, moments: list[float], tick: Callable[[], None]) -> Iterator[Shown]:
    """The frame that is shown at each moment, ascending; the last frame for those behind the end. Nothing where there is no frame.
    tick: called at every frame that is decoded."""
    coming = _from(frames, moments[0])
    after = next(coming, None)
    now: Shown | None = None
    for moment in moments:
        if now is not None and after is not None and moment - after.time > FAR:
            coming, now = _from(frames, moment), None
            after = next(coming, None)
        while after is not None and (now is None or after.time <= moment + TIE):
            now, after = after, next(coming, None)
            tick()
        if now is None:
            return
        yield now


def _from(frames: Any, moment: float) -> Iterator[Shown]:
    """Frames from the one that is shown at a moment, or from one before it: containers find key frames more or less well."""
    for begin in (moment, moment - 10.0):
        if begin < FAR:
            break
        coming = frames.since(begin)
        first = next(coming, None)
        if first is not None and first.time <= moment + TIE:
            yield first
            yield from coming
            return
    yield from frames.since(0.0)


_BT709, _BT601 = 1, 5  # as FFmpeg numbers them, in frames and in conversions


class _Frames:
    """Frames of a stream with the times that they are shown."""

    def __init__(self, track: Track) -> None:
        self.track, self.source, self.limits, self.told = track, track.source, track.limits, track.told
        self._moved = False
        aspect = track.stream.codec_context.sample_aspect_ratio
        self._aspect = float(aspect) if aspect and 0.25 <= aspect <= 4 else 1.0

    def seconds(self, progress: Progress) -> float:
        """End of the last frame."""
        self._moved = True
        return self.track.scanned(progress)

    def since(self, begin: float) -> Iterator[Shown]:
        """Frames from the last key frame at or before a time, in order. A frame without a time, or with one that runs backwards,
        follows the one before it."""
        if begin > 0 or self._moved:
            self.track.seek(begin)
        self._moved = True
        base, waiting = self.track.base, None
        for frame in self.track.decoded():
            lasts = self.track.lasts(frame)
            time = None if frame.pts is None else frame.pts * base - self.track.origin
            if waiting is None:
                time = begin if time is None else time
            else:
                time = waiting.end if time is None or time <= waiting.time else time
                yield waiting._replace(end=time)  # shown until the next one
            waiting = Shown(time, time + lasts, frame)
        if waiting is not None:
            yield waiting

    def pixels(self, frame: Any) -> np.ndarray:
        """(H, W, 3), 8 bits: upright, with square pixels, on white where it is transparent."""
        self.limits.check("pixels", frame.width * frame.height, name_of(self.source))
        transparent = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
        wide = max(1, round(frame.width * self._aspect))
        # PyAV 14 heeds the frame's own only where another one is asked for; RGB has none.
        colours = {"dst_colorspace": _BT601} if frame.colorspace == _BT709 else {}
        pixels = frame.to_ndarray(format="rgba" if transparent else "rgb24", width=wide, height=frame.height, **colours)
        if transparent:
            alpha = pixels[..., 3:].astype(np.uint16)
            pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))

"""VIDEO and IMAGE of the host as video by time: a file stays a file, of which only what is wanted is decoded."""

from __future__ import annotations

import time
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy_api.latest import Input
from torch import Tensor

from ...codi_models.errors import CoDiError
from ...codi_models.media import Fit, Progress, Span, Video, frames_at_rate, frames_spread, read_video, rgb, video_seconds
from .checks import image

_PATIENCE = 2.0  # seconds of work without a progress bar


def working() -> Progress:
    """Progress of what takes long, on the node that runs; ends it where the user interrupts."""
    begin, bars = time.monotonic(), list[Any]()

    def progress(done: float) -> None:
        mm.throw_exception_if_processing_interrupted()
        if time.monotonic() - begin > _PATIENCE:
            if not bars:
                bars.append(comfy.utils.ProgressBar(1000))
            bars[0].update_absolute(round(1000 * done))

    return progress


class Frames:
    """A VIDEO, or an IMAGE batch of frames at `rate` frames a second.

    Raises CoDiError for a VIDEO that cannot be read or has no frame."""

    def __init__(self, video: Any, rate: float) -> None:
        self.source: Any = None
        self.trim = Span()
        self._video: Video | None = None
        if isinstance(video, Tensor):
            self._video = _in_memory(video, rate)
        elif isinstance(video, Input.Video) and type(video).get_stream_source is not Input.Video.get_stream_source:
            self.source, self.trim = video.get_stream_source(), _trim(video)
        else:  # the stream of other VIDEOs would be encoded first
            self._video = _components(video)

    def seconds(self, progress: Progress = lambda _: None, *, exact: bool = True) -> float:
        """Length, of a trimmed VIDEO that of the part; see `video_seconds`."""
        if self._video is not None:
            return self._video.seconds
        return min(self.trim.end, video_seconds(self.source, progress, exact=exact)) - self.trim.start

    def read(self, count: int, *, rate: float | None, span: Span, fit: Fit, progress: Progress = lambda _: None) -> Video:
        """At most `count` frames of a span, at `rate` or else spread evenly over its time, each made to what is kept by `fit`."""
        if self._video is None:
            return read_video(self.source, count, rate=rate, span=span.within(self.trim), fit=fit, progress=progress)
        part = self._video.part(span)
        chosen = frames_spread(part, count) if rate is None else frames_at_rate(part, rate, count)
        made = []
        for number, frame in enumerate(chosen):
            made.append(fit(rgb(frame.float().cpu(), "video")))
            progress((number + 1) / len(chosen))
        seconds = part.seconds if rate is None else min(part.seconds, count / rate)
        return Video(torch.stack(made), torch.arange(len(made), dtype=torch.float64) * (seconds / len(made)), seconds)


def _in_memory(images: Tensor, rate: float) -> Video:
    """(F, H, W, C) as video, without a copy."""
    images = image(images, "video")
    return Video(images.movedim(-1, 1), torch.arange(len(images), dtype=torch.float64) / rate, len(images) / rate)


def _components(video: Any) -> Video:
    from av.error import FFmpegError

    try:
        parts = video.get_components()
        return _in_memory(parts.images, float(getattr(parts, "frame_rate", 0) or 1))
    except CoDiError:
        raise
    except (FFmpegError, OSError, ValueError, AttributeError) as error:
        raise CoDiError(f"video: it cannot be read ({error}): give another file, or one that other players can play") from error


def _trim(video: Any) -> Span:
    """The part of its file that a VIDEO stands for."""
    if hasattr(video, "get_active_trim_window"):
        start, length = video.get_active_trim_window()
    else:  # some hosts trim without telling
        start, length = (float(getattr(video, f"_VideoFromFile__{name}", None) or 0) for name in ("start_time", "duration"))
    if start < 0:
        start = max(0.0, video_seconds(video.get_stream_source()) + start)
    return Span(start, length if length > 0 else None)

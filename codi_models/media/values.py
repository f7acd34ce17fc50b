"""Values of the media layer: video and audio that know their time, and the span of a source that is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CoDiError

Progress = Callable[[float], None]
"""Called between frames or blocks with the part done, 0..1. What it raises ends the reading: an interrupt, for instance."""

Fit = Callable[[Tensor], Tensor]
"""An 8-bit frame (3, H, W) to what is kept of it, (3, h, w) in 0..1."""

TIE = 1e-3
"""Seconds by which times of frames may be rounded in a container: a frame shows from this much before its time."""


class Video(NamedTuple):
    """Frames and the times that they show."""

    frames: Tensor  # (F, 3, H, W) in 0..1
    times: Tensor  # (F,) float64, ascending: seconds from the beginning of the span at which each frame is shown
    seconds: float  # length of the span; the last frame is shown up to here

    def part(self, span: Span) -> Video:
        """The frames of a span, without a copy. Raises CoDiError where it begins behind the end."""
        if span.start >= self.seconds:
            raise CoDiError(f"start {span.start:g} s lies behind the end of the video, which is {self.seconds:.2f} s long")
        end = min(span.end, self.seconds)
        first, last = shown_at(self.times, torch.tensor([span.start, end - 2 * TIE], dtype=torch.float64)).tolist()
        times = (self.times[first : last + 1] - span.start).clamp(min=0)
        return Video(self.frames[first : last + 1], times, end - span.start)


class Shown(NamedTuple):
    """A decoded frame of a source and the time from which until which it is shown, in seconds."""

    time: float
    end: float
    frame: Any


class Audio(NamedTuple):
    """Samples and their rate."""

    samples: Tensor  # (N,) in -1..1
    rate: int  # Hz

    def part(self, span: Span) -> Audio:
        """The samples of a span, without a copy; samples may be (..., N). Raises CoDiError where it begins behind the end."""
        first, total = round(span.start * self.rate), self.samples.shape[-1]
        if first >= total:
            raise CoDiError(f"start {span.start:g} s lies behind the end of the audio, which is {total / self.rate:.2f} s long")
        return Audio(self.samples[..., first : total if span.length is None else round(span.end * self.rate)], self.rate)


@dataclass(frozen=True)
class Span:
    """A part of a source in seconds; without a length, all that there is or that fits. Raises CoDiError for times that are none."""

    start: float = 0.0
    length: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.start >= 0):
            raise CoDiError(f"start is {self.start}: give seconds from the beginning, 0 or more")
        if self.length is not None and not (math.isfinite(self.length) and self.length > 0):
            raise CoDiError(f"length is {self.length}: give seconds above 0, or leave it out for all that fits")

    @property
    def end(self) -> float:
        """Where it ends, in seconds; infinite without a length."""
        return math.inf if self.length is None else self.start + self.length

    def within(self, outer: Span) -> Span:
        """This span of a source that is itself only the span `outer` of a file."""
        length = min(self.end, math.inf if outer.length is None else outer.length) - self.start
        if length <= 0:
            raise CoDiError(f"start {self.start:g} s lies behind the end of the part, which is {outer.length:g} s long")
        return Span(outer.start + self.start, None if math.isinf(length) else length)


def shown_at(times: Tensor, moments: Tensor) -> Tensor:
    """Index of the frame that is shown at each moment: the last that begins no later, or the first. times (F,), moments (K,), ascending."""
    return (torch.searchsorted(times, moments + TIE, right=True) - 1).clamp(min=0)


def moments_at_rate(rate: float, count: int, seconds: float) -> Tensor:
    """The middles of the frames that a model of `rate` frames a second makes, at most `count`, within `seconds`: (K,), K >= 1."""
    moments = (torch.arange(count, dtype=torch.float64) + 0.5) / rate
    return moments[: max(1, int((moments < seconds - TIE).sum()))]


def moments_spread(count: int, seconds: float) -> Tensor:
    """The middles of `count` equal parts of a span: (count,)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (seconds / count)


def frames_at_rate(video: Video, rate: float, count: int) -> Tensor:
    """At most `count` frames at `rate` frames a second, each the one that is shown in the middle of its time: (K, 3, H, W), K >= 1."""
    return video.frames[shown_at(video.times, moments_at_rate(rate, count, video.seconds))]


def frames_spread(video: Video, count: int) -> Tensor:
    """At most `count` frames that are shown in the middles of equal parts of the time, each once: (K, 3, H, W), K >= 1."""
    return video.frames[shown_at(video.times, moments_spread(count, video.seconds)).unique()]


def partly(what: str, span: Span, taken: float, total: float) -> str | None:
    """One line where less than is wanted of a source fits: `taken` seconds of one that is `total` seconds long. Otherwise None."""
    if taken >= min(span.end, total) - span.start - 0.05:
        return None
    return f"{what}: {span.start:.2f} to {span.start + taken:.2f} s of {total:.2f} s are taken; set start to take another part"

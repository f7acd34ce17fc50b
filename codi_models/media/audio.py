"""Audio from files, by time: decoded block by block, mixed to one channel and resampled as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CoDiError
from .container import GAP, KINDS, Source, Track, name_of, opened
from .resampling import SAMPLE_RATES, Resampler
from .values import Audio, Progress, Span

WHOLE = Span()
PREROLL = 0.2  # seconds before the start from which codecs are decoded: their first block is not right
_SCALES = {"u1": (128, 128), "i2": (0, 32768), "i4": (0, 2147483648), "f4": (0, 1), "f8": (0, 1)}
"""Of kinds of samples: the value of silence, and the full amplitude."""


def read_audio(source: Source, *, rate: int | None = None, span: Span = WHOLE, progress: Progress = lambda _: None) -> Audio:
    """Audio of a span of a file, channels averaged.

    rate: samples a second of the result; without it, those of the file's first block. Blocks of another rate or number of channels are
    followed where they come. Where the audio begins later than the file, and where packets are missing, there is silence.
    Memory: what is kept and a few blocks. Raises CoDiError where the file has no audio, is damaged or exceeds a limit (`Limits`), and
    where the span lies behind its end."""
    with opened(source, "audio") as track:
        name, limits = name_of(source), track.limits
        told = track.told
        if told is not None:
            limits.check("seconds", min(span.end, told) - span.start, name)
        kept: _Kept | None = None
        for block, block_rate in _cut(track, span):
            if kept is None:
                kept = _Kept(rate or block_rate, min(span.end - span.start, told or 0.0))
            kept.add(block, block_rate)
            limits.check("seconds", kept.seconds, name)
            limits.check("samples", kept.seconds * kept.rate, name)
            if told:
                progress(min(1.0, kept.seconds / max(0.01, min(span.end, told) - span.start)))
        if kept is None:
            at = f" at {span.start:g} s" if span.start else ""
            raise CoDiError(f"{name} holds no audio{at}: its audio stream is empty or ends before. Give {KINDS['audio']}")
        return Audio(kept.whole(), kept.rate)


class _Kept:
    """Samples at one rate, in one piece of memory."""

    def __init__(self, rate: int, seconds: float) -> None:
        self.rate, self.seconds = rate, 0.0
        self._samples, self._count = torch.empty(int((seconds + 0.1) * rate)), 0
        self._resampler: Resampler | None = None

    def add(self, block: Tensor, rate: int) -> None:
        if self._resampler is None or self._resampler.rate != rate:
            self._finish()
            self._resampler = Resampler(rate, self.rate)
        self.seconds += len(block) / rate
        self._put(self._resampler.push(block))

    def whole(self) -> Tensor:
        self._finish()
        samples = self._samples[: self._count]
        return samples if len(samples) > 0.9 * len(self._samples) else samples.clone()

    def _finish(self) -> None:
        if self._resampler is not None:
            self._put(self._resampler.flush())

    def _put(self, samples: Tensor) -> None:
        end = self._count + len(samples)
        if end > len(self._samples):
            self._samples = torch.cat([self._samples[: self._count], torch.empty(max(end, self._count * 3 // 2) - self._count)])
        self._samples[self._count : end] = samples
        self._count = end


def _cut(track: Track, span: Span) -> Iterator[tuple[Tensor, int]]:
    """Blocks (n,) of the span and their rates, without gaps."""
    clock: float | None = None  # where the next block belongs
    for time, block, rate in _blocks(track, span.start):
        begins = time if clock is None or time is not None and time > clock + GAP else clock
        before = span.start if clock is None else clock
        if begins is None:
            begins = before
        if begins >= span.end:
            return
        if begins > before:
            yield from _silence(begins - before, rate)
        first = max(0, round((span.start - begins) * rate))
        clock = begins + len(block) / rate
        if clock > span.end:
            block = block[: max(0, round((span.end - begins) * rate))]
        if len(block) > first:
            yield block[first:], rate
        if clock >= span.end:
            return


def _silence(seconds: float, rate: int) -> Iterator[tuple[Tensor, int]]:
    left = round(seconds * rate)
    while left > 0:
        yield torch.zeros(min(left, rate)), rate
        left -= rate


def _blocks(track: Track, start: float) -> Iterator[tuple[float | None, Tensor, int]]:
    """Time, where it is known, samples (n,) of one channel, and rate of each decoded block, from a little before `start`."""
    name = name_of(track.source)
    if start > PREROLL:
        track.seek(start - PREROLL)
    for frame in track.decoded():
        rate = int(frame.sample_rate)
        if not frame.samples:
            continue
        if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
            raise CoDiError(f"{name}: the audio's sample rate is {rate} Hz; it takes {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz")
        time = None if frame.pts is None else float(frame.pts * frame.time_base) - track.origin
        yield time, torch.from_numpy(_mono(frame, name)), rate


def _mono(frame: Any, name: str) -> np.ndarray:
    values = frame.to_ndarray()  # (channels, n), or (1, n * channels)
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    silence, full = _SCALES[values.dtype.str[1:]]
    mono = (values.mean(axis=0, dtype=np.float32) - silence) / full
    if not np.isfinite(mono).all():
        raise CoDiError(f"{name} holds NaN or infinite samples; it takes values in -1..1. Look at the program that made it")
    return np.ascontiguousarray(mono, dtype=np.float32)

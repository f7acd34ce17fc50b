"""Audio to another sample rate, whole or as it comes."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from ..errors import CoDiError

SAMPLE_RATES = (1000, 768000)
"""Lowest and highest sample rate that is taken for audio, in Hz."""

_BLOCK = 1 << 18  # samples that are resampled at once


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Waveform (..., N) from `rate` to `target` Hz by windowed sinc interpolation, as torchaudio does by default.

    Raises CoDiError for a rate outside SAMPLE_RATES. A ratio of large numbers is replaced by the nearest with a denominator
    up to 1000 (a pitch error below one in a million), since the filter grows with it.
    """
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise CoDiError(f"the audio's sample rate is {rate} Hz; it takes {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz")
    if rate == target:
        return waveform
    from torchaudio.functional import resample as windowed_sinc

    ratio = Fraction(int(target), int(rate)).limit_denominator(1000)
    return windowed_sinc(waveform, ratio.denominator, ratio.numerator)


class Resampler:
    """`resample` of a waveform that comes in blocks, in bounded memory: the joined results are those of the whole."""

    def __init__(self, rate: int, target: int) -> None:
        self.rate, self.target = rate, target
        ratio = Fraction(int(target), int(rate)).limit_denominator(1000)
        self._old, self._new = ratio.denominator, ratio.numerator
        reach = 8 * max(1, self._old // self._new + 1) + self._old  # samples beyond which the filter is zero
        self._context = -(-reach // self._old) * self._old
        self._waiting: list[Tensor] = []
        self._held = 0
        self._before = torch.zeros(self._context if rate != target else 0)

    def push(self, block: Tensor) -> Tensor:
        """Samples (n,) in, those that are ready out."""
        if self.rate == self.target:
            return block
        self._waiting.append(block)
        self._held += len(block)
        return self._ready(last=False) if self._held >= _BLOCK + self._context else block[:0]

    def flush(self) -> Tensor:
        """What is left. Push nothing afterwards."""
        return self._ready(last=True) if self._held else torch.zeros(0)

    def _ready(self, *, last: bool) -> Tensor:
        waiting = torch.cat([self._before, *self._waiting])  # the first `_context` samples were given out already
        count = self._held if last else (self._held - self._context) // self._old * self._old
        made = resample(waiting, self.rate, self.target)
        first = self._context // self._old * self._new
        made = made[first : first - (-count * self._new // self._old)]
        self._before, rest = waiting[count : count + self._context], waiting[count + self._context :]
        self._waiting, self._held = [rest], len(rest)
        return made

"""Loudness of a sound over time and pitch, for pictures of it."""

from __future__ import annotations

import math

from torch import Tensor

from ...codi_models.autoencoders.mel import FLOOR, LogMel
from ...codi_models.config import MelConfig

_QUIETEST = math.log(FLOOR)


def loudness(wave: Tensor, mel: MelConfig) -> Tensor:
    """Wave (N,) in -1..1 at `mel.sample_rate` -> (time, bands), 0 silence to 1 as loud as sounds get."""
    frames = max(-(-len(wave) // mel.hop_length), mel.n_fft // 2 // mel.hop_length + 1)
    logmel = LogMel(mel)(wave[None].float().cpu(), frames=frames, normalize=False)[0, 0]  # (T, M)
    return ((logmel - _QUIETEST) / -_QUIETEST).clamp(0, 1)

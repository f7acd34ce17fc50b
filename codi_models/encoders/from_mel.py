"""What an audio autoencoder decodes to, as CLAP's front end has it: no waveform in between, and so no vocoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autoencoders.mel import mel_bank
from ..config import CLAPConfig, MelConfig
from .log_mel import decibels, mel_filters


def power_mel(logmel: Tensor, mel: MelConfig, clap: CLAPConfig) -> Tensor:
    """Log-mel (B, 1, T, M), natural logarithm of magnitudes, to CLAP's 10 log10 of mel power (B, frames, n_mels).

    A band's magnitude is spread over the frequencies that it was gathered from, so a peak comes out lower and broader than in the
    waveform's spectrum. Longer sounds than CLAP sees are cut, shorter ones repeated from their beginning, as waveforms are."""
    bank = mel_bank(mel, logmel.device)  # (M, bins)
    magnitude = (logmel[:, 0].float().exp() @ bank) / (bank.T @ bank.sum(1)).clamp(min=1e-8)  # (B, T, bins)
    power = _at_frequencies(magnitude.square(), mel.sample_rate / mel.n_fft, clap)
    frames = round(clap.clip_seconds * clap.sample_rate) // clap.hop_length + 1
    power = _at_times(power, mel.hop_length / mel.sample_rate, clap.hop_length / clap.sample_rate, frames)
    return decibels(power @ mel_filters(clap, power.device))


def _at_frequencies(power: Tensor, step: float, clap: CLAPConfig) -> Tensor:
    """Bins `step` Hz apart, (B, T, bins), to CLAP's, silent above the last."""
    place = torch.arange(clap.n_fft // 2 + 1, device=power.device) * (clap.sample_rate / clap.n_fft / step)
    low = place.floor().long().clamp(max=power.shape[-1] - 2)
    return torch.lerp(power[..., low], power[..., low + 1], (place - low).clamp(0, 1)) * (place <= power.shape[-1] - 1)


def _at_times(power: Tensor, step: float, wanted: float, frames: int) -> Tensor:
    """Frames `step` seconds apart, (B, T, bins), to `frames` that are `wanted` seconds apart."""
    if abs(step - wanted) > 1e-6:
        count = max(1, round(power.shape[1] * step / wanted))
        power = F.interpolate(power.transpose(1, 2), size=count, mode="linear").transpose(1, 2)
    return power[:, torch.arange(frames, device=power.device) % power.shape[1]]

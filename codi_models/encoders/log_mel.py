"""Decibel mel spectrogram of CLAP's front end."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CLAPConfig


@lru_cache(maxsize=8)
def _tables(config: CLAPConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Hann window (n_fft,) and Slaney mel filters (n_fft / 2 + 1, n_mels)."""
    from torchaudio.functional import melscale_fbanks

    with torch.inference_mode(False):
        filters = melscale_fbanks(
            config.n_fft // 2 + 1, config.f_min, config.f_max, config.n_mels, config.sample_rate, norm="slaney", mel_scale="slaney"
        )
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return torch.hann_window(config.n_fft, dtype=torch.float64).to(device, dtype), filters.to(device)


@lru_cache(maxsize=8)
def _fourier_basis(config: CLAPConfig) -> Tensor:
    """Windowed cosines, then sines, of all bins as filters of a convolution, float32 (2 * bins, 1, n_fft)."""
    with torch.inference_mode(False):
        n = config.n_fft
        sample = torch.arange(n, dtype=torch.float64)
        angle = 2 * math.pi / n * (torch.arange(n // 2 + 1)[:, None] * torch.arange(n) % n).double()
        window = 0.5 - 0.5 * torch.cos(2 * math.pi / n * sample)
        return (torch.cat([angle.cos(), -angle.sin()]) * window).float()[:, None]


class PowerMel(nn.Module):
    """Waveform (B, N) at the config's sample rate to 10 log10 of mel power (B, N // hop + 1, n_mels), at least -100 dB.

    Outside autocast, as half precision cannot hold the range of a power spectrum. Rounding shows in bands 80 dB below the rest: a
    few thousandths of a decibel where the Fourier transform runs in float32. So evaluation takes float64 on other devices, and on
    the CPU the convolution that the published network has, whose rounding is then the same.
    """

    def __init__(self, config: CLAPConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            by_convolution = waveform.device.type == "cpu" and not self.training
            real, imaginary = self._convolved(waveform) if by_convolution else self._transformed(waveform)
            power = (real.square() + imaginary.square()).transpose(1, 2)
            return 10 * torch.log10((power @ _tables(self.config, waveform.device)[1]).clamp(min=1e-10))

    def _convolved(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        half = self.config.n_fft // 2
        padded = F.pad(waveform.float()[:, None], (half, half), mode="reflect")
        real, imaginary = F.conv1d(padded, _fourier_basis(self.config), stride=self.config.hop_length).chunk(2, dim=1)
        return real, imaginary  # (B, bins, T) each

    def _transformed(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        window, _ = _tables(config, waveform.device)
        window = window.float() if self.training else window
        spectrum = torch.stft(
            waveform.to(window), config.n_fft, config.hop_length, window=window, center=True, pad_mode="reflect", return_complex=True
        )  # (B, bins, T)
        real, imaginary = torch.view_as_real(spectrum).float().unbind(-1)
        return real, imaginary

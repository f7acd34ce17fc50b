"""Decibel mel spectrogram of CLAP's front end."""

from __future__ import annotations

from functools import lru_cache

import torch
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


class PowerMel(nn.Module):
    """Waveform (B, N) at the config's sample rate to 10 log10 of mel power (B, N // hop + 1, n_mels), at least -100 dB.

    Outside autocast, as half precision cannot hold the range of a power spectrum. In evaluation the transform runs in float64,
    where the device has it: in float32 its rounding shows, at a few thousandths of a decibel, in bands 80 dB below the rest.
    """

    def __init__(self, config: CLAPConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, waveform: Tensor) -> Tensor:
        config = self.config
        with torch.autocast(waveform.device.type, enabled=False):
            window, filters = _tables(config, waveform.device)
            window = window.float() if self.training else window
            spectrum = torch.stft(
                waveform.to(window), config.n_fft, config.hop_length, window=window, center=True, pad_mode="reflect", return_complex=True
            )  # (B, bins, T)
            real, imaginary = torch.view_as_real(spectrum).float().unbind(-1)
            power = (real.square() + imaginary.square()).transpose(1, 2)
            return 10 * torch.log10((power @ filters).clamp(min=1e-10))

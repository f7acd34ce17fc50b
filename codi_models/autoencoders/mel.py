"""Waveform to log-mel spectrogram, as the sound autoencoder was trained on (AudioLDM's front end)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MelConfig, SpectrumVocoderConfig
from ..errors import CoDiError

FLOOR = 1e-5  # smallest magnitude before the logarithm; log(FLOOR) = -11.5 is silence


class LogMel(nn.Module):
    """Waveform (B, N) at config.sample_rate -> log-mel (B, 1, frames, n_mels), natural logarithm of magnitudes. No weights, always float32.

    Window and mel bank are no buffers of the module, so that casting or streaming a model leaves them exact."""

    def __init__(self, config: MelConfig, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        self.config = config

    def forward(self, waveform: Tensor, *, frames: int | None = None, normalize: bool | None = None) -> Tensor:
        """`frames` (default config.frames): the waveform is cropped or zero-padded at its end to frames * hop_length samples.

        `normalize` (default config.normalize) removes the mean and scales the peak to 0.5 first, as published; without it the
        waveform's own level is kept.
        Raises CoDiError for a waveform that is not (B, N) with N > 0, and for fewer frames than one window needs."""
        frames = self.config.frames if frames is None else frames
        wave = self.prepare(waveform, frames, self.config.normalize if normalize is None else normalize)
        with torch.autocast(waveform.device.type, enabled=False):
            mel = mel_bank(self.config, wave.device) @ self.magnitude(wave)  # (B, n_mels, frames + 1)
            return torch.log(mel.clamp(min=FLOOR))[:, :, :frames].transpose(1, 2)[:, None]  # (B, 1, frames, n_mels)

    def prepare(self, waveform: Tensor, frames: int, normalize: bool) -> Tensor:
        """Waveform (B, N) at exactly frames * hop_length samples in -1..1, float32. Raises CoDiError as `forward` does."""
        if waveform.ndim != 2 or waveform.shape[1] == 0:
            raise CoDiError(f"a waveform must be (batch, samples) with at least one sample, got {tuple(waveform.shape)}")
        cfg = self.config
        samples = frames * cfg.hop_length
        if samples <= cfg.n_fft // 2:
            raise CoDiError(f"{frames} mel frames are too few: at least {cfg.n_fft // 2 // cfg.hop_length + 1} are needed")
        wave = levelled(waveform) if normalize else waveform.float()
        return F.pad(wave, (0, samples - wave.shape[1])).clamp(-1, 1)  # (B, frames * hop); a negative pad crops

    def magnitude(self, wave: Tensor) -> Tensor:
        """Prepared waveform (B, N) -> magnitudes of its spectrum (B, n_fft // 2 + 1, N // hop_length + 1)."""
        cfg = self.config
        window = hann_window(cfg.n_fft, wave.device)
        return torch.stft(wave, cfg.n_fft, cfg.hop_length, window=window, pad_mode="reflect", return_complex=True).abs()


def levelled(waveform: Tensor) -> Tensor:
    """Waveform (B, N) without its mean, its peak scaled to 0.5, float32; silence stays silence."""
    wave = waveform.float()
    wave = wave - wave.mean(dim=1, keepdim=True)
    return wave / (wave.abs().amax(dim=1, keepdim=True) + 1e-8) * 0.5


@lru_cache(maxsize=8)
def hann_window(length: int, device: torch.device) -> Tensor:
    """Window (length,) on a device, float32; made once for each."""
    with torch.inference_mode(False):  # a table made while sampling could not be trained through later
        return torch.hann_window(length).to(device)


@lru_cache(maxsize=8)
def mel_bank(config: MelConfig | SpectrumVocoderConfig, device: torch.device) -> Tensor:
    """Slaney's mel scale, bands normalised to unit area: (n_mels, n_fft // 2 + 1) on a device, float32; made once for each."""
    from torchaudio.functional import melscale_fbanks

    bins = config.n_fft // 2 + 1
    with torch.inference_mode(False):
        bank = melscale_fbanks(bins, config.f_min, config.f_max, config.n_mels, config.sample_rate, norm="slaney", mel_scale="slaney")
        return bank.T.contiguous().to(device)

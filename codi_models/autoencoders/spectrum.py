"""A vocoder in two steps: a network sharpens log-mel to the magnitudes of a spectrum, Griffin-Lim finds phases that go with them.

A generator without excitation, such as HiFi-GAN, gives the same for the same mel frame, so a steady tone comes out periodic in the
hop; pitches between multiples of the frame rate have to be learnt one by one. Magnitudes have no phase to learn. The price is the
time of Griffin-Lim's iterations (Griffin and Lim 1984; the momentum is that of Perraudin et al. 2013).

What the network leaves out, because in training it never met those partials together, the mel still shows: the magnitudes are scaled to
go with it by one multiplicative update (Lee and Seung 2001).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SpectrumVocoderConfig, VocoderConfig
from ..errors import CoDiError
from .mel import hann_window, mel_bank
from .vocoder import Vocoder

_LEAST = 1e-6  # magnitude below which a band of the network's spectrum counts as this loud
_HIGHEST = 7.0  # log-magnitude; a full-scale sine has log(n_fft / 4) = 5.5 under a Hann window of 1024 samples


class SpectrumBlock(nn.Module):
    """Convolutions over time with a residual, (B, C, T) -> (B, C, T)."""

    def __init__(self, width: int, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.conv1 = operations.Conv1d(width, width, 3, padding=1, **factory)
        self.conv2 = operations.Conv1d(width, width, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(F.gelu(x))))


class SpectrumVocoder(nn.Module):
    """Log-mel (B, T, n_mels) or (B, 1, T, n_mels) to a waveform (B, hop_length * T) in -1..1 at config.sample_rate."""

    def __init__(
        self,
        config: SpectrumVocoderConfig,
        *,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        factory: dict[str, Any] = dict(dtype=dtype, device=device)
        self.conv_in = operations.Conv1d(config.n_mels, config.width, 3, padding=1, **factory)
        self.blocks = nn.ModuleList(SpectrumBlock(config.width, operations=operations, **factory) for _ in range(config.blocks))
        self.conv_out = operations.Conv1d(config.width, config.n_fft // 2 + 1, 1, **factory)

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        return self.config.hop_length

    def log_magnitudes(self, logmel: Tensor) -> Tensor:
        """Natural logarithm of a spectrum's magnitudes, (B, n_fft // 2 + 1, T). Raises CoDiError for other shapes than `forward`."""
        mel = logmel[:, 0] if logmel.ndim == 4 and logmel.shape[1] == 1 else logmel
        if mel.ndim != 3 or mel.shape[2] != self.config.n_mels:
            raise CoDiError(f"the vocoder takes log-mels (B, T, {self.config.n_mels}), got {tuple(logmel.shape)}")
        h = self.conv_in(mel.transpose(1, 2))  # (B, width, T)
        for block in self.blocks:
            h = block(h)
        return self.conv_out(F.gelu(h))

    def magnitudes(self, logmel: Tensor) -> Tensor:
        """Magnitudes (B, n_fft // 2 + 1, T) of a spectrum, float32, whose bands are about as loud as the mel says.

        Raises CoDiError as `log_magnitudes` does."""
        raw = self.log_magnitudes(logmel).float().clamp(max=_HIGHEST).exp()  # (B, bins, T)
        wanted = (logmel[:, 0] if logmel.ndim == 4 else logmel).float().clamp(max=_HIGHEST).transpose(1, 2).exp()
        bank = mel_bank(self.config, raw.device)
        with torch.autocast(raw.device.type, enabled=False):
            factor = bank.T @ (wanted / (bank @ raw + _LEAST)) / bank.sum(0).clamp(min=_LEAST)[:, None]  # (B, bins, T)
        scaled = (raw * factor).clamp(max=math.exp(_HIGHEST))
        return torch.where(bank.any(0)[:, None], scaled, raw)  # the lowest and highest bins are in no band

    def forward(self, logmel: Tensor) -> Tensor:
        """The waveform; float32 whatever the network's type, for phases need it. Raises CoDiError as `log_magnitudes` does."""
        from torchaudio.functional import griffinlim

        cfg = self.config
        magnitudes = self.magnitudes(logmel)  # (B, bins, T)
        magnitudes = torch.cat([magnitudes, magnitudes[..., -1:]], dim=-1)  # a centred spectrum of T hops has T + 1 frames
        length = cfg.hop_length * (magnitudes.shape[-1] - 1)
        window = hann_window(cfg.n_fft, magnitudes.device)
        # The start is not random: the same mel gives the same sound.
        return griffinlim(
            magnitudes, window, cfg.n_fft, cfg.hop_length, cfg.n_fft, power=1.0,
            n_iter=cfg.iterations, momentum=cfg.momentum, length=length, rand_init=False,
        ).clamp(-1, 1)  # fmt: skip


def build_vocoder(config: VocoderConfig | SpectrumVocoderConfig, **how: Any) -> Vocoder | SpectrumVocoder:
    """The vocoder that the configuration describes; `how` goes to its constructor."""
    return SpectrumVocoder(config, **how) if isinstance(config, SpectrumVocoderConfig) else Vocoder(config, **how)

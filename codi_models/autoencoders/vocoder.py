"""HiFi-GAN generator (Kong et al. 2020): log-mel spectrogram to waveform. Weight norm is folded into plain weights."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VocoderConfig
from ..errors import CoDiError

SLOPE = 0.1
FINAL_SLOPE = 0.01  # as published: the last activation keeps PyTorch's default slope


class ResBlock(nn.Module):
    """Dilated convolutions with residuals, (B, C, L) -> (B, C, L)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], *, operations: Any, **factory: Any) -> None:
        super().__init__()
        half = (kernel - 1) // 2
        self.convs1 = nn.ModuleList(
            operations.Conv1d(channels, channels, kernel, dilation=d, padding=half * d, **factory) for d in dilations
        )
        self.convs2 = nn.ModuleList(operations.Conv1d(channels, channels, kernel, padding=half, **factory) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class Vocoder(nn.Module):
    """Log-mel (B, T, n_mels) or (B, 1, T, n_mels) to a waveform (B, hop_length * T) in -1..1 at config.sample_rate."""

    def __init__(
        self,
        config: VocoderConfig,
        *,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        factory: dict[str, Any] = dict(dtype=dtype, device=device)
        width = config.initial_channels
        self.conv_pre = operations.Conv1d(config.n_mels, width, 7, padding=3, **factory)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
            padding = (kernel - rate) // 2
            self.ups.append(operations.ConvTranspose1d(width, width // 2, kernel, stride=rate, padding=padding, **factory))
            width //= 2
            for size, dilations in zip(config.resblock_kernels, _dilations(config), strict=True):
                self.resblocks.append(ResBlock(width, size, dilations, operations=operations, **factory))
        self.conv_post = operations.Conv1d(width, 1, 7, padding=3, **factory)

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.config.upsample_rates)

    def forward(self, logmel: Tensor, *, trim: bool = True) -> Tensor:
        """An odd difference of kernel and rate makes the published network return a few samples more (160 * T + 32);
        they are cut off at the end unless `trim` is off. Raises CoDiError for another shape."""
        mel = logmel[:, 0] if logmel.ndim == 4 and logmel.shape[1] == 1 else logmel
        if mel.ndim != 3 or mel.shape[2] != self.config.n_mels:
            raise CoDiError(f"the vocoder takes log-mels (B, T, {self.config.n_mels}), got {tuple(logmel.shape)}")
        per_level = len(self.config.resblock_kernels)
        h = self.conv_pre(mel.transpose(1, 2))  # (B, C, T)
        for i, up in enumerate(self.ups):
            h = up(F.leaky_relu(h, SLOPE))
            blocks = self.resblocks[i * per_level : (i + 1) * per_level]
            h = sum(block(h) for block in blocks) / per_level
        wave = torch.tanh(self.conv_post(F.leaky_relu(h, FINAL_SLOPE)))[:, 0]  # (B, samples)
        return wave[:, : self.hop_length * mel.shape[1]] if trim else wave


def _dilations(config: VocoderConfig) -> list[tuple[int, ...]]:
    """Dilations of every kernel."""
    given = config.resblock_dilations
    if any(isinstance(d, tuple) for d in given):
        return [d if isinstance(d, tuple) else (d,) for d in given]
    return [given] * len(config.resblock_kernels)  # type: ignore[list-item]

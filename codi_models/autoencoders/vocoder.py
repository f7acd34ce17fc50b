"""HiFi-GAN generator (Kong et al. 2020) of the transformers library: log-mel spectrogram to waveform. Weight norm is folded in."""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..config import VocoderConfig
from ..errors import CoDiError
from ..libraries import Borrowed, building


class Vocoder(Borrowed):
    """Log-mel (B, T, n_mels) or (B, 1, T, n_mels) to a waveform (B, hop_length * T) in -1..1 at config.sample_rate.

    Files have the published keys. `operations` are not used: the network is the library's."""

    def __init__(
        self,
        config: VocoderConfig,
        *,
        operations: Any = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        given = config.resblock_dilations
        each = [list(d) if isinstance(d, tuple) else [d] for d in given] if any(isinstance(d, tuple) for d in given) else None
        with building(self, dtype, device):
            self.network = transformers.SpeechT5HifiGan(
                transformers.SpeechT5HifiGanConfig(
                    model_in_dim=config.n_mels, sampling_rate=config.sample_rate, upsample_initial_channel=config.initial_channels,
                    upsample_rates=list(config.upsample_rates), upsample_kernel_sizes=list(config.upsample_kernels),
                    resblock_kernel_sizes=list(config.resblock_kernels), leaky_relu_slope=0.1, normalize_before=False,
                    resblock_dilation_sizes=each or [list(given)] * len(config.resblock_kernels),  # type: ignore[arg-type]
                )
            )  # fmt: skip
            for layer in self.network.modules():  # the library draws weights so small that a fresh generator is silent and learns nothing
                if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
                    layer.reset_parameters()

    def published_key(self, key: str) -> str | None:
        key = key.removeprefix("network.")
        return None if key in ("mean", "scale") else key.replace("upsampler.", "ups.")

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
        wave = self.network(mel.to(self.dtype))  # (B, samples)
        return wave[:, : self.hop_length * mel.shape[1]] if trim else wave

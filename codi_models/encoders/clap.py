"""CLAP's audio branch as the sound prompt encoder (paper section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CLAPConfig
from ..errors import CoDiError
from .htsat import HTSAT


class UnusedTransform(nn.Module):
    """A two-layer head that the published checkpoint stores and never evaluates."""

    def __init__(self, dim: int, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.sequential = nn.ModuleDict({"0": operations.Linear(dim, dim, **factory), "3": operations.Linear(dim, dim, **factory)})


class AudioTower(nn.Module):
    """HTSAT and its two-layer projection."""

    def __init__(self, config: CLAPConfig, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.audio_branch = HTSAT(config, operations=operations, **factory)
        self.audio_transform = UnusedTransform(config.projection_dim, operations=operations, **factory)
        self.audio_projection = nn.Sequential(
            operations.Linear(self.audio_branch.width, config.hidden_dim, **factory),
            nn.ReLU(),
            operations.Linear(config.hidden_dim, config.projection_dim, **factory),
        )

    def forward(self, waveform: Tensor) -> Tensor:  # (B, N) -> (B, D)
        return self.audio_projection(self.audio_branch(waveform))


class CLAPEncoder(nn.Module):
    """Sound prompts as unit vectors (B, 1, D) of the shared space.

    State-dict keys are those of the published checkpoint below `clap.`.
    """

    def __init__(self, config: CLAPConfig, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        self.config = config
        self.model = AudioTower(config, operations=operations, dtype=dtype, device=device)
        if operations is nn:  # injected operations leave their weights for a checkpoint to fill
            self.model.audio_branch.initialise()

    @property
    def clip_samples(self) -> int:
        """Samples of the one clip length that the network sees."""
        return round(self.config.clip_seconds * self.config.sample_rate)

    def encode_audio(self, waveform: Tensor) -> Tensor:
        """Mono waveform (B, clip_samples) at the config's sample rate, -1..1, to (B, 1, D).

        Any other length or rate: `encoders.preprocess.encode_audio`.
        """
        if waveform.ndim != 2 or waveform.shape[1] != self.clip_samples:
            raise CoDiError(
                f"CLAP got a waveform of shape {tuple(waveform.shape)}; it takes (batch, {self.clip_samples}): "
                f"{self.config.clip_seconds} s at {self.config.sample_rate} Hz (encoders.preprocess.encode_audio takes any length)"
            )
        return F.normalize(self.model(waveform), dim=-1)[:, None]

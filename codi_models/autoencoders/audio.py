"""Autoencoder of sound on log-mel spectrograms (paper section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import AutoencoderConfig, MelConfig
from ..errors import CoDiError
from .kl import KLAutoencoder, sample_posterior
from .mel import LogMel

OUTLIER, OUTLIER_LIMIT = 100.0, 10.0  # in diffusion space


class AudioAutoencoder(KLAutoencoder):
    """Log-mel (B, 1, T, M), or a waveform (B, N), to latents (B, C, T // f, M // f), and back to log-mel."""

    def __init__(
        self,
        config: AutoencoderConfig,
        mel: MelConfig,
        *,
        operations: Any = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(config, dtype=dtype, device=device)
        self.mel = LogMel(mel)

    def moments(self, sound: Tensor, *, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior. A waveform (B, N) becomes `frames` mel frames first (default mel.config.frames),
        computed in float32 and handed on in the dtype of the waveform.

        Frames beyond a multiple of f are dropped by the strided convolutions, as published. Raises CoDiError for other shapes."""
        logmel = self.mel(sound, frames=frames).to(sound.dtype) if sound.ndim == 2 else sound
        bands, channels = self.mel.config.n_mels, self.config.in_channels
        if logmel.ndim != 4 or logmel.shape[1] != channels or logmel.shape[3] != bands:
            raise CoDiError(f"audio must be a waveform (B, N) or a log-mel (B, {channels}, T, {bands}), got {tuple(sound.shape)}")
        if logmel.shape[2] < self.factor:
            raise CoDiError(f"a log-mel of {logmel.shape[2]} frames is too short: the autoencoder needs at least {self.factor}")
        return self._moments(logmel)

    def encode(self, sound: Tensor, *, frames: int | None = None, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Posterior mean, or one draw from the posterior with `sample` (as published). Errors as in `moments`."""
        mean, logvar = self.moments(sound, frames=frames)
        return sample_posterior(mean, logvar, generator) if sample else mean

    def decode(self, z: Tensor) -> Tensor:
        """Latents in latent space to log-mel (B, 1, T, M).

        A sample that diverged (above 100 in diffusion space) is clipped to 10, as published. Raises CoDiError for other shapes."""
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise CoDiError(f"audio latents must be (B, {self.config.latent_channels}, T, M), got {tuple(z.shape)}")
        limit = OUTLIER_LIMIT / self.config.scale
        diverged = z.abs().amax(dim=(1, 2, 3), keepdim=True) * self.config.scale > OUTLIER
        return self._decode(torch.where(diverged, z.clamp(-limit, limit), z))

"""Autoencoder of images and of video frames (paper section 3.2: the image autoencoder serves video frame by frame)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CoDiError
from .kl import KLAutoencoder, sample_posterior


class ImageAutoencoder(KLAutoencoder):
    """Pixels (B, 3, H, W) or (B, 3, F, H, W) in -1..1 to latents (B, 4, h, w) or (B, 4, F, h, w), and back.

    Frames do not see each other."""

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior. Raises CoDiError for other shapes and for sizes that are no multiple of `factor`."""
        self._check(pixels, self.config.in_channels, "pixels")
        height, width = pixels.shape[-2:]
        if height % self.factor or width % self.factor or not height or not width:
            raise CoDiError(
                f"a picture of {width} x {height} pixels cannot be encoded: width and height must be multiples of {self.factor}; "
                f"resize or crop it to {max(width // self.factor, 1) * self.factor} x {max(height // self.factor, 1) * self.factor}"
            )
        mean, logvar = self._moments(_fold(pixels))
        return _unfold(mean, pixels), _unfold(logvar, pixels)

    def encode(self, pixels: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Posterior mean, or one draw from the posterior with `sample` (as published). Errors as in `moments`."""
        mean, logvar = self.moments(pixels)
        return sample_posterior(mean, logvar, generator) if sample else mean

    def decode(self, z: Tensor) -> Tensor:
        """Latents in latent space to pixels, nominally -1..1, not clamped. Raises CoDiError for other shapes."""
        self._check(z, self.config.latent_channels, "latents")
        return _unfold(self._decode(_fold(z)), z)

    def _check(self, x: Tensor, channels: int, what: str) -> None:
        if x.ndim not in (4, 5) or x.shape[1] != channels:
            raise CoDiError(f"{what} must be (B, {channels}, H, W) for images or (B, {channels}, F, H, W) for video, got {tuple(x.shape)}")


def _fold(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)  # (B * F, C, H, W)


def _unfold(x: Tensor, like: Tensor) -> Tensor:
    if like.ndim == 4:
        return x
    return x.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)  # (B, C, F, H, W)

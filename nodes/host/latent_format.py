"""Latent format of CoDi's MODELs: accepts several channel counts, and previews the picture part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.latent_formats
import comfy.utils
import torch
from torch import Tensor

from .handle import CoDiHandle
from .preview import rgb_factors

_VISUAL = ("video", "image")


class _Channels(int):
    """A channel count that equals those of all outputs: the host must not "repair" an empty sound latent into a picture's."""

    accepted: frozenset[int]

    def __new__(cls, counts: Sequence[int]) -> _Channels:
        channels = super().__new__(cls, counts[0])
        channels.accepted = frozenset(counts)
        return channels

    def __eq__(self, other: object) -> bool:
        return other in self.accepted

    def __ne__(self, other: object) -> bool:
        return other not in self.accepted

    __hash__ = int.__hash__


class CoDiLatentFormat(comfy.latent_formats.LatentFormat):
    """One format for any set of outputs. `shapes()` gives the shapes of the parts being sampled."""

    latent_dimensions = 2

    def __init__(self, codi: CoDiHandle, outputs: Sequence[str], shapes: Callable[[], Any]) -> None:
        self._codi, self._shapes, self._visual = codi, shapes, any(m in _VISUAL for m in outputs)
        config = codi.config
        counts = {
            "video": config.vision_denoiser.in_channels,
            "image": config.vision_denoiser.in_channels,
            "text": config.text_autoencoder.latent_dim,
            "audio": config.audio_denoiser.in_channels,
        }
        self.latent_channels = _Channels([counts[m] for m in outputs])
        self.latent_rgb_factors_reshape = self._picture

    @property
    def latent_rgb_factors(self) -> list[list[float]] | None:
        """(latent channel, rgb), from diffusion space to -1..1; read by the host only when previews are on."""
        return rgb_factors(self._codi)[0] if self._visual else None

    @property
    def latent_rgb_factors_bias(self) -> list[float] | None:
        """(rgb,)"""
        return rgb_factors(self._codi)[1] if self._visual else None

    def _picture(self, x0: Tensor) -> Tensor:
        """The part to preview; hosts before 0.30 hand over the packed tensor. Grey where no part is a picture."""
        shapes = self._shapes()
        if x0.ndim == 3 and x0.shape[1] == 1 and shapes:
            x0 = comfy.utils.unpack_latents(x0, shapes)[0]
        channels = self._codi.config.vision_denoiser.in_channels
        if x0.ndim < 4 or x0.shape[1] != channels:
            return torch.zeros(1, channels, 8, 8, dtype=x0.dtype, device=x0.device)
        return x0

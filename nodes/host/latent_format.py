"""Latent format of CoDi's MODELs: accepts several channel counts, and hands the host's previewer a picture of all streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.latent_formats
import comfy.utils
import torch
from torch import Tensor

from .handle import CoDiHandle
from .parts import modalities_of
from .streams import Streams


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
    """One format for any set of outputs.

    `model()` is the LatentModel whose format this is, or None once it is gone: it is not kept alive from here, for the host collects
    all garbage before every run while a model waits for that. Its `latent_shapes` are those of the parts being sampled, its `seen` the
    parts as the sampler has them, in diffusion space.
    The host's previewer maps latents to colours linearly: it is given the drawn picture and the map that changes nothing."""

    latent_dimensions = 2

    def __init__(self, codi: CoDiHandle, outputs: Sequence[str], model: Callable[[], Any]) -> None:
        self._codi, self._outputs, self._model = codi, tuple(outputs), model
        self._streams = Streams(codi)
        config = codi.config
        counts = {
            "video": config.vision_denoiser.in_channels,
            "image": config.vision_denoiser.in_channels,
            "text": config.text_autoencoder.latent_dim,
            "audio": config.audio_denoiser.in_channels,
        }
        self.latent_channels = _Channels([counts[m] for m in outputs])

    @property
    def latent_rgb_factors(self) -> list[list[float]]:
        """Read by the host before sampling, and only when previews are on."""
        self._streams.prepare(self._outputs)
        return torch.eye(3).tolist()

    @property
    def latent_rgb_factors_bias(self) -> list[float]:
        """(rgb,)"""
        return [0.0, 0.0, 0.0]

    def latent_rgb_factors_reshape(self, x0: Tensor) -> Tensor:
        """(1, 3, H, W) in -1..1; of what the previewer was given where the sampler's parts are not known (other callbacks)."""
        model = self._model()
        parts, shapes = (model.seen, model.latent_shapes) if model is not None else (None, None)
        if parts is None:
            packed = x0.ndim == 3 and x0.shape[1] == 1 and shapes
            parts = comfy.utils.unpack_latents(x0, shapes) if packed else [x0]
        names = modalities_of([p.shape for p in parts], self._codi.config)
        return self._streams.draw(dict(zip(names, parts, strict=True)))

"""Linear maps from latents to colours and to loudness, fitted to a model's own autoencoders, for previews while sampling."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import comfy.latent_formats
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...codi_models.autoencoders.mel import FLOOR
from ...codi_models.bounce_world.render import render_audio, render_image
from ...codi_models.bounce_world.world import SAMPLE_RATE, sample_nuisance, sample_scenes
from ...codi_models.config import CoDiConfig
from .handle import CoDiHandle

LinearMap = tuple[Tensor, Tensor]
"""(latent channels, values) and a bias (values,)."""
_fitted: weakref.WeakKeyDictionary[CoDiHandle, dict[str, LinearMap]] = weakref.WeakKeyDictionary()


def colour_map(codi: CoDiHandle) -> LinearMap:
    """Picture latents in diffusion space to red, green, blue in -1..1; fitted once per opened model."""
    if codi.config.image_autoencoder == CoDiConfig.official().image_autoencoder:
        known = comfy.latent_formats.SD15()  # the published picture autoencoder is Stable Diffusion's
        return torch.tensor(known.latent_rgb_factors), torch.tensor(known.latent_rgb_factors_bias or [0.0, 0.0, 0.0])
    return _once(codi, "colour", _fit_colour)


def loudness_map(codi: CoDiHandle) -> LinearMap:
    """Sound latents in diffusion space to loudness, one value: 0 silence, 1 loud; fitted once per opened model."""
    return _once(codi, "loudness", _fit_loudness)


def apply(values: LinearMap, z: Tensor) -> Tensor:
    """Latent (C, ...) -> (..., values), float32 on the CPU."""
    return z.detach().float().cpu().movedim(0, -1) @ values[0] + values[1]


def _once(codi: CoDiHandle, name: str, fit: Callable[[CoDiHandle], LinearMap]) -> LinearMap:
    known = _fitted.setdefault(codi, {})
    if name not in known:
        known[name] = fit(codi)
    return known[name]


@torch.inference_mode()
def _fit_colour(codi: CoDiHandle, count: int = 48) -> LinearMap:
    """Over pictures of Bounce World: each latent element against the mean colour of its pixels."""
    generator = torch.Generator().manual_seed(0)
    scenes = sample_scenes(count, generator=generator)
    pixels = render_image(scenes, sample_nuisance(count, generator=generator)) * 2 - 1  # (n, 3, 64, 64)
    autoencoder = codi.model.image_autoencoder
    z = autoencoder.encode(pixels.to(codi.model.place("image_autoencoder"))).float().cpu() * codi.config.image_autoencoder.scale
    return _least_squares(z, interpolate(pixels, size=z.shape[-2:], mode="area"))


@torch.inference_mode()
def _fit_loudness(codi: CoDiHandle, count: int = 12) -> LinearMap:
    """Over sounds of Bounce World: each latent element against the mean of its part of the log-mel spectrogram."""
    from torchaudio.functional import resample

    generator = torch.Generator().manual_seed(0)
    scenes = sample_scenes(count, generator=generator)
    sound = resample(render_audio(scenes, sample_nuisance(count, generator=generator)), SAMPLE_RATE, codi.config.mel.sample_rate)
    autoencoder = codi.model.audio_autoencoder
    logmel = autoencoder.mel(sound.to(codi.model.place("audio_autoencoder")), frames=128)  # (n, 1, 128, M)
    z = autoencoder.encode(logmel).float().cpu() * codi.config.audio_autoencoder.scale
    silence = float(torch.tensor(FLOOR).log())
    loudness = ((logmel.float().cpu() - silence) / -silence).clamp(0, 1)
    return _least_squares(z, interpolate(loudness, size=z.shape[-2:], mode="area"))


def _least_squares(z: Tensor, wanted: Tensor) -> LinearMap:
    """z (n, C, h, w) against wanted (n, values, h, w)."""
    rows = z.movedim(1, -1).reshape(-1, z.shape[1])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)  # (n h w, C + 1)
    solution = torch.linalg.lstsq(rows.double(), wanted.movedim(1, -1).reshape(len(rows), -1).double()).solution.float()
    return solution[:-1], solution[-1]

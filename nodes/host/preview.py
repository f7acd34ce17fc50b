"""Linear map from picture latents to colours, fitted to a model's own autoencoder, for previews while sampling."""

from __future__ import annotations

import weakref

import comfy.latent_formats
import torch
from torch.nn.functional import interpolate

from ...codi_models.config import CoDiConfig
from ...codi_models.worlds.bounce import sample_nuisance, sample_scenes
from ...codi_models.worlds.render import render_image
from .handle import CoDiHandle

Factors = tuple[list[list[float]], list[float]]
_fitted: weakref.WeakKeyDictionary[CoDiHandle, Factors] = weakref.WeakKeyDictionary()


def rgb_factors(codi: CoDiHandle) -> Factors:
    """Factors (latent channel, rgb) and bias (rgb,), from diffusion space to -1..1; fitted once per opened model."""
    if codi.config.picture_autoencoder == CoDiConfig.official().picture_autoencoder:
        known = comfy.latent_formats.SD15()  # the published picture autoencoder is Stable Diffusion's
        return known.latent_rgb_factors, known.latent_rgb_factors_bias or [0.0, 0.0, 0.0]
    if codi not in _fitted:
        _fitted[codi] = _fit(codi)
    return _fitted[codi]


@torch.inference_mode()
def _fit(codi: CoDiHandle, count: int = 48) -> Factors:
    """Least squares over pictures of Bounce World: each latent element against the mean colour of its pixels."""
    generator = torch.Generator().manual_seed(0)
    scenes = sample_scenes(count, generator=generator, held_out="include")
    pixels = render_image(scenes, sample_nuisance(count, generator=generator)) * 2 - 1  # (n, 3, 64, 64)
    autoencoder = codi.model.picture_autoencoder
    z = (
        autoencoder.encode(pixels.to(codi.model.place("picture_autoencoder"))).float().cpu() * codi.config.picture_autoencoder.scale
    )  # (n, C, h, w)
    colours = interpolate(pixels, size=z.shape[-2:], mode="area")
    rows = z.movedim(1, -1).reshape(-1, z.shape[1])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)  # (n h w, C + 1)
    solution = torch.linalg.lstsq(rows.double(), colours.movedim(1, -1).reshape(-1, 3).double()).solution.float()
    return solution[:-1].tolist(), solution[-1].tolist()

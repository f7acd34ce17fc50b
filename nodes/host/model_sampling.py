"""Noise levels of CoDi's MODELs under the host's samplers: `diffusion.NoiseSchedule` as the host's `model_sampling`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_base
import comfy.model_sampling
import torch
from torch import Tensor

from ...codi_models.config import DiffusionConfig
from ...codi_models.diffusion import NoiseSchedule

Scale = Callable[[Tensor], "float | Tensor"]
"""The factor s of the modalities of a latent, see `modalities.snr_scale`: a number, or a tensor that multiplies a packed latent."""


def model_type(config: DiffusionConfig) -> comfy.model_base.ModelType:
    """What the denoisers predict, as the host calls it."""
    return comfy.model_base.ModelType.EPS if config.prediction == "eps" else comfy.model_base.ModelType.V_PREDICTION


def model_sampling(config: DiffusionConfig, stock: Any, scale: Scale) -> Any:
    """`stock`, the host's own for the published schedule; for others with their noise levels, and with shifts of the log SNR our own."""
    schedule = NoiseSchedule(config)
    sampling = ShiftedSampling(schedule, scale) if config.shifts else stock
    if config.schedule != "linear":
        sampling.set_sigmas(schedule.sigmas)
    return sampling


class ShiftedSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """x = s x0 + sigma n with a factor s for each modality."""

    def __init__(self, schedule: NoiseSchedule, scale: Scale) -> None:
        super().__init__()
        self.schedule, self.scale = schedule, scale
        self.set_sigmas(schedule.sigmas)

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """What the networks see."""
        return self.schedule.network_input(noise, _like(sigma, noise), self.scale(noise))

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """Expected s x0."""
        return self.schedule.denoised(model_output, model_input, _like(sigma, model_output), self.scale(model_input))

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        """What a run starts from."""
        sigma, scale = _like(sigma, noise), self.scale(noise)
        return noise * ((sigma**2 + scale**2) ** 0.5 if max_denoise else sigma) + latent_image


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.view(()) if sigma.numel() == 1 else sigma.view(-1, *[1] * (x.ndim - 1))


def own_timesteps(schedule: NoiseSchedule, scale: float, timesteps: Tensor, options: dict[str, Any] | None) -> Tensor:
    """Timesteps (B,) that a network with the factor s sees; the host's own where that is 1."""
    sigmas = (options or {}).get("sigmas")
    if scale == 1 or not isinstance(sigmas, torch.Tensor):
        return timesteps
    return schedule.timestep(sigmas.flatten()[:1], scale).to(timesteps.device).expand(len(timesteps))

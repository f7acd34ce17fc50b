"""Noise schedules and prediction types, against formulas written anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from codi.codi_models.config import PREDICTIONS, SCHEDULES, DiffusionConfig
from codi.codi_models.diffusion import NoiseSchedule, alphas_cumprod


def bars(schedule: str) -> list[float]:
    """alpha bar of every timestep by its definition, in Python numbers."""
    if schedule == "cosine":
        return [math.cos((i + 1) / 1000 * math.pi / 2) ** 2 for i in range(1000)]
    left, levels = 1.0, []
    for i in range(1000):
        left *= 1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2
        levels.append(left)
    if schedule == "linear":
        return levels
    roots = [level**0.5 for level in levels]
    return [((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for root in roots]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: str) -> None:
    ours, expected = alphas_cumprod(schedule), torch.tensor(bars(schedule), dtype=torch.float64)
    assert ours.shape == (1000,) and ours.dtype == torch.float64 and bool((ours.diff() < 0).all())
    torch.testing.assert_close(ours[:-1], expected[:-1], rtol=1e-9, atol=1e-12)
    sigmas = NoiseSchedule(DiffusionConfig(schedule=schedule)).sigmas
    assert sigmas.dtype == torch.float32 and bool(torch.isfinite(sigmas).all()) and bool((sigmas.diff() > 0).all())
    torch.testing.assert_close(sigmas[:-1], ((1 - expected) / expected).sqrt().float()[:-1], rtol=1e-5, atol=0)
    signal = float(ours[-1])
    if schedule == "linear":
        assert signal == pytest.approx(0.0046600, abs=1e-7) and float(ours[0]) == pytest.approx(0.99915, abs=1e-9)
        assert float(sigmas[0]) == pytest.approx(0.0291675, abs=1e-6) and float(sigmas[-1]) == pytest.approx(14.6146, abs=1e-3)
    else:
        assert 0 < signal / (1 - signal) < 1e-7, "nothing is left at the last timestep"


def test_zero_terminal_snr_changes_the_end_and_not_the_beginning() -> None:
    plain, rescaled = alphas_cumprod("linear"), alphas_cumprod("linear_zsnr")
    assert float(rescaled[0]) == pytest.approx(float(plain[0]), rel=1e-12)
    ratio = rescaled / plain
    assert bool((ratio.diff() < 0).all()) and float(ratio[100]) > 0.98
    assert float(alphas_cumprod("cosine")[499]) == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1.0, 0.4, 2.5])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_a_network_is_trained_to_predict_gives_the_clean_latent_back(prediction: str, schedule: str, scale: float) -> None:
    levels = NoiseSchedule(DiffusionConfig(schedule=schedule, prediction=prediction))
    x0, noise = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    for timestep in (0, 17.5, 400, 900, 998):
        own = levels.sigma(timestep).double()
        seen, target = levels.noised(x0, noise, own), levels.target(x0, noise, own)
        alpha = 1 / (1 + own**2)
        torch.testing.assert_close(seen, alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise)
        torch.testing.assert_close(target, noise if prediction == "eps" else alpha.sqrt() * noise - (1 - alpha).sqrt() * x0)
        sigma = own * scale
        x = scale * x0 + sigma * noise
        torch.testing.assert_close(levels.network_input(x, sigma, scale), seen)
        torch.testing.assert_close(levels.denoised(target, x, sigma, scale), scale * x0, rtol=1e-9, atol=1e-9)


def test_v_knows_the_clean_latent_where_no_signal_is_left() -> None:
    levels = NoiseSchedule(DiffusionConfig(schedule="linear_zsnr", prediction="v"))
    x0, noise = torch.randn(2, 4, 100, generator=torch.Generator().manual_seed(1)).unbind()
    sigma = levels.sigmas[-1]
    torch.testing.assert_close(levels.noised(x0, noise, sigma), noise, rtol=0, atol=2e-3)
    torch.testing.assert_close(levels.denoised(levels.target(x0, noise, sigma), x0 + sigma * noise, sigma), x0, rtol=0, atol=2e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timesteps_and_noise_levels_are_inverse(schedule: str) -> None:
    levels = NoiseSchedule(DiffusionConfig(schedule=schedule))
    steps = torch.arange(1000, dtype=torch.float32)
    assert torch.equal(levels.timestep(levels.sigma(steps)), steps) and torch.equal(levels.timestep(levels.sigmas), steps)
    torch.testing.assert_close(levels.sigma(steps), levels.sigmas, rtol=1e-6, atol=0)
    between = torch.tensor([0.25, 10.4, 500.5, 731.7, 998.9])
    for scale in (0.3, 3.0):
        torch.testing.assert_close(levels.timestep(levels.sigma(between) * scale, scale), between, rtol=0, atol=2e-2)
        expected = np.interp(np.log([0.5, 2.0, 7.0]) - math.log(scale), levels.sigmas.double().log().numpy(), np.arange(1000))
        torch.testing.assert_close(levels.timestep(torch.tensor([0.5, 2.0, 7.0]), scale), torch.tensor(expected).float(), rtol=0, atol=1e-2)
    sigma = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 14
    nearest = (sigma.log()[:, None] - levels.sigmas.log()).abs().argmin(dim=1).float()  # as the host's table
    assert torch.equal(levels.timestep(sigma), nearest)
    for scale in (1.0, 2.0):
        assert float(levels.timestep(0.0, scale)) == 0 and float(levels.timestep(1e9, scale)) == 999
    torch.testing.assert_close(levels.sigma(torch.tensor([-5.0, 2000.0])), levels.sigmas[[0, -1]])

"""Schedulers and samplers, against formulas written anew and on denoisers whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from codi.codi_models.alignment import Alignment
from codi.codi_models.config import PREDICTIONS, SCHEDULES, CoDiConfig, DiffusionConfig
from codi.codi_models.diffusion import (
    PUBLISHED,
    SAMPLERS,
    SCHEDULERS,
    STOCHASTIC,
    Denoise,
    NoiseSchedule,
    alphas_cumprod,
    ddim_timesteps,
    initial_noise,
    run_sigmas,
    sample,
)
from codi.codi_models.errors import CoDiError
from codi.codi_models.guidance import Guidance, GuidedDenoiser
from codi.codi_models.modalities import snr_scale
from small import small_config
from tiny_joint import SHAPES as LATENTS
from tiny_joint import prompt, tiny_joint
from torch import Tensor

SHAPES = {"image": (4, 8, 8), "text": (64,)}
LINEAR = NoiseSchedule(DiffusionConfig())
DETERMINISTIC = [name for name in SAMPLERS if name not in STOCHASTIC]
MEAN, STD = 1.0, 0.5


def normal_data(x: dict[str, Tensor], sigma: float, scales: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """The exact s x0 to expect of independent data of this mean and standard deviation."""
    made = {}
    for m, part in x.items():
        s = (scales or {}).get(m, 1.0)
        made[m] = s * MEAN + (s * STD) ** 2 / ((s * STD) ** 2 + sigma**2) * (part - s * MEAN)
    return made


def by_definition(scheduler: str, sigmas: np.ndarray, steps: int) -> list[float]:
    """Noise levels of the host's schedulers, written anew."""
    at = lambda t: float(np.exp(np.interp(t, np.arange(1000), np.log(sigmas))))  # noqa: E731
    if scheduler == "sgm_uniform":
        return [at(999 - 999 * i / steps) for i in range(steps)] + [0.0]
    if scheduler == "normal":
        return [at(999 - 999 * i / max(1, steps - 1)) for i in range(steps)] + [0.0]
    if scheduler == "simple":
        return [float(sigmas[999 - int(i * 1000 / steps)]) for i in range(steps)] + [0.0]
    if scheduler == "karras":
        low, high = sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7)
        return [float((high + i / max(1, steps - 1) * (low - high)) ** 7) for i in range(steps)] + [0.0]
    levels, timestep = [], 1
    while timestep < 1000:
        levels.append(float(sigmas[timestep]))
        timestep += 1000 // steps
    return [*levels[::-1], float(sigmas[0]) if scheduler == "ddim_published" else 0.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler: str, schedule: str) -> None:
    levels = NoiseSchedule(DiffusionConfig(schedule=schedule))
    for steps in (1, 2, 4, 7, 30, 50, 200):
        ours = run_sigmas(levels, scheduler, steps)
        expected = by_definition(scheduler, levels.sigmas.double().numpy(), steps)
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=1e-7, err_msg=f"{steps} steps")
        assert all(a > b for a, b in zip(ours, ours[1:], strict=False))
        assert len(ours) == steps + 1 or "ddim" in scheduler


def test_the_published_timesteps() -> None:
    assert (
        ddim_timesteps(50) == list(range(1, 1000, 20)) and ddim_timesteps(30) == list(range(1, 1000, 33)) and len(ddim_timesteps(30)) == 31
    )
    assert ddim_timesteps(1) == [1] and ddim_timesteps(500) == list(range(1, 1000, 2))


@pytest.mark.parametrize("steps", [1, 4, 30])
def test_ddim_published_is_ddim_in_the_variables_of_its_paper(steps: int) -> None:
    """A network that is not linear, run by the published loop over alpha bar (Song et al. 2021, equation 12, eta 0)."""

    def network(x: Tensor, timestep: int) -> Tensor:
        return torch.tanh(x * 0.7 + timestep / 1000) - 0.1 * x

    def denoise(x: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        timestep = int(LINEAR.timestep(sigma))
        return {m: LINEAR.denoised(network(LINEAR.network_input(part, sigma), timestep), part, sigma) for m, part in x.items()}

    noise = initial_noise(SHAPES, [3, 4])
    levels, timesteps = alphas_cumprod("linear").tolist(), list(range(1, 1000, 1000 // steps))
    expected = {m: x.double() for m, x in noise.items()}
    for i in reversed(range(len(timesteps))):
        level, following = levels[timesteps[i]], levels[timesteps[i - 1] if i else 0]
        for m, x in expected.items():
            eps = network(x, timesteps[i])
            clean = (x - (1 - level) ** 0.5 * eps) / level**0.5
            expected[m] = following**0.5 * clean + (1 - following) ** 0.5 * eps
    for sampler in ("ddim", "euler"):
        made = sample(denoise, noise, run_sigmas(LINEAR, PUBLISHED, steps), sampler=sampler)
        for m, x in expected.items():
            torch.testing.assert_close(made[m], x.float(), rtol=1e-4, atol=1e-4)


def exact(start: Tensor, sigmas: list[float]) -> Tensor:
    """Where the probability flow takes x at the first noise level to at the last, for `normal_data`."""
    return MEAN + (start - MEAN) * ((STD**2 + sigmas[-1] ** 2) / (STD**2 + sigmas[0] ** 2)) ** 0.5


def test_orders_of_convergence() -> None:
    """Euler's error halves with twice the steps, that of the second-order multistep solver goes down to a quarter."""
    noise, errors = {"text": torch.randn(1, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}, {}
    for steps in (40, 80):
        sigmas = np.geomspace(10.0, 0.1, steps + 1).tolist()
        for sampler in DETERMINISTIC:
            made = sample(normal_data, noise, sigmas, sampler=sampler, unit_start=False)["text"]
            true = exact(noise["text"] * sigmas[0], sigmas) / (1 + sigmas[-1] ** 2) ** 0.5
            errors[sampler, steps] = float((made - true).abs().max())
    for sampler, low, high in (("euler", 1.8, 2.2), ("ddim", 1.8, 2.2), ("dpmpp_2m", 3.4, 4.6)):
        assert low < errors[sampler, 40] / errors[sampler, 80] < high, sampler
    assert set(DETERMINISTIC) == {"euler", "ddim", "dpmpp_2m"}, "an order for each"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_from_the_data(sampler: str, scheduler: str) -> None:
    seeds = list(range(24))
    sigmas = run_sigmas(LINEAR, scheduler, 100)
    made = sample(normal_data, initial_noise(SHAPES, seeds), sigmas, sampler=sampler, seeds=seeds)
    assert {m: tuple(x.shape) for m, x in made.items()} == {m: (24, *s) for m, s in SHAPES.items()}
    for x in made.values():
        assert abs(x.mean().item() - MEAN) < 0.06 and abs(x.std().item() - STD) < 0.06


def test_ancestral_steps_have_the_variance_of_their_noise_level() -> None:
    """Of data without spread, x after a step is the data with exactly that level's noise, of which new noise is all but sigma' / sigma."""
    seeds, sigmas, scales = list(range(60)), run_sigmas(LINEAR, "normal", 6), {"text": 0.5}
    seen: list[Tensor] = []

    def constant(x: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        return {m: torch.full_like(part, scales.get(m, 1.0) * MEAN) for m, part in x.items()}

    noise = initial_noise({"text": (400,)}, seeds)
    sample(constant, noise, sigmas, sampler="euler_ancestral", unit_start=False, seeds=seeds, scales=scales,
           callback=lambda done, steps, x: seen.append(x["text"] - 0.5 * MEAN))  # fmt: skip
    assert not seen[-1].any()
    before = noise["text"] * sigmas[0]
    for x, level, following in zip(seen[:-1], sigmas, sigmas[1:], strict=False):
        assert float(x.std()) == pytest.approx(following, rel=0.02) and abs(float(x.mean())) < 0.03 * following
        assert float((x * before).mean()) / (level * following) == pytest.approx(following / level, abs=0.03)
        before = x


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch_or_on_other_outputs(sampler: str) -> None:
    def run(shapes: dict[str, tuple[int, ...]], seeds: list[int]) -> dict[str, Tensor]:
        return sample(normal_data, initial_noise(shapes, seeds), run_sigmas(LINEAR, "normal", 6), sampler=sampler, seeds=seeds)

    both = run(SHAPES, [3, 4, 5])
    torch.testing.assert_close(run(SHAPES, [4])["image"], both["image"][1:2])
    torch.testing.assert_close(run({"text": SHAPES["text"]}, [3, 4, 5])["text"], both["text"])
    assert not torch.allclose(both["image"][0], both["image"][1])
    assert not torch.allclose(both["image"][0].flatten()[:64], both["text"][0])


SHIFTED = {"image": 1.5, "text": -2.0}
SCALES = {m: math.exp(shift / 2) for m, shift in SHIFTED.items()}


@pytest.mark.parametrize("unit_start", [True, False])
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_shifted_modalities_in_one_run_are_single_runs_at_their_own_noise_levels(sampler: str, unit_start: bool) -> None:
    noise, sigmas = initial_noise(SHAPES, [1, 2]), run_sigmas(LINEAR, "karras", 9)[:-1]
    clean = {"image": torch.randn(2, *SHAPES["image"], generator=torch.Generator().manual_seed(5))}
    for start in ({}, clean):
        together = sample(lambda x, sigma: normal_data(x, sigma, SCALES), noise, sigmas, sampler=sampler, scales=SCALES,
                          unit_start=unit_start, clean=start)  # fmt: skip
        for m, s in SCALES.items():
            own = [sigma / s for sigma in sigmas]
            alone = sample(normal_data, {m: noise[m]}, own, sampler=sampler, unit_start=unit_start, clean=start)
            torch.testing.assert_close(together[m], alone[m], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_shifts_of_a_joint_denoiser_without_alignment(sampler: str, prediction: str) -> None:
    """Every x in a joint run with shifts is s times that of a run of the modality alone, at sigma / s in the network's own scale."""
    shifts = {"image": 1.5, "text": -2.0, "audio": 0.7}
    diffusion = DiffusionConfig(prediction=prediction, shifts=shifts)
    config = CoDiConfig(**{**vars(small_config()), "diffusion": diffusion})
    outputs = ("video", *shifts)
    scales = {m: snr_scale(config, m) for m in outputs}
    assert scales == {m: pytest.approx(math.exp(shifts.get(m, 0.0) / 2)) for m in outputs}
    joint, schedule, context = tiny_joint(), NoiseSchedule(diffusion), prompt(1)
    noise, sigmas = initial_noise({m: LATENTS[m] for m in outputs}, [1, 2]), run_sigmas(schedule, "sgm_uniform", 4)
    guided = GuidedDenoiser(joint, schedule, context, context, dict.fromkeys(outputs, Guidance()), Alignment("off"), scales=scales)
    seen: list[dict[str, Tensor]] = []
    together = sample(guided, noise, sigmas, sampler=sampler, scales=scales, callback=lambda done, steps, x: seen.append(x))
    table = schedule.sigmas.double().log().numpy()
    for m in outputs:

        def alone(x: dict[str, Tensor], sigma: float, m: str = m) -> dict[str, Tensor]:
            timestep = np.interp(math.log(sigma), table, np.arange(1000))
            timestep = timestep if scales[m] != 1 else round(timestep)  # one scale, one table: the nearest, as the host's
            seen = x[m] / (sigma**2 + 1) ** 0.5
            made = joint.denoiser(m)(seen, torch.full((2,), timestep, dtype=torch.float32), context)
            return {m: x[m] - sigma * made if prediction == "eps" else _of_v(seen, made, sigma)}

        own, steps = [sigma / scales[m] for sigma in sigmas], []
        single = sample(alone, {m: noise[m]}, own, sampler=sampler, callback=lambda done, n, x, steps=steps: steps.append(x))
        near(together[m], single[m])
        for whole, part in zip(seen, steps, strict=True):
            near(whole[m], scales[m] * part[m])


def _of_v(seen: Tensor, v: Tensor, sigma: float) -> Tensor:
    """x0 = a z - b v of z = a x0 + b n (Salimans and Ho 2022)."""
    return (seen - sigma * v) / (1 + sigma**2) ** 0.5


def near(made: Tensor, expected: Tensor) -> None:
    assert (made - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_where_a_run_starts() -> None:
    x0, noise = torch.full((1, 8), 3.0), torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    started: list[Tensor] = []

    def denoise(x: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        started.append(x["text"])
        return x

    def start(**more: Any) -> Tensor:
        started.clear()
        sample(denoise, {"text": noise}, [4.0, 0.0], **more)
        return started[0]

    torch.testing.assert_close(start(), noise * 17**0.5)
    torch.testing.assert_close(start(unit_start=False), noise * 4)
    torch.testing.assert_close(start(scales={"text": 2.0}), noise * 20**0.5)
    torch.testing.assert_close(start(scales={"text": 2.0}, clean={"text": x0}, unit_start=False), noise * 4 + 6)


def test_steps_are_reported_and_a_callback_can_stop_a_run() -> None:
    levels: list[float] = []
    told: list[tuple[int, int]] = []

    def denoise(x: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        levels.append(sigma)
        return normal_data(x, sigma)

    sigmas = run_sigmas(LINEAR, "ddim_uniform", 30)
    for sampler in SAMPLERS:
        levels.clear(), told.clear()
        sample(denoise, initial_noise(SHAPES, [1]), sigmas, sampler=sampler, seeds=[1], callback=lambda d, n, _: told.append((d, n)))
        assert told == [(i + 1, 31) for i in range(31)] and levels == sigmas[:-1]

    def stop(step: int, _steps: int, _latents: dict[str, Tensor]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    levels.clear()
    with pytest.raises(KeyboardInterrupt):
        sample(denoise, initial_noise(SHAPES, [1]), sigmas, callback=stop)
    assert len(levels) == 2


def test_refusals() -> None:
    noise, sigmas = initial_noise(SHAPES, [1, 2]), [4.0, 0.0]
    exact: Denoise = normal_data
    with pytest.raises(CoDiError, match="'lms'.*ddim, "):
        sample(exact, noise, sigmas, sampler="lms")
    for scheduler, steps in (("ddim_uniform", 0), ("ddim_uniform", 501), ("normal", 0), ("karras", 1001)):
        with pytest.raises(CoDiError, match=f"{steps} steps"):
            run_sigmas(LINEAR, scheduler, steps)
    with pytest.raises(CoDiError, match="'exponential'.*sgm_uniform, "):
        run_sigmas(LINEAR, "exponential", 4)
    for sampler in STOCHASTIC:
        with pytest.raises(CoDiError, match="2 seeds"):
            sample(exact, noise, sigmas, sampler=sampler, seeds=[1])
    with pytest.raises(CoDiError, match="same number of samples"):
        sample(exact, {"image": torch.zeros(1, 4, 8, 8), "text": torch.zeros(2, 64)}, sigmas)
    with pytest.raises(CoDiError, match="at least one"):
        initial_noise(SHAPES, [])
    with pytest.raises(CoDiError, match="'exponential'.*linear, linear_zsnr, cosine"):
        DiffusionConfig(schedule="exponential")
    with pytest.raises(CoDiError, match="'x0'.*eps, v"):
        DiffusionConfig(prediction="x0")

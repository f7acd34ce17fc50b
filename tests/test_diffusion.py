"""Samplers, noise and guidance, on a denoiser whose answer is known."""

from __future__ import annotations

import pytest
import torch
from codi.codi_models.diffusion import SAMPLERS, STOCHASTIC, alphas_cumprod, ddim_timesteps, guided, initial_noise, sample
from codi.codi_models.errors import CoDiError
from torch import Tensor

SHAPES = {"image": (4, 8, 8), "text": (64,)}
ALPHAS = alphas_cumprod()


def normal_data(latents: dict[str, Tensor], timesteps: Tensor) -> dict[str, Tensor]:
    """The exact noise prediction for independent data of mean 1 and standard deviation 0.5."""
    alpha = ALPHAS[timesteps.long()[0]]
    return {m: (1 - alpha).sqrt() * (x - alpha.sqrt()) / (0.25 * alpha + 1 - alpha) for m, x in latents.items()}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_from_the_data(sampler: str) -> None:
    seeds = list(range(24))
    steps = 200 if sampler == "ddpm" else 40
    latents = sample(normal_data, initial_noise(SHAPES, seeds), sampler=sampler, steps=steps, seeds=seeds)
    assert {m: tuple(x.shape) for m, x in latents.items()} == {m: (24, *s) for m, s in SHAPES.items()}
    for x in latents.values():
        assert abs(x.mean().item() - 1) < 0.06 and abs(x.std().item() - 0.5) < 0.08


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch_or_on_other_outputs(sampler: str) -> None:
    def run(shapes: dict[str, tuple[int, ...]], seeds: list[int]) -> dict[str, Tensor]:
        return sample(normal_data, initial_noise(shapes, seeds), sampler=sampler, steps=6, seeds=seeds)

    both = run(SHAPES, [3, 4, 5])
    torch.testing.assert_close(run(SHAPES, [4])["image"], both["image"][1:2])
    torch.testing.assert_close(run({"text": SHAPES["text"]}, [3, 4, 5])["text"], both["text"])
    assert not torch.allclose(both["image"][0], both["image"][1])
    assert not torch.allclose(both["image"][0].flatten()[:64], both["text"][0])


def test_ddim_runs_the_published_number_of_steps_and_reports_them() -> None:
    seen: list[tuple[int, int]] = []
    times: list[int] = []

    def denoise(latents: dict[str, Tensor], timesteps: Tensor) -> dict[str, Tensor]:
        times.append(int(timesteps[0]))
        return normal_data(latents, timesteps)

    sample(denoise, initial_noise(SHAPES, [1]), steps=30, callback=lambda done, steps, _: seen.append((done, steps)))
    assert seen == [(i + 1, 31) for i in range(31)] and times == ddim_timesteps(30)[::-1]


def test_a_callback_can_stop_a_run() -> None:
    done: list[int] = []

    def stop(step: int, _steps: int, _latents: dict[str, Tensor]) -> None:
        done.append(step)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(normal_data, initial_noise(SHAPES, [1]), sampler="euler", steps=9, callback=stop)
    assert done == [1, 2]


def test_guidance() -> None:
    calls: list[int] = []

    def predict(latents: dict[str, Tensor], timesteps: Tensor, contexts: Tensor) -> dict[str, Tensor]:
        calls.append(len(timesteps))
        return {m: x + contexts.mean(dim=(1, 2)).view(-1, *[1] * (x.dim() - 1)) for m, x in latents.items()}

    x, t = initial_noise(SHAPES, [1, 2]), torch.tensor([5, 5])
    yes, no = torch.ones(2, 1, 3), torch.zeros(2, 1, 3)
    for cfg, scales in ((3.0, {"image": 3.0, "text": 3.0}), ({"image": 2.0}, {"image": 2.0, "text": 1.0})):
        noise = guided(predict, yes, no, cfg)(x, t)  # type: ignore[arg-type]
        for m, scale in scales.items():
            torch.testing.assert_close(noise[m], x[m] + scale)
    assert calls == [4, 4]
    noise = guided(predict, yes, no, 1.0)(x, t)  # type: ignore[arg-type]
    assert calls == [4, 4, 2]
    torch.testing.assert_close(noise["text"], x["text"] + 1)
    folds: list[int] = []
    denoise = guided(predict, yes, no, 2.0, fold=lambda c: (folds.append(len(c)), c)[1])  # type: ignore[arg-type, func-returns-value]
    denoise(x, t), denoise(x, t)
    assert folds == [4]


def test_guidance_with_prompts_per_output() -> None:
    def predict(latents: dict[str, Tensor], timesteps: Tensor, contexts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {m: x * 0 + contexts[m].view(-1, *[1] * (x.dim() - 1)) for m, x in latents.items()}

    x, t = initial_noise(SHAPES, [1]), torch.tensor([5])
    yes, no = {"image": torch.full((1, 1, 1), 2.0), "text": torch.full((1, 1, 1), 5.0)}, torch.ones(1, 1, 1)
    noise = guided(predict, yes, no, 3.0)(x, t)  # type: ignore[arg-type]
    assert noise["image"].unique().tolist() == [4.0] and noise["text"].unique().tolist() == [13.0]
    with pytest.raises(CoDiError, match=r"\(1, 1, 1\).*\(2, 1, 1\)"):
        guided(predict, torch.ones(2, 1, 1), no, 3.0)  # type: ignore[arg-type]


def test_refusals() -> None:
    noise = initial_noise(SHAPES, [1, 2])
    with pytest.raises(CoDiError, match="'lms'.*ddim, "):
        sample(normal_data, noise, sampler="lms", steps=5)
    for sampler, steps in (("ddim", 0), ("ddim", 501), ("euler", 0), ("unipc", 1001)):
        with pytest.raises(CoDiError, match=f"{steps} steps"):
            sample(normal_data, noise, sampler=sampler, steps=steps)
    for sampler in STOCHASTIC:
        with pytest.raises(CoDiError, match="2 seeds"):
            sample(normal_data, noise, sampler=sampler, steps=5, seeds=[1])
    with pytest.raises(CoDiError, match="same number of samples"):
        sample(normal_data, {"image": torch.zeros(1, 4, 8, 8), "text": torch.zeros(2, 64)}, steps=5)
    with pytest.raises(CoDiError, match="at least one"):
        initial_noise(SHAPES, [])

"""DDIM schedules: which timesteps run and which noise levels they have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..diffusion import alphas_cumprod, betas, ddim_timesteps
from .check import Check, difference, tensor_of
from .networks import Networks

TOLERANCE = 1e-6


def check_schedules(check: Check, networks: Networks) -> None:
    """Every schedule of the json: timesteps exactly, noise levels within 1e-6."""
    for steps, published in check.fixture.setting("schedules").items():
        timesteps = ddim_timesteps(int(steps))
        alphas, previous = ddim_alphas(timesteps)
        same = timesteps == published["timesteps_ascending"] and len(timesteps) == published.get("actual_steps", len(timesteps))
        check.fact(f"{steps}/timesteps", same, f"exact: {len(timesteps)} timesteps from {timesteps[0]} to {timesteps[-1]}")
        for name, ours in (("alphas", alphas), ("alphas_prev", previous)):
            check.number(f"{steps}/{name}", ours, tensor_of(published[name]), TOLERANCE)


def ddim_alphas(timesteps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """alphas_cumprod at ascending timesteps and at those before them; before the first comes timestep 0, not clean data."""
    table = alphas_cumprod().float()
    return table[list(timesteps)], table[[0, *timesteps[:-1]]]


def schedule_tables() -> dict[str, Tensor]:
    """The published network's schedule buffers, float64 (1000,), from our betas (DDPM, Ho et al. 2020, equations 4 to 7)."""
    beta = betas()
    alpha = 1 - beta
    total = alpha.cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), total[:-1]])
    variance = beta * (1 - before) / (1 - total)
    return {
        "betas": beta,
        "alphas_cumprod": total,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": total.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - total).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - total).log(),
        "sqrt_recip_alphas_cumprod": (1 / total).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / total - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - total),
        "posterior_mean_coef2": (1 - before) * alpha.sqrt() / (1 - total),
    }


def sample_error(name: str, table: Tensor, at: dict[str, float]) -> float:
    """Error of a table's first, middle and last entry; alphas_cumprod is the one that sampling reads, so it is taken from there."""
    index = [0 if key == "first" else len(table) - 1 if key == "last" else int(key.removeprefix("index")) for key in at]
    ours = (alphas_cumprod() if name == "alphas_cumprod" else table).float()[index]
    return difference(ours, tensor_of(list(at.values())))

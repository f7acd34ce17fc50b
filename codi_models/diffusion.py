"""Noise levels, prediction types and samplers, apart from any network.

Sampling runs in the variables of Karras et al. 2022: x = s x0 + sigma n, one sigma for all modalities, s a factor of each modality
(`modalities.snr_scale`; 1 without a shift of its log SNR). A network sees x / s in its own scale, at the timestep of sigma / s. So one
sequence of sigmas serves latents that give away what they show at different noise levels (Hoogeboom et al. 2023 shift the log SNR of
larger images in the same way), and any sampler works on them unchanged, ComfyUI's included."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .config import DiffusionConfig
from .errors import CoDiError

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
_LEAST_ALPHA_BAR = 4.8973451890853435e-08  # of a schedule without signal at its end: sigma stays finite, and is ComfyUI's

Latents = dict[str, Tensor]
Denoise = Callable[[Latents, float], Latents]
"""`denoise(x, sigma) -> expected s x0`, both modality -> (B, ...)."""
Callback = Callable[[int, int, Latents], None]
"""`callback(steps done, steps in all, x)`, after every step; an exception raised in it ends the run."""


def betas() -> Tensor:
    """Variances of the published forward process, linear in their square root, float64 (1000,)."""
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float64) ** 2


def alphas_cumprod(schedule: str = "linear") -> Tensor:
    """Share of the signal's variance that is left at each timestep, float64 (1000,).

    linear: as published. linear_zsnr: the same, rescaled so that nothing is left at the last timestep (Lin et al. 2023, algorithm 1).
    cosine: cos^2 of the timestep's fraction of a quarter turn (Nichol and Dhariwal 2021, without offset), nothing left at the last."""
    if schedule == "cosine":
        fraction = torch.arange(1, TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS
        return (fraction * math.pi / 2).cos().square().clamp(min=_LEAST_ALPHA_BAR)
    table = (1 - betas()).cumprod(0)
    if schedule == "linear":
        return table
    root = table.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root.square().clamp(min=_LEAST_ALPHA_BAR)


@lru_cache(maxsize=8)
def _sigmas(schedule: str) -> Tensor:
    table = alphas_cumprod(schedule)
    return ((1 - table) / table).sqrt().float()


class NoiseSchedule:
    """The noise levels that denoisers were trained at, and how what they predict becomes a clean latent."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.sigmas = _sigmas(config.schedule)
        """Noise level of each timestep, ascending, float32 (1000,)."""

    def timestep(self, sigma: Tensor | float, scale: float = 1.0) -> Tensor:
        """Timesteps of noise levels (B,) or of one, float32: with scale 1 the nearest of the 1000, as in ComfyUI's tables; else
        fractional, by the logarithm of sigma / scale."""
        level = torch.as_tensor(sigma, dtype=torch.float32)
        table = self.sigmas.log().to(level.device)
        log = (level / scale).clamp(min=1e-10).log()
        above = torch.searchsorted(table, log.contiguous()).clamp(1, TIMESTEPS - 1)
        low, high = table[above - 1], table[above]
        fraction = ((log - low) / (high - low)).clamp(0, 1)
        exact = above - 1 + fraction
        return exact if scale != 1 else torch.where(fraction <= 0.5, above - 1, above).float()

    def sigma(self, timestep: Tensor | float) -> Tensor:
        """Noise level of timesteps 0..999, fractional ones between their neighbours by the logarithm."""
        t = torch.as_tensor(timestep, dtype=torch.float32).clamp(0, TIMESTEPS - 1)
        table = self.sigmas.log().to(t.device)
        return torch.lerp(table[t.floor().long()], table[t.ceil().long()], t.frac()).exp()

    @staticmethod
    def network_input(x: Tensor, sigma: Tensor | float, scale: float | Tensor = 1.0) -> Tensor:
        """x = s x0 + sigma n -> what a network sees: x / s at unit variance of noise and signal together."""
        return x / (sigma**2 + scale**2) ** 0.5

    def denoised(self, prediction: Tensor, x: Tensor, sigma: Tensor | float, scale: float | Tensor = 1.0) -> Tensor:
        """What a network predicted of x -> the expected s x0. v is that of Salimans and Ho 2022."""
        if self.config.prediction == "eps":
            return x - sigma * prediction
        total = sigma**2 + scale**2
        return x * (scale**2 / total) - prediction * (sigma * scale / total**0.5)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """What a network is trained to predict of x0 (B, ...) with `noise` at its own noise level: the noise, or v."""
        if self.config.prediction == "eps":
            return noise
        return (noise - sigma * x0) / (1 + sigma**2) ** 0.5

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """x0 with noise, as a network sees it in training."""
        return self.network_input(x0 + sigma * noise, sigma)


def ddim_timesteps(steps: int) -> list[int]:
    """Timesteps of the published DDIM sampler, ascending: 1, 1 + stride, ... with stride = 1000 // steps.

    Where `steps` does not divide 1000 they are more than asked for: 30 gives 31. Raises CoDiError outside 1..500, where the
    published sampler has no such schedule."""
    if not 1 <= steps <= TIMESTEPS // 2:
        raise CoDiError(f"{steps} steps: the ddim schedulers take 1 to {TIMESTEPS // 2}")
    return [t + 1 for t in range(0, TIMESTEPS, TIMESTEPS // steps) if t + 1 < TIMESTEPS]


def _evenly(schedule: NoiseSchedule, steps: int, *, to_the_end: bool) -> list[float]:
    timesteps = torch.linspace(TIMESTEPS - 1, 0, steps if to_the_end else steps + 1)
    return [*schedule.sigma(timesteps if to_the_end else timesteps[:-1]).tolist(), 0.0]


def _karras(schedule: NoiseSchedule, steps: int) -> list[float]:
    low, high = float(schedule.sigmas[0]) ** (1 / 7), float(schedule.sigmas[-1]) ** (1 / 7)
    return [*((high + torch.linspace(0, 1, steps) * (low - high)) ** 7).tolist(), 0.0]


def _simple(schedule: NoiseSchedule, steps: int) -> list[float]:
    return [*(float(schedule.sigmas[-(1 + int(i * TIMESTEPS / steps))]) for i in range(steps)), 0.0]


def _ddim(schedule: NoiseSchedule, steps: int, *, last: float | None = 0.0) -> list[float]:
    sigmas = schedule.sigmas[ddim_timesteps(steps)].flip(0).tolist()
    return [*sigmas, float(schedule.sigmas[0]) if last is None else last]


PUBLISHED = "ddim_published"
SCHEDULERS: dict[str, Callable[[NoiseSchedule, int], list[float]]] = {
    "sgm_uniform": lambda schedule, steps: _evenly(schedule, steps, to_the_end=False),
    "normal": lambda schedule, steps: _evenly(schedule, steps, to_the_end=True),
    "simple": _simple,
    "karras": _karras,
    "ddim_uniform": _ddim,
    PUBLISHED: lambda schedule, steps: _ddim(schedule, steps, last=None),
}
"""Scheduler -> the noise levels of a run, descending. Those of the same name in ComfyUI are the same; ddim_published starts from unit
noise at its first timestep and ends at the noise level of timestep 0, as the published sampler does."""


def run_sigmas(schedule: NoiseSchedule, scheduler: str, steps: int) -> list[float]:
    """Noise levels of a run, `steps` + 1 of them save where `ddim_timesteps` gives more. Raises CoDiError for what no scheduler takes."""
    if scheduler not in SCHEDULERS:
        raise CoDiError(f"unknown scheduler {scheduler!r}; it is one of {', '.join(SCHEDULERS)}")
    if not 1 <= steps <= TIMESTEPS:
        raise CoDiError(f"{steps} steps: a run takes 1 to {TIMESTEPS}")
    return SCHEDULERS[scheduler](schedule, steps)


def _generators(seeds: Sequence[int], modality: str, purpose: str) -> list[torch.Generator]:
    """One generator a sample, so that neither the batch nor the other outputs change what a sample draws."""
    result = []
    for seed in seeds:
        digest = hashlib.sha256(f"{int(seed)}:{modality}:{purpose}".encode()).digest()
        result.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
    return result


def initial_noise(shapes: Mapping[str, Sequence[int]], seeds: Sequence[int], *, device: Any = None) -> Latents:
    """Gaussian noise (len(seeds), *shape) for every modality. A sample's noise depends on its seed, modality and shape alone."""
    if not seeds or not shapes:
        raise CoDiError(f"noise for outputs {sorted(shapes)} with seeds {list(seeds)}: at least one of each is needed")
    return {
        modality: torch.stack([torch.randn(tuple(shape), generator=g) for g in _generators(seeds, modality, "initial")]).to(device)
        for modality, shape in shapes.items()
    }


def _euler(denoise: Denoise, x: Latents, sigmas: Sequence[float], callback: Callback, _: Any) -> Latents:
    """Euler steps of the probability flow (Karras et al. 2022, algorithm 1): DDIM with eta 0 in these variables."""
    for done, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False), start=1):
        clean = denoise(x, sigma)
        x = {m: x[m] + (x[m] - clean[m]) / sigma * (following - sigma) for m in x}
        callback(done, len(sigmas) - 1, x)
    return x


def _euler_ancestral(
    denoise: Denoise, x: Latents, sigmas: Sequence[float], callback: Callback, draw: Callable[[Latents], Latents]
) -> Latents:
    """Euler steps to below the next noise level, and noise up to it: DDPM (Ho et al. 2020) in these variables."""
    for done, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False), start=1):
        clean = denoise(x, sigma)
        up = min(following, (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
        down = (following**2 - up**2) ** 0.5
        x = {m: x[m] + (x[m] - clean[m]) / sigma * (down - sigma) for m in x}
        if up > 0:
            noise = draw(x)
            x = {m: x[m] + up * noise[m] for m in x}
        callback(done, len(sigmas) - 1, x)
    return x


def _dpmpp_2m(denoise: Denoise, x: Latents, sigmas: Sequence[float], callback: Callback, _: Any) -> Latents:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
    before: Latents = {}
    for done, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False), start=1):
        clean = denoise(x, sigma)
        if following == 0:
            x = clean
        else:
            step, ahead = math.log(sigma / following), clean
            if before:
                ratio = math.log(sigmas[done - 2] / sigma) / step
                ahead = {m: clean[m] + (clean[m] - before[m]) / (2 * ratio) for m in x}
            x = {m: following / sigma * x[m] - math.expm1(-step) * ahead[m] for m in x}
        before = clean
        callback(done, len(sigmas) - 1, x)
    return x


SAMPLERS: dict[str, Callable[..., Latents]] = {
    "ddim": _euler,
    "euler": _euler,
    "euler_ancestral": _euler_ancestral,
    "dpmpp_2m": _dpmpp_2m,
}
"""Sampler -> how a step is made. Those of the same name in ComfyUI are the same."""

STOCHASTIC = ("euler_ancestral",)
"""Samplers that draw noise at every step and so need seeds."""


@torch.no_grad()
def sample(
    denoise: Denoise, noise: Mapping[str, Tensor], sigmas: Sequence[float], *, sampler: str = "ddim", unit_start: bool = True,
    scales: Mapping[str, float] | None = None, clean: Mapping[str, Tensor] | None = None, seeds: Sequence[int] = (),
    callback: Callback | None = None,
) -> Latents:  # fmt: skip
    """Turn noise into latents in diffusion space, all modalities at the same sigmas.

    noise: modality -> standard Gaussian noise (B, ...), float32. sigmas: as `run_sigmas` gives them. scales: s of each modality, else 1.
    clean: latents that a modality starts from with noise on top, instead of from noise alone. unit_start: whether the first noise level
    counts as noise alone, of unit variance together with the signal that is missing; else the noise is just that level's.
    seeds: one per sample, for the samplers in STOCHASTIC. Raises CoDiError for an unknown sampler and where seeds are missing."""
    if sampler not in SAMPLERS:
        raise CoDiError(f"unknown sampler {sampler!r}; it is one of {', '.join(SAMPLERS)}")
    if not noise or len({x.shape[0] for x in noise.values()}) != 1:
        raise CoDiError(f"noise of { ({m: tuple(x.shape) for m, x in noise.items()}) }: every output needs the same number of samples")
    batch = next(iter(noise.values())).shape[0]
    if sampler in STOCHASTIC and len(seeds) != batch:
        raise CoDiError(f"sampler {sampler} draws noise at every step: it needs {batch} seeds, one per sample, and got {list(seeds)}")
    generators = {m: _generators(seeds, m, "steps") for m in noise} if sampler in STOCHASTIC else {}

    def draw(x: Latents) -> Latents:
        return {m: torch.stack([torch.randn(x[m].shape[1:], generator=g) for g in generators[m]]).to(x[m]) for m in x}

    s = {m: (scales or {}).get(m, 1.0) for m in noise}
    x = {}
    for m, drawn in noise.items():
        level = (sigmas[0] ** 2 + s[m] ** 2) ** 0.5 if unit_start else sigmas[0]
        x[m] = drawn * level + (s[m] * clean[m] if clean and m in clean else 0.0)
    x = SAMPLERS[sampler](denoise, x, sigmas, callback or (lambda *_: None), draw)
    return {m: NoiseSchedule.network_input(x[m], sigmas[-1], s[m]) for m in x}

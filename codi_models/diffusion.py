"""Noise schedule, samplers and guidance, apart from any network (DDPM, Ho et al. 2020; DDIM, Song et al. 2021)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .config import MODALITIES
from .denoisers.faceted import Prompted
from .errors import CoDiError

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012

Latents = Mapping[str, Tensor]
Denoise = Callable[[dict[str, Tensor], Tensor], Latents]
"""`denoise(latents, timesteps (B,)) -> predicted noise`, both modality -> tensor in diffusion space."""
Contexts = Prompted | Mapping[str, Prompted]
Callback = Callable[[int, int, dict[str, Tensor]], None]
"""`callback(steps done, steps in all, latents)`, after every step; an exception raised in it ends the run."""


def betas() -> Tensor:
    """Variances of the forward process, linear in their square root, float64 (1000,)."""
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float64) ** 2


def alphas_cumprod() -> Tensor:
    """Share of the signal's variance that is left at each timestep; computed in float64, kept in float32 (1000,)."""
    return (1 - betas()).cumprod(0).float()


def ddim_timesteps(steps: int) -> list[int]:
    """Timesteps of the published DDIM sampler, ascending: 1, 1 + stride, ... with stride = 1000 // steps.

    Where `steps` does not divide 1000 they are more than asked for: 30 gives 31. Raises CoDiError outside 1..500, where the
    published sampler has no such schedule.
    """
    if not 1 <= steps <= TIMESTEPS // 2:
        raise CoDiError(f"{steps} steps: the ddim sampler takes 1 to {TIMESTEPS // 2}")
    return [t + 1 for t in range(0, TIMESTEPS, TIMESTEPS // steps) if t + 1 < TIMESTEPS]


def ddim_alphas(timesteps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """alphas_cumprod at ascending timesteps and at those before them; before the first comes timestep 0, not clean data."""
    table = alphas_cumprod()
    return table[list(timesteps)], table[[0, *timesteps[:-1]]]


def _generators(seeds: Sequence[int], modality: str, purpose: str) -> list[torch.Generator]:
    """One generator a sample, so that neither the batch nor the other outputs change what a sample draws."""
    result = []
    for seed in seeds:
        digest = hashlib.sha256(f"{int(seed)}:{modality}:{purpose}".encode()).digest()
        result.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
    return result


def initial_noise(shapes: Mapping[str, Sequence[int]], seeds: Sequence[int], *, device: Any = None) -> dict[str, Tensor]:
    """Gaussian noise (len(seeds), *shape) for every modality. A sample's noise depends on its seed, modality and shape alone."""
    if not seeds or not shapes:
        raise CoDiError(f"noise for outputs {sorted(shapes)} with seeds {list(seeds)}: at least one of each is needed")
    return {
        modality: torch.stack([torch.randn(tuple(shape), generator=g) for g in _generators(seeds, modality, "initial")]).to(device)
        for modality, shape in shapes.items()
    }


SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("", {}),
    "ddim_trailing": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Sampler name -> diffusers scheduler and its settings beside the noise schedule; "ddim" is the published sampler."""

STOCHASTIC = ("ddpm", "euler_ancestral")
"""Samplers that draw noise at every step and so need seeds."""


@torch.no_grad()
def sample(
    denoise: Denoise, noise: Latents, *,
    sampler: str = "ddim", steps: int, seeds: Sequence[int] | None = None, callback: Callback | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Turn noise into latents, all modalities at the same timesteps.

    noise: modality -> standard Gaussian noise (B, ...), float32, see `initial_noise`. sampler: a name in SAMPLERS.
    steps: 1..500 for "ddim" (which may run more, see `ddim_timesteps`), 1..1000 for the others.
    seeds: one per sample, used by the samplers in STOCHASTIC. Returns latents in diffusion space.
    Raises CoDiError for an unknown sampler, steps out of range, and a stochastic sampler without a seed per sample.
    """
    if sampler not in SAMPLERS:
        raise CoDiError(f"unknown sampler {sampler!r}; it is one of {', '.join(SAMPLERS)}")
    if not noise or len({x.shape[0] for x in noise.values()}) != 1:
        raise CoDiError(f"noise of { ({m: tuple(x.shape) for m, x in noise.items()}) }: every output needs the same number of samples")
    if sampler == "ddim":
        return _sample_ddim(denoise, dict(noise), ddim_timesteps(steps), callback)
    if not 1 <= steps <= TIMESTEPS:
        raise CoDiError(f"{steps} steps: the {sampler} sampler takes 1 to {TIMESTEPS}")
    batch = next(iter(noise.values())).shape[0]
    if sampler in STOCHASTIC and len(seeds or ()) != batch:
        raise CoDiError(f"sampler {sampler} draws noise at every step: it needs {batch} seeds, one per sample, and got {seeds}")
    return _sample_scheduled(denoise, dict(noise), sampler, steps, seeds or (), callback)


def _sample_ddim(denoise: Denoise, x: dict[str, Tensor], timesteps: Sequence[int], callback: Callback | None) -> dict[str, Tensor]:
    """DDIM with eta 0 as published: the last step lands on the noise level of timestep 0."""
    first = next(iter(x.values()))
    alphas, previous = (a.double().tolist() for a in ddim_alphas(timesteps))
    for done, index in enumerate(reversed(range(len(timesteps))), start=1):
        noise = denoise(x, torch.full((first.shape[0],), timesteps[index], device=first.device))
        a, p = alphas[index], previous[index]
        # x_prev = sqrt(p) * (x - sqrt(1-a) * e) / sqrt(a) + sqrt(1-p) * e
        scale, shift = (p / a) ** 0.5, (1 - p) ** 0.5 - (p * (1 - a) / a) ** 0.5
        x = {m: scale * x[m] + shift * noise[m] for m in x}
        if callback is not None:
            callback(done, len(timesteps), x)
    return x


def _scheduler(sampler: str, steps: int) -> Any:
    import diffusers

    name, settings = SAMPLERS[sampler]
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=TIMESTEPS, beta_start=BETA_START, beta_end=BETA_END, beta_schedule="scaled_linear",
        prediction_type="epsilon", timestep_spacing="trailing", **settings,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    return scheduler


def _sample_scheduled(
    denoise: Denoise, x: dict[str, Tensor], sampler: str, steps: int, seeds: Sequence[int], callback: Callback | None
) -> dict[str, Tensor]:
    """A diffusers scheduler per modality, because they remember what they were given."""
    first = next(iter(x.values()))
    schedulers = {m: _scheduler(sampler, steps) for m in x}
    extra = {m: {"generator": _generators(seeds, m, "steps")} if sampler in STOCHASTIC else {} for m in x}
    x = {m: x[m] * float(schedulers[m].init_noise_sigma) for m in x}
    timesteps = next(iter(schedulers.values())).timesteps
    for done, t in enumerate(timesteps, start=1):
        scaled = {m: schedulers[m].scale_model_input(x[m], t) for m in x}
        noise = denoise(scaled, torch.full((first.shape[0],), t.item(), device=first.device))
        x = {m: schedulers[m].step(noise[m], t, x[m], **extra[m]).prev_sample for m in x}
        if callback is not None:
            callback(done, len(timesteps), x)
    return x


def guided(
    predict: Callable[[dict[str, Tensor], Tensor, Contexts], Latents], contexts: Contexts, unconditional: Contexts,
    cfg: float | Mapping[str, float], *, rescale: float = 0.0, fold: Callable[[Contexts], Contexts] | None = None,
) -> Denoise:  # fmt: skip
    """Classifier-free guidance (Ho and Salimans 2022): eps = u + cfg * (c - u), with one pass on the doubled batch, u first.

    predict: `predict(latents, timesteps, contexts) -> noise`. contexts, unconditional: (B, n, D) or modality -> (B, n, D).
    cfg: one scale, or a scale for every output; where all are 1 the unconditional pass is left out. rescale: see `rescaled`.
    fold: applied once to the contexts that `predict` gets, such as a denoiser's `fold_context`.
    """
    scales = {m: cfg.get(m, 1.0) if isinstance(cfg, Mapping) else cfg for m in MODALITIES}
    if all(scale == 1 for scale in (cfg.values() if isinstance(cfg, Mapping) else (cfg,))):
        folded = fold(contexts) if fold else contexts
        return lambda latents, timesteps: predict(latents, timesteps, folded)
    both = _stack(unconditional, contexts)
    if fold:
        both = fold(both)

    def denoise(latents: dict[str, Tensor], timesteps: Tensor) -> Latents:
        doubled = {m: torch.cat([x, x]) for m, x in latents.items()}
        noise = predict(doubled, torch.cat([timesteps, timesteps]), both)
        halves = {m: e.chunk(2) for m, e in noise.items()}
        mixed = {m: torch.lerp(without, with_prompt, scales[m]) for m, (without, with_prompt) in halves.items()}
        return {m: rescaled(e, halves[m][1], rescale) for m, e in mixed.items()} if rescale else mixed

    return denoise


def rescaled(noise: Tensor, plain: Tensor, share: float) -> Tensor:
    """Guided noise (B, ...) brought back towards the spread of the noise without guidance (Lin et al. 2023, section 3.4).

    share: 0 none of the way, 1 all of it."""
    before, after = (t.flatten(1).std(dim=1) for t in (plain, noise))
    factor = torch.where(after > 0, before / after.clamp_min(1e-12), 1.0) * share + 1 - share  # (B,)
    return noise * factor.view(-1, *[1] * (noise.ndim - 1))


def is_held(timestep: float, denoise: float) -> bool:
    """Whether an output that is made anew in the part `denoise` of the run (its end) is still as it was given."""
    return timestep >= denoise * TIMESTEPS


def keeping(denoise: Denoise, clean: Latents, noise: Latents, anew: Mapping[str, float] | None = None) -> Denoise:
    """Hold some modalities at given latents while others are denoised to fit them (replacement, as in RePaint, Lugmayr et al. 2022).

    clean: modality -> latent (B, ...) in diffusion space; noise: standard Gaussian noise of the same shapes. While a modality is held,
    `denoise` sees the clean latent with as much of that noise as the step has, and the sampler is told the noise that leads to the clean
    latent. anew: the part of the run, at its end, in which a modality is set free and denoised like the others (SDEdit, Meng et al. 2022);
    0, held throughout, where it is not named: put the clean latent back after the last step, which may leave some noise."""
    table = alphas_cumprod()

    def held(latents: dict[str, Tensor], timesteps: Tensor) -> Latents:
        share = table.to(timesteps.device)[timesteps.round().long().clamp(0, TIMESTEPS - 1)]  # (B,)
        noisy, told = {}, {}
        for m, x in clean.items():
            if is_held(float(timesteps[0]), (anew or {}).get(m, 0.0)):
                a = share.view(-1, *[1] * (x.ndim - 1))
                noisy[m] = a.sqrt() * x + (1 - a).sqrt() * noise[m]
                told[m] = (latents[m] - a.sqrt() * x) / (1 - a).sqrt()
        free = denoise({**latents, **noisy}, timesteps) if len(noisy) < len(latents) else {}
        return {**free, **told}

    return held


def _stack(first: Contexts, second: Contexts) -> Contexts:
    if isinstance(first, Mapping) or isinstance(second, Mapping):
        names = [*first] if isinstance(first, Mapping) else [*second]  # type: ignore[misc]
        pick = {m: [c[m] if isinstance(c, Mapping) else c for c in (first, second)] for m in names}
        return {m: _cat(*pair) for m, pair in pick.items()}
    return _cat(first, second)


def _cat(first: Prompted, second: Prompted) -> Tensor:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.shape != second.shape:
        kinds = [tuple(c.shape) if isinstance(c, Tensor) else type(c).__name__ for c in (first, second)]
        raise CoDiError(f"unconditional and conditional prompts must be tensors of one shape (batch, tokens, width), got {kinds}")
    return torch.cat([first, second])

"""One latent diffusion model per modality, conditioned on the shared prompt space (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import CoDiConfig
from ..denoisers.alignment import alignment_parameters
from ..diffusion import NoiseSchedule, sample
from ..errors import CoDiError
from ..modalities import MODALITIES, denoisers_of, snr_scale
from .dataset import Dataset, Progress
from .encoded import Encoded, draw_prompts, encode_dataset
from .loop import Objective
from .sheets import decoded
from .workspace import Workspace

SHOWN, SHOWN_STEPS = 6, 15  # samples in the log, and their steps


@dataclass
class Noisy:
    """Latents with noise, as a network sees them (B, ...), its timesteps (B,), and what it is to predict (B, ...)."""

    x: Tensor
    timesteps: Tensor
    target: Tensor
    sigma: Tensor  # of the modality's own scale, (B,)


class Noising:
    """The forward process at noise levels that all modalities share.

    A common level is a fraction u of the schedule, 0..1. At it, each modality has the noise that a sampler would have there: sigma / s in
    its own scale, where s is its factor (`modalities.snr_scale`)."""

    def __init__(self, config: CoDiConfig) -> None:
        self.config, self.schedule = config, NoiseSchedule(config.diffusion)

    def levels(self, count: int, generator: torch.Generator, power: float = 1.0) -> Tensor:
        """Common levels (count,), stratified: every batch has all of them. With a power above 1, low ones more often."""
        order = torch.randperm(count, generator=generator, device=generator.device)
        return ((order + torch.rand(count, generator=generator, device=generator.device)) / count) ** power

    def __call__(self, modality: str, x0: Tensor, level: Tensor, generator: torch.Generator) -> Noisy:
        """Latents (B, ...) in diffusion space at common levels (B,)."""
        scale = snr_scale(self.config, modality)
        sigma = self.schedule.sigma(level * (len(self.schedule.sigmas) - 1))
        noise, own = torch.randn(x0.shape, generator=generator, device=x0.device), sigma / scale
        wide = own.view(-1, *[1] * (x0.ndim - 1))
        target = self.schedule.target(x0, noise, wide)
        return Noisy(self.schedule.noised(x0, noise, wide), self.schedule.timestep(sigma, scale), target, own)

    def estimate(self, noisy: Noisy, prediction: Tensor) -> Tensor:
        """Clean latents (B, ...) that a network's prediction stands for."""
        sigma = noisy.sigma.view(-1, *[1] * (noisy.x.ndim - 1))
        return self.schedule.denoised(prediction, noisy.x * (1 + sigma**2).sqrt(), sigma)


def prompt_weights(modality: str) -> dict[str, float]:
    """How often a denoiser is prompted with which modality: text and the sample itself; that of text with all four."""
    return dict(text=2, image=1, audio=1, video=1) if modality == "text" else {"text": 3, modality: 2}


def batch_of(batch: int | Mapping[str, int], kinds: Sequence[str]) -> int:
    """Examples of a batch that takes all these modalities: the smallest of their numbers. Raises CoDiError for one without a number."""
    if isinstance(batch, int):
        return batch
    if missing := [kind for kind in kinds if kind not in batch]:
        raise CoDiError(f"batch {dict(batch)} has no number for {missing[0]}: give one for each modality that the run takes")
    return min(batch[kind] for kind in kinds)


class Denoising(Objective):
    """One denoiser. Its connectors and environment encoder stay as they are: latent alignment trains these, and only these."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        modalities: tuple[str, ...]  # that the denoiser makes, in turns; those that the data lack are left out
        batch: dict[str, int]
        turns: dict[str, int] = field(default_factory=dict)  # steps of each modality in a round, else 1
        empty: float = 0.4  # part of the prompts that are empty: joint generation without a prompt stands on that half
        level_power: float = 1.0  # above 1, more of the steps see low noise, where what is decided late is learnt
        variants: int = 8  # prompts of each item
        spread: float = 0.15  # size of the noise on prompts, see `encoded.jittered`
        mixed: float = 0.3  # part of the prompts that are interpolations of two

    def __init__(self, space: Workspace, encoded: Encoded, options: Options) -> None:
        super().__init__()
        self.workspace, self.encoded, self.options = space, encoded, options
        self.config, self.noising = space.config, Noising(space.config)
        self.kinds = [kind for kind in options.modalities if kind in encoded.latents for _ in range(options.turns.get(kind, 1))]
        self.batches = {kind: batch_of(options.batch, [kind]) for kind in self.kinds}
        self.component = _component(options.modalities)
        if options.level_power <= 0:
            raise CoDiError(f"level_power {options.level_power} must be above 0: 1 draws all noise levels alike, 2 low ones more often")
        if not self.kinds:
            raise CoDiError(f"no example has {' or '.join(options.modalities)}; the data have {', '.join(encoded.has)}")
        self.net: Any = space.network(self.component)
        for parameter in alignment_parameters(self.net):
            parameter.requires_grad_(False)

    @staticmethod
    def encode(space: Workspace, data: Dataset, options: Options, cache: Path, progress: Progress) -> Encoded:
        """What the run needs of a data set."""
        prompts = {kind for modality in options.modalities for kind in prompt_weights(modality)}
        kinds = [kind for kind in data.has if kind in prompts]
        return encode_dataset(space, data, kinds, options.modalities, cache, variants=options.variants, progress=progress)

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        kind = self.kinds[step % len(self.kinds)]
        with torch.no_grad():
            level = self.noising.levels(self.batches[kind], generator, self.options.level_power)
            rows = self.encoded.rows([kind], len(level), generator)
            noisy = self.noising(kind, self.encoded.latent(kind, rows, generator.device), level, generator)
            context = draw_prompts(
                self.encoded, rows, prompt_weights(kind), generator,
                empty=self.options.empty, spread=self.options.spread, mixed=self.options.mixed,
            )  # fmt: skip
        error = (self.net(noisy.x, noisy.timesteps, context).float() - noisy.target).square().mean()
        return error, {kind: error}

    def write(self) -> None:
        self.workspace.save_learnt(self.component, self.net)

    def samples(self) -> dict[str, Tensor | list[str]]:
        made: dict[str, Tensor | list[str]] = {}
        for kind in dict.fromkeys(self.kinds):
            generator = torch.Generator(self.workspace.device).manual_seed(0)
            rows = self.encoded.rows([kind], SHOWN, generator)
            context = draw_prompts(self.encoded, rows, {"text": 1.0}, generator, empty=0.0, spread=0.0)
            z = sample_latents({self.component: self.net}, self.config, {kind: self.encoded.latents[kind].shape[1:]}, context)
            if (shown := decoded(self.workspace, kind, z[kind])) is not None:
                made[kind] = shown
        return made


def sample_latents(
    nets: Mapping[str, nn.Module], config: CoDiConfig, shapes: Mapping[str, tuple[int, ...]], context: Tensor, cfg: float = 2.0
) -> dict[str, Tensor]:
    """A few latents of outputs made together under prompts (B, 1, D), for a look in passing: output -> (B, ...)."""
    from ..diffusion import run_sigmas
    from ..guidance import Guidance, GuidedDenoiser
    from ..joint import Alignment, JointDenoiser

    schedule, seeds = NoiseSchedule(config.diffusion), range(len(context))
    generator = torch.Generator().manual_seed(0)
    noise = {m: torch.randn(len(context), *shape, generator=generator).to(context.device) for m, shape in shapes.items()}
    scales = {m: snr_scale(config, m) for m in shapes}
    guide = GuidedDenoiser(
        JointDenoiser(nets, register=False), schedule, context, context[:1].expand_as(context) * 0 + context.mean(0, keepdim=True),
        {m: Guidance(cfg=cfg) for m in shapes}, Alignment(), scales=scales,
    )  # fmt: skip
    return sample(guide, noise, run_sigmas(schedule, "sgm_uniform", SHOWN_STEPS), sampler="ddim", scales=scales, seeds=list(seeds))


def _component(modalities: tuple[str, ...]) -> str:
    if unknown := [kind for kind in modalities if kind not in MODALITIES]:
        raise CoDiError(f"there is no denoiser of {unknown[0]!r}: give {', '.join(MODALITIES)}")
    names = denoisers_of(modalities)
    if len(names) != 1:
        raise CoDiError(f"{', '.join(modalities)} take the denoisers {', '.join(names)}: one run trains one of them")
    return names[0]

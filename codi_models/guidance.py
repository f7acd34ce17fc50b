"""Classifier-free guidance and alignment guidance: one formula, for headless runs and in ComfyUI.

    u + cfg (c - u) + (g - 1) (c - c_off), then rescaled

of c, the prediction with the prompt; u, the one without it (Ho and Salimans 2022), both with latent alignment; and c_off, with the prompt
and without latent alignment. It is linear, so it holds for noise, v and clean latents alike. What has weight 0 is not computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .alignment import Alignment
from .denoisers.layers import Context
from .diffusion import Latents, NoiseSchedule
from .joint import JointDenoiser


@dataclass(frozen=True)
class Guidance:
    """Guidance of one output. cfg: weight of the prompt. alignment: g, weight of latent alignment. rescale: 0 to 1, see `rescaled`."""

    cfg: float = 1.0
    alignment: float = 1.0
    rescale: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """Weight of the predictions u, c and c_off, which sum to 1; those of weight 0 are left out."""
        weights = {"u": 1 - self.cfg, "c": self.cfg + self.alignment - 1, "c_off": 1 - self.alignment}
        return {name: weight for name, weight in weights.items() if weight}

    def combine(self, x: Tensor, denoised: Mapping[str, Tensor]) -> Tensor:
        """Clean latents by prediction, each (B, ...) -> the guided one; x is what they were predicted from."""
        weights = self.weights
        first, *others = weights
        guided = denoised[first]
        for name in others:
            guided = guided + weights[name] * (denoised[name] - denoised[first])
        return x - rescaled(x - guided, x - denoised["c"], self.rescale) if self.rescale and "c" in weights else guided


def alignment_term(c: Tensor, c_off: Tensor, g: float) -> Tensor:
    """What the guidance of the alignment adds to predictions that are guided by the prompt already."""
    return (g - 1) * (c - c_off)


def rescaled(noise: Tensor, conditional: Tensor, fraction: float) -> Tensor:
    """Guided noise (B, ...) brought back towards the spread of the noise with the prompt alone (Lin et al. 2023, section 3.4).

    fraction: 0 none of the way, 1 all of it."""
    before, after = (t.flatten(1).std(dim=1) for t in (conditional, noise))
    factor = torch.where(after > 0, before / after.clamp_min(1e-12), 1.0) * fraction + 1 - fraction  # (B,)
    return noise * factor.view(-1, *[1] * (noise.ndim - 1))


class GuidedDenoiser:
    """The joint denoiser under guidance, as a sampler calls it: (x, sigma) -> expected s x0, modality -> (B, ...).

    cond, uncond: prompts (B, n, D). guidance: of every output. alignment: its range is followed here. scales: s of every modality.
    given: environment embeddings (B, 1, connector_dim) of finished outputs. dtype: of the networks; arithmetic stays in float32."""

    def __init__(
        self, joint: JointDenoiser, schedule: NoiseSchedule, cond: Tensor, uncond: Tensor, guidance: Mapping[str, Guidance],
        alignment: Alignment, *, scales: Mapping[str, float], given: Mapping[str, Tensor] | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.joint, self.schedule, self.alignment = joint, schedule, alignment
        self.guidance, self.scales, self.given, self.dtype = guidance, scales, dict(given or {}), dtype
        self._prompts = {"u": uncond, "c": cond, "c_off": cond}
        self._folded: dict[tuple[str, tuple[str, ...]], Context] = {}

    def __call__(self, x: Latents, sigma: float, targets: Collection[str] | None = None) -> Latents:
        """Of the targets; by default of all outputs."""
        active = [m for m in x if targets is None or m in targets]
        alignment = self.alignment.at(float(self.schedule.timestep(sigma)))
        outputs = {**x, **self.given}
        guidance = {m: self.guidance[m] if alignment.sources(m, outputs) else replace(self.guidance[m], alignment=1.0) for m in active}
        inputs = {m: self.schedule.network_input(part, sigma, self.scales[m]).to(self.dtype) for m, part in x.items()}
        embeddings = self._environment(inputs, sigma, alignment, [m for m in active if guidance[m].weights.keys() != {"c_off"}])
        denoised: dict[str, Latents] = {m: {} for m in active}
        for names, passed, aligned in _passes(guidance, alignment):
            rows = {m: part.repeat(len(names), *[1] * (part.ndim - 1)) for m, part in inputs.items()}
            known = {m: e.repeat(len(names), 1, 1) for m, e in embeddings.items()}
            contexts = {m: self._context(m, names) for m in passed}
            predictions = self.joint(rows, self._timesteps(rows, sigma), contexts, alignment=aligned, targets=passed, given=known)
            for m, prediction in predictions.items():
                for name, part in zip(names, prediction.float().chunk(len(names)), strict=True):
                    denoised[m][name] = self.schedule.denoised(part, x[m], sigma, self.scales[m])
        return {m: guidance[m].combine(x[m], denoised[m]) for m in active}

    def _environment(self, inputs: Latents, sigma: float, alignment: Alignment, targets: Collection[str]) -> dict[str, Tensor]:
        """Environment embeddings of all that some target attends to: once a step, for every pass of it."""
        outputs = {**inputs, **self.given}
        needed = {source for m in targets for source in alignment.sources(m, outputs)}
        noisy = {m: part for m, part in inputs.items() if m in needed and m not in self.given}
        return {**self.joint.environment_embeddings(noisy, self._timesteps(noisy, sigma)), **self.given}

    def _timesteps(self, rows: Mapping[str, Tensor], sigma: float) -> dict[str, Tensor]:
        return {m: self.schedule.timestep(sigma, self.scales[m]).to(part.device).expand(len(part)) for m, part in rows.items()}

    def _context(self, modality: str, names: tuple[str, ...]) -> Context:
        """Prompts of a pass, one block of rows for each prediction, folded once per run."""
        if (modality, names) not in self._folded:
            prompts = torch.cat([self._prompts[name] for name in names])
            self._folded[modality, names] = self.joint.denoiser(modality).fold_context(prompts)
        return self._folded[modality, names]


def _passes(guidance: Mapping[str, Guidance], alignment: Alignment) -> list[tuple[tuple[str, ...], list[str], Alignment]]:
    """The fewest calls of the joint denoiser: predictions, of which outputs, with which alignment. u and c share one where both are due."""
    groups: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for m, one in guidance.items():
        for names, aligned in ((tuple(n for n in one.weights if n != "c_off"), True), (("c_off",), False)):
            if names and set(names) <= set(one.weights):
                groups.setdefault((names, aligned), []).append(m)
    return [(names, passed, alignment if aligned else alignment.off()) for (names, aligned), passed in groups.items()]

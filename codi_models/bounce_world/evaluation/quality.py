"""Runs a model for the evaluation, with one prompt a sample in every batch, and has the judge read what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...pipeline import CoDiPipeline, Sample
from ...prompts import Prompt
from ...settings import Settings
from .. import judge
from .. import world as bounce
from .asking import rendered_prompts

__all__ = ["Examiner", "judged", "rendered_prompts"]


class Examiner:
    """The pipeline with what all cells of an evaluation share: samples a cell, seed, settings that differ from the model's own."""

    def __init__(self, pipe: CoDiPipeline, *, samples: int, seed: int, overrides: Mapping[str, Any]):
        self.pipe, self.samples, self.seed, self.overrides = pipe, samples, seed, dict(overrides)

    def scenes(self, purpose: int, held_out: str = "exclude") -> tuple[bounce.Scenes, torch.Generator]:
        """Scenes of one task and the generator that goes on drawing for it; the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + purpose)
        return bounce.sample_scenes(self.samples, generator=generator, held_out=held_out), generator

    def generate(self, prompts: Sequence[Prompt | None], outputs: Sequence[str], **settings: Any) -> list[Sample]:
        """One sample for each prompt; None prompts with nothing. Sample i uses seed `self.seed + i`."""
        nothing, _ = self.pipe.condition([])
        wanted = torch.cat([nothing if prompt is None else self.pipe.condition([prompt])[0] for prompt in prompts])  # (B, 1, D)
        guidance = None if all(prompt is None for prompt in prompts) else nothing
        seeds = range(self.seed, self.seed + len(prompts))
        return [sample for batch in self.batches(wanted, guidance, seeds, outputs, **settings) for sample in batch]

    def batches(
        self, wanted: Tensor, nothing: Tensor | None, seeds: Sequence[int], outputs: Sequence[str], *,
        keep: Mapping[str, Tensor] | None = None, **settings: Any,
    ) -> Iterator[list[Sample]]:  # fmt: skip
        """Samples from embedded prompts (B, 1, D) and a seed each, batch by batch; nothing, keep as for `CoDiPipeline.generate`."""
        settled = Settings.settled(self.pipe.model.config, outputs, count=len(seeds), **{**self.overrides, **settings})
        for start in range(0, len(seeds), settled.batch_size):
            rows = slice(start, start + settled.batch_size)
            held = {output: latents[rows] for output, latents in (keep or {}).items()}
            yield self.pipe.generate(wanted[rows], nothing, settled, list(seeds[rows]), keep=held)[0]


def judged(samples: Sequence[Sample], output: str, *, nuisance: bool = False) -> dict[str, Tensor]:
    """The judge's reading of one output of all samples; nuisance as for the judge."""
    if output == "text":
        return judge.judge_text([str(sample.text) for sample in samples])
    media = torch.stack([getattr(sample, output) for sample in samples])
    if output == "audio":
        return judge.judge_audio(media, samples[0].sample_rate, nuisance=nuisance)
    return (judge.judge_image if output == "image" else judge.judge_video)(media, nuisance=nuisance)

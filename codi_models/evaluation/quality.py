"""What a model is asked for, and how often the judge reads it in the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import MODALITIES
from ..pipeline import CoDiPipeline, Sample
from ..prompts import Prompt
from ..settings import Settings
from ..worlds import bounce, judge, render
from ..worlds.report import Share, accuracy, agreement


@dataclass(frozen=True)
class Row:
    """One figure: what was asked, of how many samples, and how often it held."""

    task: str
    output: str
    attribute: str
    share: Share

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "output": self.output,
            "attribute": self.attribute,
            "successes": self.share.successes,
            "total": self.share.total,
            "value": self.share.value,
            "interval": list(self.share.interval),
        }


class Examiner:
    """Renders prompts, runs the pipeline in batches with one prompt a sample, and judges what comes out."""

    def __init__(self, pipe: CoDiPipeline, *, samples: int, seed: int, overrides: Mapping[str, Any]):
        self.pipe, self.samples, self.seed, self.overrides = pipe, samples, seed, dict(overrides)

    def scenes(self, purpose: int, held_out: str = "exclude") -> tuple[bounce.Scenes, torch.Generator]:
        """Scenes of one task and the generator that goes on drawing for it; the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + purpose)
        return bounce.sample_scenes(self.samples, generator=generator, held_out=held_out), generator

    def generate(self, prompts: Sequence[Prompt | None], outputs: Sequence[str], **settings: Any) -> list[Sample]:
        """One sample for each prompt; None prompts with nothing. Sample i uses seed `self.seed + i`."""
        settled = Settings.settled(self.pipe.model.config, outputs, seed=self.seed, count=len(prompts), **{**self.overrides, **settings})
        nothing, _ = self.pipe.condition([])
        rows = [nothing if prompt is None else self.pipe.condition([prompt])[0] for prompt in prompts]
        wanted = torch.cat(rows)  # (B, 1, D)
        guidance = None if all(prompt is None for prompt in prompts) else nothing
        result: list[Sample] = []
        for start in range(0, len(prompts), settled.batch_size):
            seeds = range(self.seed + start, self.seed + min(start + settled.batch_size, len(prompts)))
            result += self.pipe.generate(wanted[start : start + settled.batch_size], guidance, settled, seeds)[0]
        return result


def judged(samples: Sequence[Sample], output: str) -> dict[str, Tensor]:
    """The judge's reading of one output of all samples."""
    if output == "text":
        return judge.judge_text([str(sample.text) for sample in samples])
    media = torch.stack([getattr(sample, output) for sample in samples])
    if output == "audio":
        return judge.judge_audio(media, samples[0].sample_rate)
    return judge.judge_image(media) if output == "image" else judge.judge_video(media)


def rendered_prompts(kind: str, scenes: bounce.Scenes, generator: torch.Generator) -> list[Prompt]:
    """Prompts of one kind that show the scenes; text names all attributes."""
    nuisance = bounce.sample_nuisance(len(scenes), generator=generator)
    if kind == "text":
        return [Prompt("text", caption) for caption in bounce.captions(scenes, generator=generator, full=True)]
    if kind == "audio":
        return [Prompt("audio", (wave, bounce.SAMPLE_RATE)) for wave in render.render_audio(scenes, nuisance)]
    frames = render.render_image(scenes, nuisance) if kind == "image" else render.render_video(scenes, nuisance)
    return [Prompt(kind, one) for one in frames]


HEADLINE = (("text", "image"), ("text", "audio"), ("text", "video"), ("image", "text"), ("audio", "text"), ("video", "text"))
"""Prompt and output of the figures in the README."""


EVERY_PAIR = tuple((kind, output) for kind in MODALITIES for output in MODALITIES)


def single_outputs(examiner: Examiner, held_out: str = "exclude", pairs: Sequence[tuple[str, str]] = EVERY_PAIR) -> Iterator[Row]:
    """Kinds of prompt to outputs, one at a time; attributes that both show."""
    label = "" if held_out == "exclude" else " (held-out scenes)"
    for i, kind in enumerate(MODALITIES):
        for j, output in enumerate(MODALITIES):
            if (kind, output) not in pairs:
                continue
            scenes, generator = examiner.scenes(16 * (held_out != "exclude") + 4 * i + j, held_out)
            samples = examiner.generate(rendered_prompts(kind, scenes, generator), (output,))
            shown = [a for a in bounce.SEEN_IN[kind] if a in bounce.SEEN_IN[output]]
            for attribute, share in accuracy(judged(samples, output), scenes, shown).items():
                yield Row(f"{kind} to {output}{label}", output, attribute, share)


def coherence(examiner: Examiner, outputs: tuple[str, str] = ("video", "audio")) -> Iterator[Row]:
    """Joint generation against independent from the same seeds: do attributes that the prompt leaves open agree?"""
    scenes, generator = examiner.scenes(100)
    ids = bounce.sample_caption_ids(scenes, generator=generator, full=False)
    partial: list[Prompt | None] = [Prompt("text", bounce.ALL_CAPTIONS[i]) for i in ids.tolist()]
    said = bounce.CAPTION_ATTRIBUTES[ids]  # (B, 3), -1 = left open
    for name, prompts in (("empty prompt", [None] * len(partial)), ("partial prompt", partial)):
        for wiring in ("cross", "off"):
            samples = examiner.generate(prompts, outputs, wiring=wiring)
            readings = [judged(samples, output) for output in outputs]
            for k, attribute in enumerate(bounce.ATTRIBUTES):
                if not all(attribute in reading for reading in readings):
                    continue
                rows = torch.ones(len(samples), dtype=torch.bool) if name == "empty prompt" else said[:, k] < 0
                chosen = [{attribute: reading[attribute].cpu()[rows]} for reading in readings]
                for key, share in agreement(chosen[0], chosen[1]).items():
                    label = "joint" if wiring == "cross" else "independent"
                    yield Row(f"{' + '.join(outputs)}, {name}, {label}", "+".join(outputs), key, share)

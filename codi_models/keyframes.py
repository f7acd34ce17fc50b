"""Weights of prompts that change along a run, the frames of a clip, or a batch."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .conditioning import mix
from .errors import CoDiError

OVER = ("steps", "frames", "batch")
"""Along what weights change: the steps of the run, the frames of a clip, the samples of a batch."""


@dataclass(frozen=True)
class Curve:
    """Values at places 0 to 1, straight lines between them, level before the first and after the last."""

    places: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.places or len(self.places) != len(self.values):
            raise CoDiError("a curve needs at least one key: a place from 0 to 1 and a value there")
        if not all(map(math.isfinite, (*self.places, *self.values))):
            raise CoDiError(f"keys of a curve must be finite numbers, got {list(zip(self.places, self.values, strict=True))}")
        if list(self.places) != sorted(set(self.places)) or self.places[0] < 0 or self.places[-1] > 1:
            raise CoDiError(f"places of a curve must ascend from 0 to 1, got {', '.join(f'{p:g}' for p in self.places)}")

    def at(self, place: float) -> float:
        """Value at a place."""
        after = bisect_right(self.places, place)
        if after in (0, len(self.places)):
            return self.values[max(0, after - 1)]
        left, right = self.places[after - 1], self.places[after]
        fraction = (place - left) / (right - left)
        return self.values[after - 1] * (1 - fraction) + self.values[after] * fraction

    @staticmethod
    def parse(text: str) -> Curve | None:
        """ "0:1, 0.5:0.2, 1:0" as a curve; None for an empty text. Raises CoDiError naming what is no key."""
        pairs = []
        for word in filter(None, (w.strip() for w in text.replace(";", ",").split(","))):
            place, colon, value = word.partition(":")
            try:
                pairs.append((float(place), float(value)))
            except ValueError:
                raise CoDiError(f"{word!r} is no key of a curve: write place:value, such as 0:1, 0.5:0.2, 1:0") from None
        return Curve(*map(tuple, zip(*pairs, strict=True))) if pairs else None

    @staticmethod
    def of(values: Sequence[float]) -> Curve:
        """Values spread evenly from 0 to 1."""
        values = [float(value) for value in values]
        return Curve(tuple(i / max(1, len(values) - 1) for i in range(len(values))), tuple(values))


@dataclass(frozen=True)
class WeightedPrompt:
    """One prompt of a mixture: embedding (B, 1, D), weight, the part of the run in which it counts, and a curve that its weight follows."""

    embedding: Tensor
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    curve: Curve | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise CoDiError(f"a prompt from {self.start:g} to {self.end:g} of the run: both are 0 to 1, and start comes before end")

    def weight_at(self, step: float, place: float) -> float:
        """Weight at a part of the run, and at a place along the curve."""
        inside = self.start <= step < self.end
        return self.weight * (1.0 if self.curve is None else self.curve.at(place)) if inside else 0.0


@dataclass(frozen=True)
class Segment:
    """The mixture in a part of the run: prompt (B, 1, D), and for clips what every frame adds to it (B, F, 1, D) or None."""

    start: float
    end: float
    prompt: Tensor
    frames: Tensor | None
    weights: tuple[tuple[float, ...], ...]  # a row for every frame or sample


def blend(prompts: Sequence[WeightedPrompt], method: str, over: str = "steps", count: int = 8) -> list[Segment]:
    """Mixtures that cover the whole run, in order; those that are alike are one.

    over steps: the run is cut where prompts start and end, and where curves are given into `count` equal parts with their middles'
    weights. over frames: `count` frames of a clip. over batch: `count` samples, one row each.
    Raises CoDiError as `mix` does, naming the part of the run, and for batches of prompts that do not go together."""
    if over not in OVER:
        raise CoDiError(f"weights cannot change over {over!r}: give one of {', '.join(OVER)}")
    if not prompts:
        raise CoDiError("nothing to mix: give at least one prompt")
    if count < 1:
        raise CoDiError(f"count {count} must be 1 or more")
    curved = any(p.curve is not None for p in prompts)
    edges = {0.0, 1.0, *(p.start for p in prompts), *(p.end for p in prompts)}
    if curved and over == "steps":
        edges |= {i / count for i in range(count + 1)}
    cuts = sorted(edges)
    rows = max(p.embedding.shape[0] for p in prompts)
    if curved and over == "batch":
        if rows not in (1, count):
            raise CoDiError(f"prompts of a batch of {rows} do not go with weights over a batch of {count}: set count to {rows}")
        rows = count
    if wrong := sorted({p.embedding.shape[0] for p in prompts} - {1, rows}):
        raise CoDiError(f"prompts of batches {wrong[0]} and {rows} do not go together: give single prompts, or as many of each")
    embeddings = [p.embedding.expand(rows, -1, -1) for p in prompts]
    segments: list[Segment] = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        middle = (start + end) / 2
        places = [middle] if over == "steps" or not curved else [i / max(1, count - 1) for i in range(count)]
        weights = tuple(tuple(p.weight_at(middle, place) for p in prompts) for place in places)
        if segments and segments[-1].weights == weights:
            segments[-1] = replace(segments[-1], end=end)
            continue
        try:
            segments.append(_segment(start, end, embeddings, weights, method, over))
        except CoDiError as error:
            raise CoDiError(f"{start * 100:.0f} to {end * 100:.0f} % of the run: {error}") from error
    return segments


def _segment(start: float, end: float, embeddings: list[Tensor], weights: tuple[tuple[float, ...], ...], method: str, over: str) -> Segment:
    if len(set(weights)) == 1:
        return Segment(start, end, mix(embeddings, weights[0], method), None, weights)
    if over == "batch":
        rows = [mix([e[i : i + 1] for e in embeddings], w, method) for i, w in enumerate(weights)]
        return Segment(start, end, torch.cat(rows), None, weights)
    frames = torch.stack([mix(embeddings, w, method) for w in weights], dim=1)  # (B, F, 1, D)
    middle = frames.mean(dim=1)  # what outputs without frames follow
    return Segment(start, end, middle, frames - middle[:, None], weights)


def describe(segments: Sequence[Segment], prompts: Sequence[WeightedPrompt]) -> str:
    """Length of the mixture and its similarity to each prompt, a line for every part of the run, frame or sample that differs."""
    lines = []
    for segment in segments:
        points = segment.prompt[:1] if segment.frames is None else (segment.prompt[:1, None] + segment.frames[:1])[0]
        if segment.frames is None and len(segment.weights) > 1:
            points = segment.prompt
        when = f"{segment.start * 100:.0f}-{segment.end * 100:.0f} %  " if len(segments) > 1 else ""
        for i, point in enumerate(points):  # (1, D)
            near = [torch.cosine_similarity(point, p.embedding[min(i, len(p.embedding) - 1)]).item() for p in prompts]
            which = f"{i + 1}  " if len(points) > 1 else ""
            lines.append(f"{when}{which}norm {float(point.norm()):.3f}  similarity {'  '.join(f'{s:.3f}' for s in near)}")
    return "\n".join(lines)

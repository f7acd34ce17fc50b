"""Figures of an evaluation: shares of samples with their Wilson 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CoDiError
from .world import ATTRIBUTES, BEATS, COLOURS, SHAPES, Scenes

CHANCE = {"shape": 1 / len(SHAPES), "colour": 1 / len(COLOURS), "beats": 1 / len(BEATS)}
"""Share of samples that agree in an attribute when nothing couples them and all values are equally likely."""


def wilson(successes: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a binomial share (Wilson 1927), by default with 95 % confidence; (0, 1) of no samples."""
    if not 0 <= successes <= total:
        raise CoDiError(f"{successes} of {total} is no share; give 0 <= successes <= total.")
    if total == 0:
        return 0.0, 1.0
    share, spread = successes / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # At 0 and at 1 the interval ends exactly there; rounding would put it beside.
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == total else middle + half)


@dataclass(frozen=True)
class Share:
    """`successes` of `total` samples."""

    successes: int
    total: int

    @property
    def value(self) -> float:
        """0 .. 1; NaN of no samples."""
        return self.successes / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.total}"


def _shares(hits: dict[str, Tensor]) -> dict[str, Share]:
    if len(hits) > 1:
        hits = {**hits, "all": torch.stack(list(hits.values())).all(dim=0)}
    return {name: Share(int(hit.sum()), len(hit)) for name, hit in hits.items()}


def _read(judged: Mapping[str, Tensor], attribute: str) -> Tensor:
    if attribute not in judged:
        readable = ", ".join(a for a in ATTRIBUTES if a in judged)
        raise CoDiError(f"The judged medium does not show {attribute!r}; it shows {readable}. Ask for those only.")
    return judged[attribute].cpu()


def accuracy(judged: Mapping[str, Tensor], scenes: Scenes, attributes: Sequence[str] | None = None) -> dict[str, Share]:
    """How often each attribute was read as the scene has it; unreadable (-1) counts as wrong.

    judged: what a judge returned; attributes: those asked for, by default all that were judged. With more than one there is
    also "all": right in every attribute at once. Raises CoDiError where an attribute was not judged or the counts differ.
    """
    attributes = [a for a in ATTRIBUTES if a in judged] if attributes is None else attributes
    return _shares({name: _same(_read(judged, name), getattr(scenes, name).cpu()) for name in attributes})


def agreement(judged_a: Mapping[str, Tensor], judged_b: Mapping[str, Tensor], attributes: Sequence[str] | None = None) -> dict[str, Share]:
    """How often two outputs of one run read alike; a pair of which either is unreadable (-1) does not agree.

    attributes: by default all that both show. "all" and errors as for `accuracy`; `CHANCE` has what uncoupled outputs reach.
    """
    attributes = [a for a in ATTRIBUTES if a in judged_a and a in judged_b] if attributes is None else attributes
    return _shares({name: _same(_read(judged_a, name), _read(judged_b, name)) for name in attributes})


def _same(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        raise CoDiError(f"{len(a)} samples cannot be compared with {len(b)}; give one scene or one sample for each.")
    return (a == b) & (a >= 0)

"""What a section of the evaluation hands over: figures, goals, a table and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ...config import CoDiConfig
from ..report import Share
from ..world import ATTRIBUTES, SEEN_IN
from .cells import Cell, Readings

Read = Callable[[Cell], Readings]


@dataclass(frozen=True)
class Goal:
    """A goal and whether it is met. `value` and `target` in the unit of the text; lower is better where `below`."""

    text: str
    target: float
    value: float
    below: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.below else self.value >= self.target


@dataclass
class Report:
    """The result of a section. plots: file name without suffix -> draws on a matplotlib figure."""

    figures: dict[str, Any]
    text: str  # Markdown
    goals: list[Goal] = field(default_factory=list)
    plots: dict[str, Callable[[Any], None]] = field(default_factory=dict)


class Section(Protocol):
    """A module of this package: one letter of the evaluation."""

    TITLE: str

    def cells(self, scope: Scope) -> list[Cell]:
        """Cells that the section reads."""

    def report(self, read: Read, scope: Scope) -> Report:
        """Figures from filled cells."""


@dataclass(frozen=True)
class Scope:
    """The model under evaluation and the run's own settings."""

    config: CoDiConfig
    overrides: Mapping[str, Any]
    samples: int
    seed: int
    model: Any = None  # codi_models.model.CoDi, for what needs no generation

    @property
    def alignment_guidance(self) -> float:
        """Guidance on the coupling of a run with the settings of this evaluation."""
        return float(self.overrides.get("alignment_guidance", self.config.sampling.alignment_guidance))

    @property
    def order(self) -> str:
        """Order of the outputs with the settings of this evaluation."""
        return str(self.overrides.get("order", self.config.sampling.order))


def shown_by(output: str, determined: Sequence[str]) -> list[str]:
    """Attributes that an output shows among those that the prompts determine."""
    return [a for a in SEEN_IN[output] if a in determined]


def hits(readings: Readings, output: str, attributes: Sequence[str], scene: str = "a") -> dict[str, Tensor]:
    """Attribute -> bool (n,): read as the scene has it."""
    truth = readings.scene(scene)
    return {a: readings.outputs[output][a] == truth[a] for a in attributes}


def share(hit: Tensor) -> Share:
    """Share of True in a bool tensor."""
    return Share(int(hit.sum()), hit.numel())


def pooled(shares: Sequence[Share]) -> Share:
    """Several shares as one."""
    return Share(sum(s.successes for s in shares), sum(s.total for s in shares))


def every(columns: Sequence[Tensor]) -> Tensor:
    """True where all columns (n,) are."""
    return torch.stack(list(columns)).all(dim=0)


def plain(value: Share) -> dict[str, Any]:
    """A share for JSON; of no samples its value is None."""
    known = value.value if value.total else None
    return {"successes": value.successes, "total": value.total, "value": known, "interval": list(value.interval)}


def percent(value: Share) -> str:
    """92 % (83-97)."""
    if not value.total:
        return ""
    low, high = value.interval
    return f"{100 * value.value:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def name_of(kinds: Sequence[str]) -> str:
    """image+audio."""
    return "+".join(kinds)


ATTRIBUTE_COLUMNS = (*ATTRIBUTES, "all")

"""Latent alignment: which output attends to which, how strongly, and when (paper section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from .errors import CoDiError
from .modalities import MODALITIES

WIRINGS = ("cross", "self", "off")
"""cross: each output attends to all the others (the paper). self: each to itself (as published). off: no latent alignment."""

COMBINATIONS = ("attention", "sum")
"""Of several sources. attention: the connectors attend to all of them at once (the paper). sum: a pass for each by itself, and what each
changes in the prediction is added up (the conjunction of Liu et al. 2022): connectors that were trained on pairs see pairs alone."""

Directions = Mapping[tuple[str, str], float]
"""(target, source) -> strength, 0 or more; 1 for a direction that is not named."""


@dataclass(frozen=True)
class Alignment:
    """Settings of latent alignment.

    wiring: one of WIRINGS. strength: of the connectors, 1 as trained, 0 leaves them out; a number or (B,).
    guidance g: weight of the aligned prediction against the one without alignment, see `guidance.combine`; 1 takes no extra pass.
    start, end: the part of the run with alignment, 0 the first timestep and 1 the last. directions: strength of single directions in
    wiring cross, times `strength`. combine: one of COMBINATIONS. Raises CoDiError for values outside of these."""

    wiring: str = "cross"
    strength: float | Tensor = 1.0
    guidance: float = 1.0
    start: float = 0.0
    end: float = 1.0
    directions: Directions = field(default_factory=dict, hash=False)
    combine: str = "attention"

    def __post_init__(self) -> None:
        for what, value, known in (("wiring", self.wiring, WIRINGS), ("combination", self.combine, COMBINATIONS)):
            if value not in known:
                raise CoDiError(f"unknown {what} {value!r}; it is one of {', '.join(known)}")
        numbers = {"alignment guidance": self.guidance} | ({} if isinstance(self.strength, Tensor) else {"alignment": self.strength})
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise CoDiError(f"{name} {number} must be a finite number")
        if not 0 <= self.start <= self.end <= 1:
            raise CoDiError(
                f"alignment from {self.start} to {self.end}: start and end are parts of the run, 0 to 1, and start comes before end"
            )
        for direction, strength in self.directions.items():
            _check_direction(direction, strength)

    @property
    def disabled(self) -> bool:
        """Whether no output attends to any."""
        return self.wiring == "off" or (not isinstance(self.strength, Tensor) and self.strength == 0)

    def off(self) -> Alignment:
        """The same without alignment."""
        return replace(self, wiring="off")

    def at(self, timestep: float) -> Alignment:
        """What is in force at a timestep, 999 the first of a run and 0 the last."""
        done = 1 - timestep / 999
        return self if self.start <= done and (done < self.end or self.end >= 1) else self.off()

    def sources(self, target: str, outputs: Collection[str]) -> dict[str, float]:
        """Source -> strength of what a target attends to; empty where it attends to nothing. A single output has no alignment."""
        if self.disabled or len(outputs) < 2:
            return {}
        if self.wiring == "self":
            return {target: 1.0}
        strengths = {source: float(self.directions.get((target, source), 1.0)) for source in outputs if source != target}
        return {source: strength for source, strength in strengths.items() if strength > 0}


def parse_directions(text: str) -> dict[tuple[str, str], float]:
    """ "video<audio=0.5, audio<video=0": video attends to audio with strength 0.5, audio does not attend to video.

    Raises CoDiError naming what cannot be read."""
    directions: dict[tuple[str, str], float] = {}
    for part in filter(None, (p.strip() for p in text.replace("\n", ",").split(","))):
        names, _, number = part.partition("=")
        target, _, source = (word.strip() for word in names.partition("<"))
        try:
            strength = float(number)
        except ValueError:
            raise CoDiError(f"{part!r} is no direction: write target<source=strength, such as video<audio=0.5") from None
        _check_direction((target, source), strength)
        directions[target, source] = strength
    return directions


def _check_direction(direction: tuple[str, str], strength: float) -> None:
    target, source = direction
    if target not in MODALITIES or source not in MODALITIES or target == source:
        raise CoDiError(f"{target!r} cannot attend to {source!r}: a direction is two different ones of {', '.join(MODALITIES)}")
    if not (math.isfinite(strength) and strength >= 0):
        raise CoDiError(f"{target} attends to {source} with strength {strength}: it must be a finite number, 0 or more")

"""Which output listens to which, how strongly, and when: the settings of latent alignment (paper section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import MODALITIES
from .errors import CoDiError

WIRINGS = ("cross", "self", "off")
"""How outputs listen to each other: to all the others (the paper), to themselves (as published), not at all."""

Pairs = Mapping[tuple[str, str], float]
"""(listener, speaker) -> strength, 0 or more; a pair that is not named has strength 1."""

_LAST_TIMESTEP = 999


@dataclass(frozen=True)
class Coupling:
    """How outputs listen to each other.

    wiring: cross (each output attends to all the others, the paper), self (to itself, as published), off.
    strength: of the connectors, 1 as trained. guidance g: noise = off + g * (on - off).
    start, end: the part of the run in which outputs listen, 0 the first step and 1 the last, by timestep.
    pairs: strength of single directions in wiring cross, times `strength`."""

    wiring: str = "cross"
    strength: float | Tensor = 1.0
    guidance: float = 1.0
    start: float = 0.0
    end: float = 1.0
    pairs: Pairs = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.wiring not in WIRINGS:
            raise CoDiError(f"unknown wiring {self.wiring!r}; it is one of {', '.join(WIRINGS)}")
        numbers = {"alignment guidance": self.guidance} | ({} if isinstance(self.strength, Tensor) else {"alignment": self.strength})
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise CoDiError(f"{name} {number} must be a finite number")
        if not 0 <= self.start <= self.end <= 1:
            raise CoDiError(
                f"alignment from {self.start} to {self.end}: start and end are parts of the run, 0 to 1, and start comes before end"
            )
        for pair, strength in self.pairs.items():
            _check_pair(pair, strength)

    @property
    def silent(self) -> bool:
        """Whether no output listens, whatever the step."""
        return self.wiring == "off" or self.guidance == 0 or (not isinstance(self.strength, Tensor) and self.strength == 0)

    def heard(self, listener: str, outputs: Collection[str]) -> dict[str, float]:
        """Speaker -> strength, of those that an output listens to; empty where it listens to none."""
        if self.silent or len(outputs) < 2:
            return {}
        if self.wiring == "self":
            return {listener: 1.0}
        speakers = {speaker: float(self.pairs.get((listener, speaker), 1.0)) for speaker in outputs if speaker != listener}
        return {speaker: strength for speaker, strength in speakers.items() if strength > 0}

    def at(self, timesteps: Tensor) -> float | Tensor:
        """Strength at timesteps (B,): a number where all samples share it, otherwise (B,)."""
        if self.start <= 0 and self.end >= 1:
            return self.strength
        done = 1 - timesteps.float() / _LAST_TIMESTEP
        inside = (done >= self.start) & ((done < self.end) | (self.end >= 1))  # (B,)
        if not bool(inside.any()):
            return 0.0
        return self.strength if bool(inside.all()) else torch.as_tensor(self.strength, device=inside.device) * inside


def parse_pairs(text: str) -> dict[tuple[str, str], float]:
    """ "video<audio=0.5, audio<video=0": video listens to audio with strength 0.5, audio does not listen to video.

    Raises CoDiError naming what cannot be read."""
    pairs: dict[tuple[str, str], float] = {}
    for part in filter(None, (p.strip() for p in text.replace("\n", ",").split(","))):
        direction, _, number = part.partition("=")
        listener, _, speaker = (word.strip() for word in direction.partition("<"))
        try:
            strength = float(number)
        except ValueError:
            raise CoDiError(f"{part!r} is no direction: write listener<speaker=strength, such as video<audio=0.5") from None
        _check_pair((listener, speaker), strength)
        pairs[listener, speaker] = strength
    return pairs


def _check_pair(pair: tuple[str, str], strength: float) -> None:
    listener, speaker = pair
    if listener not in MODALITIES or speaker not in MODALITIES or listener == speaker:
        raise CoDiError(f"{listener!r} cannot listen to {speaker!r}: a direction is two different ones of {', '.join(MODALITIES)}")
    if not (math.isfinite(strength) and strength >= 0):
        raise CoDiError(f"{listener} listens to {speaker} with strength {strength}: it must be a finite number, 0 or more")

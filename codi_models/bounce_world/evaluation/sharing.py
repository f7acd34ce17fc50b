"""Cells whose readings are part of another cell's: what is made in an earlier turn cannot hear what is made after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...config import CoDiConfig
from .cells import Cell, Readings, settled


class Sharing:
    """Which cells need no run of their own, for a model and the evaluation's settings.

    A caption that is followed by a sound is the very caption that is made without one, from the same seed: made in turn, seven of the
    fifteen sets of outputs come with larger ones."""

    def __init__(self, config: CoDiConfig, overrides: Mapping[str, Any]) -> None:
        self.config, self.overrides = config, overrides
        self._turns: dict[Cell, tuple[tuple[str, ...], ...]] = {}

    def turns(self, cell: Cell) -> tuple[tuple[str, ...], ...]:
        """What is made for a cell, in order: its outputs, and a bridge where they need one."""
        if cell not in self._turns:
            self._turns[cell] = settled(self.config, cell, self.overrides).turns(cell.made)
        return self._turns[cell]

    def begins(self, small: Cell, large: Cell) -> bool:
        """Whether the outputs of `small` are the first turns of `large`, which has more of them."""
        if (small.recipe, small.keep, small.settings) != (large.recipe, large.keep, large.settings):
            return False
        if not set(small.made) < set(large.made):
            return False
        turns = self.turns(small)
        return self.turns(large)[: len(turns)] == turns

    def runs(self, cells: Iterable[Cell]) -> list[Cell]:
        """Cells that have to be run so that all are known, each once."""
        each = list(dict.fromkeys(cells))
        return [cell for cell in each if not any(self.begins(cell, other) for other in each)]

    def part(self, cells: Sequence[Cell], which: int, parts: int, cost: Mapping[Cell, float]) -> list[Cell]:
        """The cells of part `which` (from 1) of `parts` of about the same cost; cells that come with one run stay together."""
        runs = sorted(self.runs(cells), key=lambda cell: cost[cell], reverse=True)[which - 1 :: parts]
        return [cell for cell in dict.fromkeys(cells) if cell in runs or any(self.begins(cell, run) for run in runs)]


def excerpt(cell: Cell, readings: Readings) -> Readings:
    """Readings of a cell out of those of a larger one that it begins."""
    captions = readings.captions if "text" in cell.made else []
    return Readings(readings.scenes, readings.said, {o: readings.outputs[o] for o in cell.made}, captions)

"""Short tables out of the same cells: figures that a README or a first look at a model needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...config import MODALITIES
from ..report import Share
from . import coupling, matrix
from .cells import Cell
from .report import ATTRIBUTE_COLUMNS, Read, Scope, percent, plain, table

HEADLINE = (("text", "image"), ("text", "audio"), ("text", "video"), ("image", "text"), ("audio", "text"), ("video", "text"))
"""Prompt and output of the figures in the README."""

EVERY_PAIR = tuple((kind, output) for kind in MODALITIES for output in MODALITIES)
PAIRS: Mapping[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "headline": (HEADLINE, "exclude"), "single": (EVERY_PAIR, "exclude"), "held-out": (EVERY_PAIR, "only"),
}  # fmt: skip
NAMES = (*PAIRS, "joint")
OUTPUTS = ("video", "audio")
FAMILIES = ("no prompt", "partial caption")

Rows = dict[str, dict[str, Share]]
"""Task -> attribute -> share."""


def cells(view: str) -> list[Cell]:
    """Cells that a view reads."""
    if view in PAIRS:
        pairs, held_out = PAIRS[view]
        return [matrix.cell((kind,), (output,), held_out) for kind, output in pairs]
    recipes = [coupling.FAMILIES[f] for f in FAMILIES]
    return [Cell(r, outputs) for r in recipes for outputs in (OUTPUTS, *((o,) for o in OUTPUTS))]


def rows(view: str, read: Read, scope: Scope) -> Rows:
    """Shares by task and attribute."""
    if view in PAIRS:
        pairs, held_out = PAIRS[view]
        label = "" if held_out == "exclude" else " (held-out scenes)"
        asked = {(kind, output): matrix.cell((kind,), (output,), held_out) for kind, output in pairs}
        return {
            f"{kind} to {output}{label}": matrix.measured(read(cell), cell)["by_output"][output] for (kind, output), cell in asked.items()
        }
    found: Rows = {}
    for family in FAMILIES:
        for label, settings in (("joint", ()), ("independent", None)):
            sides, said = coupling.sides_of(read, coupling.FAMILIES[family], OUTPUTS, settings)
            found[f"{' + '.join(OUTPUTS)} agree, {family}, {label}"] = coupling.agreement(sides, said)
    return found


def markdown(found: Rows, samples: int) -> str:
    """One line a task, one column an attribute, 95 % intervals."""
    lines = [[task, *(percent(shares[a]) if a in shares else "" for a in ATTRIBUTE_COLUMNS)] for task, shares in found.items()]
    return f"{samples} samples a figure, 95 % Wilson intervals.\n\n" + table(["task", *ATTRIBUTE_COLUMNS], lines)


def as_json(found: Rows) -> list[dict[str, Any]]:
    """One object a figure."""
    return [{"task": task, "attribute": a, **plain(s)} for task, shares in found.items() for a, s in shares.items()]

"""A. Any-to-any: every set of inputs to every set of outputs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from ...config import MODALITIES
from ..report import Share
from ..world import ATTRIBUTES
from .asking import of_kinds
from .cells import Cell, Readings
from .report import Goal, Read, Report, Scope, every, hits, name_of, percent, plain, pooled, share, shown_by, table

TITLE = "Any-to-any matrix"

SETS = tuple(names for size in range(1, len(MODALITIES) + 1) for names in combinations(("text", "image", "audio", "video"), size))
"""The 15 sets of modalities, small ones first."""


def ordered(outputs: tuple[str, ...]) -> tuple[str, ...]:
    """In the order of MODALITIES, as runs have them."""
    return tuple(m for m in MODALITIES if m in outputs)


def cell(inputs: tuple[str, ...], outputs: tuple[str, ...], held_out: str = "exclude") -> Cell:
    """The run of one field of the matrix."""
    return Cell(of_kinds(*inputs, held_out=held_out), ordered(outputs))


def cells(scope: Scope) -> list[Cell]:
    """All 225; those of one set of outputs together."""
    return [cell(inputs, outputs) for outputs in SETS for inputs in SETS]


def measured(readings: Readings, asked: Cell) -> dict[str, Any]:
    """Shares of one cell: `by_output` output -> attribute (and "all") -> Share; `cell`: an output shows every attribute that the prompts
    determine, over samples and outputs; `strict`: all outputs of a sample do."""
    by_output, whole = {}, {}
    for output in asked.outputs:
        found = hits(readings, output, shown_by(output, asked.recipe.determined))
        whole[output] = every(list(found.values()))
        by_output[output] = {**{a: share(hit) for a, hit in found.items()}, "all": share(whole[output])}
    return {
        "by_output": by_output,
        "cell": pooled([shares["all"] for shares in by_output.values()]),
        "strict": share(every([*whole.values()])),
    }


def report(read: Read, scope: Scope) -> Report:
    """Matrix of the cells' figures, and each attribute alone."""
    results = {(i, o): measured(read(cell(i, o)), cell(i, o)) for i in SETS for o in SETS}
    values = {key: found["cell"].value for key, found in results.items()}
    strict = {key: found["strict"].value for key, found in results.items()}
    mean, (worst_key, worst) = sum(values.values()) / len(values), min(values.items(), key=lambda item: item[1])
    alone: list[list[object]] = []
    for output in MODALITIES[::-1]:
        for attribute in (*ATTRIBUTES, "all"):
            found = [(key, r["by_output"][output][attribute]) for key, r in results.items() if attribute in r["by_output"].get(output, {})]
            if found:
                low_key, low = min(found, key=lambda item: item[1].value)
                where = f"{name_of(low_key[0])} to {name_of(low_key[1])}"
                alone.append([output, attribute, _mean([s for _, s in found]), percent(low), where, len(found)])
    matrix = [[name_of(i), *(f"{100 * values[i, o]:.0f}" for o in SETS)] for i in SETS]
    text = "\n".join([
        "Percent of outputs that show every attribute which the prompts determine (an output counts as wrong if one of them is). "
        "Rows: prompts, all of one scene, mixed with equal weights. Columns: outputs, generated together.", "",
        table(["from / to", *(name_of(o) for o in SETS)], matrix), "",
        f"Mean of the 225 cells {100 * mean:.1f} %, worst {100 * worst:.1f} % ({name_of(worst_key[0])} to {name_of(worst_key[1])}, "
        f"95 % interval {percent(results[worst_key]['cell'])}). All outputs of a sample right at once: "
        f"mean {100 * sum(strict.values()) / len(strict):.1f} %, worst {100 * min(strict.values()):.1f} %.", "",
        "Each attribute alone, over all cells that determine it:", "",
        table(["output", "attribute", "mean", "worst cell", "which", "cells"], alone),
    ])  # fmt: skip
    figures = {"mean": mean, "worst": worst, "cells": [
        {"inputs": list(i), "outputs": list(o), "cell": plain(found["cell"]), "strict": plain(found["strict"]),
         "by_output": {k: {a: plain(s) for a, s in shares.items()} for k, shares in found["by_output"].items()}}
        for (i, o), found in results.items()
    ]}  # fmt: skip
    goals = [Goal("A: mean of the 225 cells, %", 97, 100 * mean), Goal("A: worst of the 225 cells, %", 90, 100 * worst)]

    def draw(figure: Any) -> None:
        from .plots import heatmap

        names = [name_of(s) for s in SETS]
        heatmap(figure, [[100 * values[i, o] for o in SETS] for i in SETS], names, names, "prompts", "outputs", TITLE)

    return Report(figures, text, goals, {"matrix": draw})


def _mean(shares: list[Share]) -> str:
    return f"{100 * sum(s.value for s in shares) / len(shares):.1f} %"

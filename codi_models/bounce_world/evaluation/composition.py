"""D. Composition: shape-colour pairs that no training has seen, against seen ones."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...config import MODALITIES
from . import matrix
from .cells import Cell
from .report import ATTRIBUTE_COLUMNS, Goal, Read, Report, Scope, name_of, percent, plain, pooled, table

TITLE = "Composition on held-out pairs"
PROMPTS = ("text", "image", "audio", "video")
SETS = (*((m,) for m in PROMPTS), PROMPTS)
"""Sets of inputs and of outputs: each modality alone, and all together."""

WHOLE = (("composition", "plain"),)
"""Settings in which prompts are not taken apart into facets."""


def cells(scope: Scope) -> list[Cell]:
    """Held-out scenes, and the same cells of the matrix; single outputs also from prompts that stay whole, for comparison."""
    found = [matrix.cell(i, o, held_out) for held_out in ("only", "exclude") for o in SETS for i in SETS]
    return found + [_whole(i, o) for i, o in whole_pairs(scope)]


def whole_pairs(scope: Scope) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Prompts and single outputs that are generated with whole prompts too; none where this evaluation does that anyway."""
    usual = scope.overrides.get("composition", scope.config.sampling.composition)
    return [(i, o) for o in SETS if len(o) == 1 for i in SETS] if usual != "plain" else []


def _whole(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Cell:
    return dataclasses.replace(matrix.cell(inputs, outputs, "only"), settings=WHOLE)


def report(read: Read, scope: Scope) -> Report:
    """Each output by attribute, and all cells together as a share of the seen scenes' figure."""
    found = {h: {(i, o): matrix.measured(read(matrix.cell(i, o, h)), matrix.cell(i, o, h)) for o in SETS for i in SETS}
             for h in ("only", "exclude")}  # fmt: skip
    total = {h: pooled([r["cell"] for r in results.values()]) for h, results in found.items()}
    ratio = total["only"].value / total["exclude"].value if total["exclude"].successes else 0.0
    whole = {(i, o): matrix.measured(read(_whole(i, o)), _whole(i, o))["cell"] for i, o in whole_pairs(scope)}
    rows: list[list[object]] = []
    for (i, o), result in found["only"].items():
        if len(o) == 1:
            shares = result["by_output"][o[0]]
            seen = found["exclude"][i, o]["by_output"][o[0]]["all"]
            rows.append([f"{name_of(i)} to {o[0]}", *(percent(shares[a]) if a in shares else "" for a in ATTRIBUTE_COLUMNS), percent(seen)])
        else:
            rows.append([f"{name_of(i)} to all four", "", "", "", percent(result["cell"]), percent(found["exclude"][i, o]["cell"])])
        if whole:
            rows[-1].append(percent(whole[i, o]) if (i, o) in whole else "")
    text = "\n".join([
        "Scenes of the six shape-colour pairs that are held out of every training stage.", "",
        table(["task", *ATTRIBUTE_COLUMNS, "all, seen pairs", *(["all, prompts left whole"] if whole else [])], rows), "",
        f"Together {percent(total['only'])} against {percent(total['exclude'])} on seen pairs: {100 * ratio:.1f} % of it.",
    ])  # fmt: skip
    figures = {"ratio": ratio, "held_out": plain(total["only"]), "seen": plain(total["exclude"]), "cells": [
        {"inputs": list(i), "outputs": list(o), "held_out": plain(r["cell"]), "seen": plain(found["exclude"][i, o]["cell"]),
         **({"whole": plain(whole[i, o])} if (i, o) in whole else {}),
         "by_output": {k: {a: plain(s) for a, s in shares.items()} for k, shares in r["by_output"].items()}}
        for (i, o), r in found["only"].items()
    ]}  # fmt: skip

    def draw(figure: Any) -> None:
        from .plots import bars

        outputs = [m for m in MODALITIES if (m,) in SETS]
        series = {label: [pooled([r["cell"] for (_, o), r in found[h].items() if o == (m,)]) for m in outputs]
                  for label, h in (("held-out pairs", "only"), ("seen pairs", "exclude"))}  # fmt: skip
        bars(figure, outputs, series, "outputs that show the prompt, %", TITLE)

    return Report(figures, text, [Goal("D: held-out pairs against seen ones, %", 90, 100 * ratio)], {"composition": draw})

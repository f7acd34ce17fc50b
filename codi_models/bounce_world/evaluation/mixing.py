"""E. Interpolation: where attributes flip between two prompts, which kind of prompt decides what, and what a negative weight removes."""

from __future__ import annotations

import math
from typing import Any

from ...config import MODALITIES
from ..report import Share
from ..world import ATTRIBUTES, SEEN_IN
from .asking import Part, Recipe, of_kinds
from .cells import Cell, Readings
from .report import ATTRIBUTE_COLUMNS, Read, Report, Scope, every, hits, percent, plain, share, shown_by, table

TITLE = "Interpolation and mixtures"

WEIGHTS = tuple(round(0.1 * i, 1) for i in range(11))
REMOVED = (0.0, -0.25, -0.5, -0.75)
OUTPUTS = MODALITIES[::-1]

COMPLEMENT = Recipe((Part("text", says=("beats",)), Part("image")))
CONFLICT = Recipe((Part("text", "a", says=("colour",)), Part("image", "b"), Part("audio", "c")))


def between(weight: float) -> Recipe:
    """Two full captions of scenes that differ in everything, the second with this weight, the first with the rest."""
    parts = (Part("text", "a", weight=round(1 - weight, 3)), Part("text", "b", weight=weight))
    return Recipe(parts)


def without_colour(weight: float) -> Recipe:
    """A full caption, and its colour alone with a negative weight."""
    return Recipe((Part("text"), Part("text", says=("colour",), weight=weight))) if weight else of_kinds("text")


def cells(scope: Scope) -> list[Cell]:
    """Every output alone for all mixtures."""
    recipes = [*map(between, WEIGHTS), COMPLEMENT, CONFLICT, *map(without_colour, REMOVED)]
    return [Cell(recipe, (o,)) for o in OUTPUTS for recipe in recipes]


def flip(values: list[float]) -> float:
    """First weight at which the share (0..1) of the second prompt reaches one half, linearly between the weights; NaN if it never does."""
    for (x, y), (u, v) in zip(zip(WEIGHTS, values, strict=True), zip(WEIGHTS[1:], values[1:], strict=True), strict=False):
        if y < 0.5 <= v:
            return x + (0.5 - y) / (v - y) * (u - x)
    return math.nan


def report(read: Read, scope: Scope) -> Report:
    """Curves of the interpolation; tables of the mixtures."""
    curves: dict[str, dict[str, dict[str, list[Share]]]] = {}
    for o in OUTPUTS:
        for w in WEIGHTS:
            readings = read(Cell(between(w), (o,)))
            for a in SEEN_IN[o]:
                for scene in ("a", "b"):
                    curves.setdefault(o, {}).setdefault(a, {}).setdefault(scene, []).append(share(hits(readings, o, [a], scene)[a]))
    flips = {o: {a: flip([s.value for s in c["b"]]) for a, c in found.items()} for o, found in curves.items()}
    rows: list[list[object]] = [[o, *(_weight(flips[o].get(a)) for a in ATTRIBUTES)] for o in OUTPUTS]
    text = [
        "Two full captions of scenes that differ in everything. Weight of the second at which half of the outputs show it:",
        "",
        table(["output", *ATTRIBUTES], rows),
        'Picture says shape and colour, text says only the beats ("something bounces twice"):',
        "",
    ]
    complement = {o: _complement(read(Cell(COMPLEMENT, (o,))), o) for o in OUTPUTS}
    text.append(
        table(
            ["output", *ATTRIBUTE_COLUMNS],
            [[o, *(percent(c[a]) if a in c else "" for a in ATTRIBUTE_COLUMNS)] for o, c in complement.items()],
        )
    )
    conflict = {o: _conflict(read(Cell(CONFLICT, (o,))), o) for o in OUTPUTS}
    text += [
        "Three prompts that contradict each other, equal weights: text names a colour only, the picture shows another colour and a shape, "
        "the sound a third colour, another shape, and beats. Whose value each output shows:",
        "",
        table(
            ["output", "attribute", "text's", "picture's", "sound's"],
            [[o, a, *(percent(c[a][s]) if s in c[a] else "" for s in "abc")] for o, c in conflict.items() for a in c],
        ),
        'A full caption with weight 1, and its colour alone ("something red") with a negative weight. Outputs that still show:',
        "",
    ]
    removed = {
        (o, w): {a: share(h) for a, h in hits(read(Cell(without_colour(w), (o,))), o, SEEN_IN[o]).items()} for o in OUTPUTS for w in REMOVED
    }
    text.append(
        table(
            ["output", "weight", *(f"the caption's {a}" for a in ATTRIBUTES)],
            [[o, f"{w:g}", *(percent(s[a]) if a in s else "" for a in ATTRIBUTES)] for (o, w), s in removed.items()],
        )
    )
    figures = {
        "weights": list(WEIGHTS),
        "curves": {o: {a: {s: [plain(x) for x in v] for s, v in c.items()} for a, c in found.items()} for o, found in curves.items()},
        "flips": {o: {a: None if math.isnan(w) else w for a, w in found.items()} for o, found in flips.items()},
        "complement": {o: {a: plain(s) for a, s in c.items()} for o, c in complement.items()},
        "conflict": {o: {a: {s: plain(x) for s, x in c[a].items()} for a in c} for o, c in conflict.items()},
        "removed": [{"output": o, "weight": w, **{a: plain(x) for a, x in s.items()}} for (o, w), s in removed.items()],
    }

    def draw(figure: Any) -> None:
        from .plots import curves as panels

        series = {
            o: {f"{a} ({s})": [100 * x.value for x in v] for a, c in found.items() for s, v in c.items()} for o, found in curves.items()
        }
        panels(figure, WEIGHTS, series, "weight of the second caption (b)", "outputs that show it, %", TITLE)

    return Report(figures, "\n".join(text), [], {"interpolation": draw})


def _weight(value: float | None) -> str:
    return "" if value is None else ("never" if math.isnan(value) else f"{value:.2f}")


def _complement(readings: Readings, output: str) -> dict[str, Share]:
    found = hits(readings, output, shown_by(output, COMPLEMENT.determined))
    return {**{a: share(h) for a, h in found.items()}, "all": share(every(list(found.values())))}


def _conflict(readings: Readings, output: str) -> dict[str, dict[str, Share]]:
    """Attribute -> scene -> share, for the prompts that show the attribute."""
    says = {"a": ("colour",), "b": SEEN_IN["image"], "c": SEEN_IN["audio"]}
    return {a: {s: share(hits(readings, output, [a], s)[a]) for s, shown in says.items() if a in shown} for a in SEEN_IN[output]}

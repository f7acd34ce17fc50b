"""B. Coherence: what a prompt leaves open, do outputs of one run decide it alike?

Independent outputs come from the same seeds: nothing crosses between them, so each is what it is when it is generated alone, and its
cell is shared with the other sections. Shuffled pairs take each output from another sample of the joint run: chance, as the joint
run's own spread has it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...order import IN_TURN, TOGETHER
from ..report import Share
from ..world import ATTRIBUTES, BEATS, COLOURS, SEEN_IN, SHAPES
from . import matrix
from .asking import Part, Recipe, of_kinds
from .cells import Cell, Readings
from .report import Goal, Read, Report, Scope, every, name_of, percent, plain, pooled, share, table

TITLE = "Coherence of joint generation"

FAMILIES = {"no prompt": Recipe(), "partial caption": Recipe((Part("text", says=()),)), "still image": of_kinds("image")}
"""Prompts that leave attributes open: everything; whatever the caption does not name; the beats."""

RUNS = ("joint", TOGETHER, IN_TURN, "paper", "independent", "shuffled")
"""Columns of the table; the order that is not `joint`'s has one of its own."""

SUBSETS = tuple(s for s in matrix.SETS if len(s) > 1)
VALUES = {"shape": len(SHAPES), "colour": len(COLOURS), "beats": len(BEATS)}


def subsets(family: str) -> list[tuple[str, ...]]:
    """Sets of outputs of which at least two show something that the prompt leaves open."""
    showing = [m for m in matrix.SETS[-1] if family != "still image" or "beats" in SEEN_IN[m]]
    return [s for s in SUBSETS if set(s) <= set(showing)]


def variants(scope: Scope) -> dict[str, tuple[tuple[str, Any], ...]]:
    """Joint runs: as this evaluation is set; in the other order of outputs; and as in the paper, all together and without guidance on
    the coupling, where that differs from both."""
    other = IN_TURN if scope.order == TOGETHER else TOGETHER
    found: dict[str, tuple[tuple[str, Any], ...]] = {"joint": (), other: (("order", other),)}
    if scope.alignment_guidance != 1:
        found["paper"] = (("alignment_guidance", 1.0), ("order", TOGETHER))
    return found


def cells(scope: Scope) -> list[Cell]:
    """Joint runs of every family, set and variant, and each output alone."""
    found: list[Cell] = []
    for family, recipe in FAMILIES.items():
        sets = subsets(family)
        found += [Cell(recipe, (m,)) for m in dict.fromkeys(m for s in sets for m in s)]
        for name, settings in variants(scope).items():
            found += [Cell(recipe, matrix.ordered(s), settings) for s in sets if name == "joint" or family == "no prompt"]
    return found


Sides = dict[str, dict[str, Tensor]]
"""Output -> attribute -> (n,)."""


def agreement(sides: Sides, said: Tensor) -> dict[str, Share]:
    """How often all outputs that show an attribute read alike in it, over the samples whose prompt leaves it open (said (n, 3) < 0);
    "all": in all such attributes of a sample at once."""
    found: dict[str, Share] = {}
    ok, any_open = torch.ones(len(said), dtype=torch.bool), torch.zeros(len(said), dtype=torch.bool)
    for k, attribute in enumerate(ATTRIBUTES):
        columns = [read[attribute] for read in sides.values() if attribute in read]
        if len(columns) < 2:
            continue
        free = said[:, k] < 0
        alike = every([column == columns[0] for column in columns[1:]] + [columns[0] >= 0])
        if free.any():
            found[attribute] = share(alike[free])
        ok &= alike | ~free
        any_open |= free
    found["all"] = share(ok[any_open])
    return found


def shuffled(sides: Sides) -> Sides:
    """Each output from another sample: the k-th is moved on by k samples."""
    return {o: {a: v.roll(k, 0) for a, v in read.items()} for k, (o, read) in enumerate(sides.items())}


def quality(readings: Readings, output: str) -> dict[str, Any]:
    """An output by itself: `right`, what the prompt says is shown; `readable`, every attribute can be read; `spread`, how many values of
    the open attributes are in use, as a share of those of the world: the exponential of the entropy, mean over attributes."""
    read = readings.outputs[output]
    shown = [(k, a) for k, a in enumerate(ATTRIBUTES) if a in SEEN_IN[output]]
    right = [read[a][readings.said[:, k] >= 0] == readings.said[:, k][readings.said[:, k] >= 0] for k, a in shown]
    spreads = []
    for k, a in shown:
        values = read[a][(readings.said[:, k] < 0) & (read[a] >= 0)]
        if len(values):
            p = torch.bincount(values, minlength=VALUES[a]).double() / len(values)
            spreads.append(math.exp(-float(torch.xlogy(p, p).sum())) / VALUES[a])
    readable = share(every([read[a] >= 0 for _, a in shown]))
    return {"right": share(torch.cat(right)), "readable": readable, "spread": sum(spreads) / len(spreads) if spreads else math.nan}


def sides_of(read: Read, recipe: Recipe, outputs: tuple[str, ...], settings: tuple[tuple[str, Any], ...] | None) -> tuple[Sides, Tensor]:
    """Readings of a joint run; settings None: of the outputs generated alone."""
    runs = {o: read(Cell(recipe, (o,)) if settings is None else Cell(recipe, matrix.ordered(outputs), settings)) for o in outputs}
    return {o: r.outputs[o] for o, r in runs.items()}, next(iter(runs.values())).said


def report(read: Read, scope: Scope) -> Report:
    """Agreement by family, set and variant; quality of every output, joint and alone."""
    from ...training.alignment import PAIRS

    trained = {frozenset(pair) for pair in PAIRS}
    agreements: dict[str, dict[tuple[str, ...], dict[str, dict[str, Share]]]] = {}
    for family, recipe in FAMILIES.items():
        for outputs in subsets(family):
            row: dict[str, dict[str, Share]] = {}
            for name, settings in {**variants(scope), "independent": None}.items():
                if name not in ("joint", "independent") and family != "no prompt":
                    continue
                sides, said = sides_of(read, recipe, outputs, settings)
                row[name] = agreement(sides, said)
                if name == "joint":
                    row["shuffled"] = agreement(shuffled(sides), said)
            agreements.setdefault(family, {})[outputs] = row
    qualities = {
        (family, o): {
            "alone": quality(read(Cell(recipe, (o,))), o),
            "in a pair": quality(read(Cell(recipe, matrix.ordered(next(s for s in subsets(family) if o in s)))), o),
            "with all": quality(read(Cell(recipe, matrix.ordered(subsets(family)[-1]))), o),
        }
        for family, recipe in FAMILIES.items()
        for o in subsets(family)[-1]
    }
    return Report(
        _figures(agreements, qualities),
        _text(agreements, qualities, trained),
        _goals(agreements, trained),
        {"coherence": lambda figure: _draw(figure, agreements["no prompt"])},
    )


def _kind(outputs: tuple[str, ...], trained: set[frozenset[str]]) -> str:
    return (
        ("trained" if frozenset(outputs) in trained else "untrained")
        if len(outputs) == 2
        else ("triple" if len(outputs) == 3 else "all four")
    )


def _goals(agreements: dict, trained: set[frozenset[str]]) -> list[Goal]:
    """Worst set of each kind, no prompt and partial captions together; independent pairs against chance."""
    both = {s: pooled([agreements[f][s]["joint"]["all"] for f in ("no prompt", "partial caption")]) for s in SUBSETS}
    independent = [s for family in agreements.values() for s in _off_chance(family)]
    goals = []
    for text, kinds, target in (
        ("pairs trained together", ("trained",), 95),
        ("untrained pairs", ("untrained",), 90),
        ("triples and all four", ("triple", "all four"), 90),
    ):
        chosen = [v.value for s, v in both.items() if _kind(s, trained) in kinds]
        if chosen:
            goals.append(Goal(f"B: joint agreement in all open attributes, worst of the {text}, %", target, 100 * min(chosen)))
    return [
        *goals,
        Goal("B: independent outputs that agree significantly more or less often than chance, sets", 0, len(independent), below=True),
    ]


def _off_chance(family: dict) -> list[tuple[str, ...]]:
    """Sets whose independent outputs and shuffled pairs have intervals (99.9 %) that do not meet."""
    from ..report import wilson

    def interval(value: Share) -> tuple[float, float]:
        return wilson(value.successes, value.total, 3.29)

    found = []
    for outputs, row in family.items():
        (low, high), (least, most) = interval(row["independent"]["all"]), interval(row["shuffled"]["all"])
        if high < least or most < low:
            found.append(outputs)
    return found


def _figures(agreements: dict, qualities: dict) -> dict[str, Any]:
    return {
        "agreement": [
            {"prompt": family, "outputs": list(outputs), "run": name, **{a: plain(s) for a, s in shares.items()}}
            for family, sets in agreements.items()
            for outputs, row in sets.items()
            for name, shares in row.items()
        ],
        "quality": [
            {
                "prompt": family,
                "output": o,
                "run": name,
                "right": plain(q["right"]),
                "readable": plain(q["readable"]),
                "spread": q["spread"],
            }
            for (family, o), runs in qualities.items()
            for name, q in runs.items()
        ],
    }


def _text(agreements: dict, qualities: dict, trained: set[frozenset[str]]) -> str:
    parts = ["Agreement of all outputs that show an attribute, in attributes that the prompt leaves open.", ""]
    for family, sets in agreements.items():
        names = [n for n in RUNS if n in next(iter(sets.values()))]
        rows: list[list[object]] = []
        for outputs, row in sets.items():
            each = ", ".join(f"{a} {100 * s.value:.0f}" for a, s in row["joint"].items() if a != "all")
            rows.append([name_of(outputs), _kind(outputs, trained), *(percent(row[n]["all"]) for n in names), each])
        parts += [f"**Prompt: {family}**", "", table(["outputs", "", *names, "joint, each attribute, %"], rows)]
    parts += [
        "`together`, `in turn`: in the other order of outputs. `paper`: together, without guidance on the coupling. `independent`: the "
        "same seeds, nothing crosses. `shuffled`: chance.",
        "",
    ]
    rows = []
    for (family, o), runs in qualities.items():
        for name, q in runs.items():
            spread = "" if math.isnan(q["spread"]) else f"{100 * q['spread']:.0f} %"
            rows.append([family, o, name, percent(q["right"]), percent(q["readable"]), spread])
    header = ["prompt", "output", "generated", "shows what the prompt says", "readable", "values in use"]
    return "\n".join([*parts, "Each output by itself, so that agreement is not bought with quality or variety:", "", table(header, rows)])


def _draw(figure: Any, sets: dict) -> None:
    from .plots import bars

    names = [n for n in RUNS if n in next(iter(sets.values()))]
    series = {n: [row[n]["all"] for row in sets.values()] for n in names}
    figure.set_size_inches(12, 5)
    bars(figure, [name_of(s) for s in sets], series, "agreement in all attributes, %", f"{TITLE}, no prompt", 90)

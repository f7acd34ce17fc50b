"""C. Synchrony: how far apart in time are the floor hits of a clip and the notes of its sound?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..report import Share
from . import matrix
from .asking import Recipe, of_kinds
from .cells import Cell
from .coupling import FAMILIES, variants
from .report import Goal, Read, Report, Scope, plain, share, table

TITLE = "Synchrony of clip and sound"
OUTPUTS = ("video", "audio")
PROMPTS = {"no prompt": FAMILIES["no prompt"], "still image": FAMILIES["still image"], "full caption": of_kinds("text")}
CLOSE = 0.04  # seconds


def cells(scope: Scope) -> list[Cell]:
    """Joint runs, and clip and sound alone."""
    found = []
    for name, recipe in PROMPTS.items():
        found += [Cell(recipe, (o,)) for o in OUTPUTS]
        found += [Cell(recipe, OUTPUTS, s) for v, s in variants(scope).items() if v == "joint" or name == "no prompt"]
    return found


def distances(hits: Tensor, onsets: Tensor) -> Tensor:
    """Times (n, k) and (n, m) in seconds, NaN where there are fewer -> (n,): the mean distance of every event from the nearest of the other
    kind, both ways; infinite where a sample lacks either."""
    apart = (hits[:, :, None] - onsets[:, None]).abs().nan_to_num(nan=math.inf)  # (n, k, m)
    there, back = apart.min(dim=2).values, apart.min(dim=1).values
    known = torch.cat([~hits.isnan(), ~onsets.isnan()], dim=1)
    nearest = torch.cat([there, back], dim=1)  # (n, k + m)
    mean = torch.where(known, nearest, 0).sum(dim=1) / known.sum(dim=1).clamp(min=1)
    return torch.where(known.any(dim=1), mean, math.inf)


def median(values: Tensor) -> tuple[float, float, float]:
    """Median of (n,) and its 95 % interval by order statistics."""
    ordered = values.sort().values.tolist()
    n = len(ordered)
    half = 0.98 * math.sqrt(n)  # 1.96 standard deviations of a binomial of probability 1/2
    low, high = max(0, math.floor((n - 1) / 2 - half)), min(n - 1, math.ceil((n - 1) / 2 + half))
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    return middle, ordered[low], ordered[high]


def measured(read: Read, recipe: Recipe, settings: tuple[tuple[str, Any], ...] | None) -> tuple[Tensor, Tensor]:
    """Distances (n,) of a run, and of its clips with the sounds of the next sample. settings None: clip and sound generated alone."""
    runs = [read(Cell(recipe, (o,)) if settings is None else Cell(recipe, matrix.ordered(OUTPUTS), settings)) for o in OUTPUTS]
    hits, onsets = (run.outputs[o]["times"] for run, o in zip(runs, OUTPUTS, strict=True))
    return distances(hits, onsets), distances(hits, onsets.roll(1, 0))


def report(read: Read, scope: Scope) -> Report:
    """Medians by prompt and kind of run."""
    found: dict[tuple[str, str], Tensor] = {}
    for prompt, recipe in PROMPTS.items():
        for name, settings in {**variants(scope), "independent": None}.items():
            if name not in ("joint", "independent") and prompt != "no prompt":
                continue
            found[prompt, name], mixed = measured(read, recipe, settings)
            if name == "joint":
                found[prompt, "shuffled"] = mixed
    rows: list[list[object]] = []
    figures = []
    for (prompt, name), values in found.items():
        middle, low, high = median(values)
        close: Share = share(values <= CLOSE)
        rows.append([prompt, name, _seconds(middle), f"{_seconds(low)} to {_seconds(high)}", f"{100 * close.value:.0f} %"])
        figures.append(
            {
                "prompt": prompt,
                "run": name,
                "median": _number(middle),
                "interval": [_number(low), _number(high)],
                "close": plain(close),
                "distances": [_number(round(v, 4)) for v in values.tolist()],
            }
        )
    text = "\n".join(
        [
            "Mean distance of every floor hit from the nearest note and of every note from the nearest hit, in s; median over samples.",
            "",
            table(["prompt", "run", "median", "95 % interval", f"at most {CLOSE} s"], rows),
        ]
    )
    goals = [Goal(f"C: joint median, {prompt}, s", CLOSE, median(found[prompt, "joint"])[0], below=True) for prompt in PROMPTS]

    def draw(figure: Any) -> None:
        from .plots import distributions

        series = {f"{name}, {prompt}": values.tolist() for (prompt, name), values in found.items() if prompt == "no prompt"}
        distributions(figure, series, "distance between hits and notes, s", TITLE, 0.4)

    return Report({"rows": figures}, text, goals, {"synchrony": draw})


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _seconds(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "no events"

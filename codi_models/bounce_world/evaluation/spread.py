"""G. Spread: place, size, background, loudness and detune of generated samples against the world's own, as the judge measures both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...config import MODALITIES
from .. import world as bounce
from ..judge import NUISANCE_IN, judge_audio, judge_image, judge_video
from . import matrix
from .asking import rendered, stream
from .cells import Cell, stacked
from .report import Goal, Read, Report, Scope, table

TITLE = "Spread of what a scene leaves open"
NAMES = {"x": "place", "radius": "size", "grey": "background", "peak": "loudness", "detune": "detune"}
WORLD_SAMPLES = 288  # of each medium, four of each scene
ALLOWED = 30.0  # percent

RUNS = {
    "each alone, all prompts": lambda output: [matrix.cell(i, (output,)) for i in matrix.SETS],
    "each alone, captions": lambda output: [matrix.cell(("text",), (output,))],
    "all four together, captions": lambda output: [matrix.cell(("text",), matrix.SETS[-1])],
}


def cells(scope: Scope) -> list[Cell]:
    """Cells of the matrix."""
    return [cell for output in MODALITIES if NUISANCE_IN[output] for chosen in RUNS.values() for cell in chosen(output)]


def world(output: str, seed: int) -> dict[str, Tensor]:
    """Nuisance that the judge reads in the world's own media."""
    generator = torch.Generator().manual_seed(stream(seed, output, "world"))
    table_ = bounce.every_scene()
    media = rendered(output, table_[torch.arange(WORLD_SAMPLES) % len(table_)], generator)
    if output == "audio":
        return judge_audio(media, bounce.SAMPLE_RATE, nuisance=True)
    return (judge_image if output == "image" else judge_video)(media, nuisance=True)


def spread_ratio(made: Tensor, true: Tensor, *, resamples: int = 400) -> tuple[float, float, float]:
    """Standard deviation of `made` (n,) over that of `true` (m,), unreadable ones left out, and its 95 % bootstrap interval."""
    made, true = made[~made.isnan()], true[~true.isnan()]
    if len(made) < 2:
        return 0.0, 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    drawn = [v[torch.randint(len(v), (resamples, len(v)), generator=generator)].std(dim=1) for v in (made, true)]
    ratios = (drawn[0] / drawn[1].clamp(min=1e-12)).sort().values
    ratio = float(made.std() / true.std().clamp(min=1e-12))
    return ratio, float(ratios[int(0.025 * resamples)]), float(ratios[int(0.975 * resamples) - 1])


def report(read: Read, scope: Scope) -> Report:
    """Ratio of the standard deviations and quantiles, by output and kind of run."""
    rows: list[list[object]] = []
    figures = []
    for output in (m for m in MODALITIES if NUISANCE_IN[m]):
        true = world(output, scope.seed)
        for label, chosen in RUNS.items():
            made = stacked([read(cell) for cell in chosen(output)]).outputs[output]
            for name in NUISANCE_IN[output]:
                ratio, low, high = spread_ratio(made[name], true[name])
                figures.append(
                    {
                        "output": output,
                        "nuisance": NAMES[name],
                        "run": label,
                        "ratio": ratio,
                        "interval": [low, high],
                        "samples": int((~made[name].isnan()).sum()),
                        "made": _quantiles(made[name]),
                        "world": _quantiles(true[name]),
                    }
                )
                rows.append([output, NAMES[name], label, f"{ratio:.2f} ({low:.2f}-{high:.2f})", _range(made[name]), _range(true[name])])
    off = [abs(100 * f["ratio"] - 100) for f in figures if f["run"] == next(iter(RUNS))]  # type: ignore[operator]
    text = "\n".join(
        [
            "Standard deviation over samples as a share of the world's, and the middle 90 % of both. Measured by the judge on both sides, "
            "so that its own error counts alike. Place and size in pixels, background and loudness 0..1, detune as a factor.",
            "",
            table(["output", "", "run", "spread / world's", "generated, 5 to 95 %", "world, 5 to 95 %"], rows),
        ]
    )
    goals = [Goal("G: largest deviation of a spread from the world's, each output alone, %", ALLOWED, max(off), below=True)]
    return Report({"rows": figures}, text, goals, {"spread": lambda figure: _draw(figure, figures)})


def _quantiles(values: Tensor) -> list[float] | None:
    known = values[~values.isnan()]
    return [round(float(q), 4) for q in known.quantile(torch.tensor([0.05, 0.5, 0.95]))] if len(known) else None


def _range(values: Tensor) -> str:
    found = _quantiles(values)
    return f"{found[0]:.3g} to {found[2]:.3g}" if found else ""


def _draw(figure: Any, figures: list[dict[str, Any]]) -> None:
    axes = figure.add_subplot()
    from .plots import COLOURS

    names = list(dict.fromkeys((f["output"], f["nuisance"]) for f in figures))
    for k, run in enumerate(RUNS):
        chosen = [f for f in figures if f["run"] == run]
        at = [names.index((f["output"], f["nuisance"])) + 0.2 * (k - 1) for f in chosen]
        values = [f["ratio"] for f in chosen]
        spread = [
            [v - min(v, f["interval"][0]) for v, f in zip(values, chosen, strict=True)],
            [max(v, f["interval"][1]) - v for v, f in zip(values, chosen, strict=True)],
        ]
        axes.errorbar(at, values, yerr=spread, fmt="o", label=run, color=COLOURS[k], linewidth=1)
    axes.axhspan(1 - ALLOWED / 100, 1 + ALLOWED / 100, color="#dddddd", zorder=0)
    axes.set_xticks(range(len(names)), [f"{o}\n{n}" for o, n in names], fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("standard deviation / world's")
    axes.set_title(TITLE)
    axes.legend(fontsize=8)

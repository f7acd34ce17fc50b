"""Plots of the evaluation, drawn without a display."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import whole_file
from ..report import Share

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")


def save(path: Path, draw: Callable[[Any], None]) -> None:
    """Draw on a fresh figure and write it as PNG. Raises CoDiError where the folder cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def heatmap(
    figure: Any, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], down: str, across: str, title: str
) -> None:
    """Percentages as a coloured table."""
    figure.set_size_inches(2.5 + 0.55 * len(columns), 2.2 + 0.42 * len(rows))
    axes = figure.add_subplot()
    axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value == value:
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_title(title)


def bars(
    figure: Any, groups: Sequence[str], series: Mapping[str, Sequence[Share]], label: str, title: str, goal: float | None = None
) -> None:
    """Shares in percent with their intervals, one group of bars for each name."""
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for k, (name, shares) in enumerate(series.items()):
        at = [i + (k - (len(series) - 1) / 2) * width for i in range(len(groups))]
        values = [100 * s.value if s.total else 0.0 for s in shares]
        spread = [[v - 100 * s.interval[0] if s.total else 0.0 for v, s in zip(values, shares, strict=True)],
                  [100 * s.interval[1] - v if s.total else 0.0 for v, s in zip(values, shares, strict=True)]]  # fmt: skip
        axes.bar(at, values, width, label=name, color=COLOURS[k % len(COLOURS)], yerr=spread, error_kw={"linewidth": 0.8})
    axes.set_xticks(
        range(len(groups)), groups, rotation=30 if max(map(len, groups)) > 8 else 0, ha="right" if max(map(len, groups)) > 8 else "center"
    )
    if goal is not None:
        axes.axhline(goal, color="black", linewidth=0.8, linestyle=":", label=f"goal {goal:.0f} %")
    axes.set_ylim(0, 105)
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.legend(fontsize=8)


def curves(
    figure: Any, x: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]], across: str, label: str, title: str
) -> None:
    """One panel a name, one curve a series."""
    figure.set_size_inches(3.2 * len(panels) + 0.6, 3.6)
    first = None
    for k, (name, series) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), k + 1, sharey=first)
        first = first or axes
        for j, (key, values) in enumerate(series.items()):
            dashed = key.endswith("(b)")
            axes.plot(x, values, label=key, color=COLOURS[(j // 2 if any(n.endswith("(b)") for n in series) else j) % len(COLOURS)],
                      linestyle="--" if dashed else "-", marker=".")  # fmt: skip
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(across)
        axes.set_ylim(-3, 103)
        if k == 0:
            axes.set_ylabel(label)
            axes.legend(fontsize=7)
    figure.suptitle(title)


def distributions(figure: Any, series: Mapping[str, Sequence[float]], across: str, title: str, limit: float) -> None:
    """Share of samples at or below each value."""
    axes = figure.add_subplot()
    for k, (name, values) in enumerate(series.items()):
        ordered = sorted(min(v, 10 * limit) for v in values)
        steps = [100 * (i + 1) / len(ordered) for i in range(len(ordered))]
        axes.step([0.0, *ordered], [0.0, *steps], where="post", label=name, color=COLOURS[k % len(COLOURS)])
    axes.set_xlim(0, limit)
    axes.set_ylim(0, 102)
    axes.set_xlabel(across)
    axes.set_ylabel("samples, %")
    axes.set_title(title)
    axes.legend(fontsize=8)

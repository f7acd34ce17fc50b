"""Plots of the evaluation, drawn without a display."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import whole_file

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


def heatmap(figure: Any, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """Shares (0..1) as a coloured table of percentages."""
    figure.set_size_inches(2.5 + 0.6 * len(columns), 2.2 + 0.42 * len(rows))
    axes = figure.add_subplot()
    axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value == value:
                axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8)
    axes.set_title(title)


def curves(figure: Any, x: Sequence[float], series: Mapping[str, Sequence[float]], across: str, label: str, title: str) -> None:
    """One curve a series."""
    axes = figure.add_subplot()
    for k, (name, values) in enumerate(series.items()):
        axes.plot(x, values, label=name, color=COLOURS[k % len(COLOURS)], marker=".")
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.legend(fontsize=8)

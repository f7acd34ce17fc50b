"""F. Completion: one output is kept from a scene of the world and the others are generated to fit it, with no prompt at all."""

from __future__ import annotations

from typing import Any

from ..report import Share
from ..world import SEEN_IN
from . import matrix
from .asking import Recipe
from .cells import Cell
from .report import ATTRIBUTE_COLUMNS, Goal, Read, Report, Scope, every, hits, name_of, percent, plain, share, table

TITLE = "Completion through latent alignment alone"

KINDS = ("text", "image", "audio", "video")
TASKS = (*(((kept,), made) for kept in KINDS for made in KINDS if kept != made), (("audio", "video"), "text"))
"""What is kept and what is made."""

ASKED = ((("video",), "audio"), (("audio",), "video"), (("audio", "video"), "text"))
"""Sound for a clip, clip for a sound, caption for both: those that the goal is about."""


def cell(kept: tuple[str, ...], made: str) -> Cell:
    """The run of one task."""
    return Cell(Recipe(), matrix.ordered((*kept, made)), keep=matrix.ordered(kept))


def cells(scope: Scope) -> list[Cell]:
    """All tasks."""
    return [cell(kept, made) for kept, made in TASKS]


def determined(kept: tuple[str, ...], made: str) -> list[str]:
    """Attributes that the kept outputs show and the made one can."""
    return [a for a in SEEN_IN[made] if any(a in SEEN_IN[k] for k in kept)]


def report(read: Read, scope: Scope) -> Report:
    """How often what is made shows what is kept."""
    from ...training.alignment import PAIRS

    trained = {frozenset(pair) for pair in PAIRS}
    results: dict[tuple[tuple[str, ...], str], dict[str, Share]] = {}
    for kept, made in TASKS:
        found = hits(read(cell(kept, made)), made, determined(kept, made))
        results[kept, made] = {**{a: share(h) for a, h in found.items()}, "all": share(every(list(found.values())))}
    rows = []
    for (kept, made), shares in results.items():
        pair = "" if len(kept) > 1 else ("trained" if frozenset((*kept, made)) in trained else "untrained")
        rows.append([name_of(kept), made, pair, *(percent(shares[a]) if a in shares else "" for a in ATTRIBUTE_COLUMNS)])
    text = "\n".join(
        [
            "The kept output is a sample of the world, heard clean; the other starts from noise. Share that shows what the kept one shows.",
            "",
            table(["kept", "made", "pair", *ATTRIBUTE_COLUMNS], rows),
        ]
    )
    goals = [Goal(f"F: {made} for {name_of(kept)}, %", 90, 100 * results[kept, made]["all"].value) for kept, made in ASKED]
    figures = {
        "tasks": [
            {"kept": list(kept), "made": made, **{a: plain(s) for a, s in shares.items()}} for (kept, made), shares in results.items()
        ]
    }

    def draw(figure: Any) -> None:
        from .plots import bars

        bars(
            figure,
            [f"{name_of(k)} to {m}" for k, m in results],
            {"all attributes": [s["all"] for s in results.values()]},
            "fits, %",
            TITLE,
            90,
        )

    return Report(figures, text, goals, {"completion": draw})

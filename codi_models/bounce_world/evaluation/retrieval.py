"""H. Retrieval in the shared space between all pairs of modalities, of which training saw only those with text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...model import CoDi
from ...prompts import encode_prompt
from .. import world as bounce
from ..report import Share
from .asking import as_rows, rendered_prompts, stream
from .cells import Cell
from .report import Goal, Read, Report, Scope, every, percent, plain, pooled, share, table

TITLE = "Retrieval in the shared space"
KINDS = ("text", "image", "audio", "video")


def cells(scope: Scope) -> list[Cell]:
    """Nothing is generated."""
    return []


def rounds(samples: int) -> int:
    """How often each of the 72 scenes is asked for: at least as many queries as a cell has samples, at most eight of each scene."""
    return min(8, -(-samples // 8))


def embeddings(model: CoDi, kind: str, times: int, seed: int) -> Tensor:
    """(times, 72, D): every scene in one kind of medium, with fresh nuisance each time."""
    generator = torch.Generator().manual_seed(stream(seed, kind, "retrieval"))
    scenes = bounce.every_scene()
    rows = [torch.cat([encode_prompt(model, p)[:, 0] for p in rendered_prompts(kind, scenes, generator)]) for _ in range(times)]
    return torch.stack(rows).float().cpu()


def recall(queries: Tensor, gallery: Tensor, kind: str, other: str) -> dict[str, Share]:
    """Recall at 1 of queries in galleries, both (t, 72, D): the nearest shows each attribute that both media show, or "all" of them."""
    truth = as_rows(bounce.every_scene())  # (72, 3)
    nearest = (queries @ gallery.mT).argmax(dim=2)  # (t, 72)
    right = truth[nearest] == truth  # (t, 72, 3)
    columns = {
        a: right[..., k].flatten() for k, a in enumerate(bounce.ATTRIBUTES) if a in bounce.SEEN_IN[kind] and a in bounce.SEEN_IN[other]
    }
    return {**{a: share(v) for a, v in columns.items()}, "all": share(every(list(columns.values())))}


def report(read: Read, scope: Scope) -> Report:
    """Recall at 1 from every modality to every other."""
    times = rounds(scope.samples)
    embedded = {kind: embeddings(scope.model, kind, times, scope.seed) for kind in KINDS}
    found = {(a, b): recall(embedded[a], embedded[b], a, b) for a in KINDS for b in KINDS if a != b}
    held = torch.tensor([(bounce.SHAPES[s], bounce.COLOURS[c]) in bounce.HELD_OUT for s, c, _ in as_rows(bounce.every_scene()).tolist()])
    seen = {key: "trained" if "text" in key else "never trained" for key in found}
    rows = [
        [f"{a} to {b}", seen[a, b], *(percent(f[n]) if n in f else "" for n in (*bounce.ATTRIBUTES, "all"))] for (a, b), f in found.items()
    ]
    total = {name: pooled([f["all"] for key, f in found.items() if seen[key] == name]) for name in ("trained", "never trained")}
    text = "\n".join([
        f"Recall at 1 among the 72 scenes ({int(held.sum())} of them of held-out pairs), {times} times each: the nearest neighbour in the "
        "other modality shows the attributes that both show.", "",
        table(["from / to", "pair", *bounce.ATTRIBUTES, "all"], rows),
        "Together: " + ", ".join(f"{name} {percent(s)}" for name, s in total.items()) + ".",
    ])  # fmt: skip
    figures = {"pairs": [{"from": a, "to": b, "pair": seen[a, b], **{n: plain(s) for n, s in f.items()}} for (a, b), f in found.items()],
               "together": {name: plain(s) for name, s in total.items()}}  # fmt: skip
    worst = {name: min(f["all"].value for key, f in found.items() if seen[key] == name) for name in total}
    goals = [Goal("H: recall at 1, trained pairs together, %", 95, 100 * total["trained"].value),
             Goal("H: recall at 1, pairs never trained together, %", 85, 100 * total["never trained"].value),
             Goal("H: recall at 1, worst trained pair, %", 95, 100 * worst["trained"]),
             Goal("H: recall at 1, worst pair never trained, %", 85, 100 * worst["never trained"])]  # fmt: skip

    def draw(figure: Any) -> None:
        from .plots import heatmap

        values = [[100 * found[a, b]["all"].value if a != b else float("nan") for b in KINDS] for a in KINDS]
        heatmap(figure, values, KINDS, KINDS, "query", "found among", TITLE)

    return Report(figures, text, goals, {"retrieval": draw})

"""What is evaluated: each section asks for cells and makes a table, figures and goals of their readings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ...conditioning import encode_prompt
from ..report import Share
from ..world import ATTRIBUTES, SEEN_IN
from . import plots
from .cells import Cell, Part, Readings, Runner, draw_scenes, media

OUTPUTS = ("image", "video", "audio", "text")
TRAINED = (("image", "text"), ("audio", "text"), ("audio", "video"))
"""Pairs that latent alignment is trained on; all others are composed."""
SETS = tuple(s for size in (2, 3, 4) for s in combinations(OUTPUTS, size))
PARTIAL = (Part("text", says=("colour",)), Part("text", says=("shape",)), Part("text", says=("shape", "beats")))


@dataclass
class Goal:
    """A figure and what is asked of it."""

    text: str
    value: float
    target: float
    below: bool = False  # at most instead of at least

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.below else self.value >= self.target


@dataclass
class Report:
    """What a section found."""

    text: str  # Markdown
    figures: dict[str, Any]
    goals: list[Goal] = field(default_factory=list)
    plots: dict[str, Callable[[Any], None]] = field(default_factory=dict)


def right(readings: Readings, output: str, attributes: Sequence[str], scene: str = "a") -> Tensor:
    """Whether an output shows all these attributes of the scene, bool (n,)."""
    asked = readings.scene(scene)
    return torch.stack([readings.outputs[output][a] == getattr(asked, a) for a in attributes]).all(0)


def agree(readings: Readings, outputs: Sequence[str]) -> Tensor:
    """Whether outputs show the same in every attribute that two or more of them show, bool (n,); what cannot be read does not agree."""
    good = []
    for a in ATTRIBUTES:
        read = [readings.outputs[o][a] for o in outputs if a in SEEN_IN[o]]
        if len(read) > 1:
            good += [(value == read[0]) & (value >= 0) for value in read]
    return torch.stack(good).all(0)


def share(hits: Tensor) -> Share:
    return Share(int(hits.sum()), len(hits))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def names(outputs: Sequence[str]) -> str:
    return "+".join(outputs)


def matrix(runner: Runner) -> Report:
    """A single prompt of any kind to a single output of any kind: both say the same."""
    shares = {}
    for kind in OUTPUTS:
        for output in OUTPUTS:
            shown = [a for a in SEEN_IN[output] if a in SEEN_IN[kind]]
            shares[kind, output] = share(right(runner.read(Cell((output,), (Part(kind),))), output, shown))
    rows = [[kind, *(f"{100 * shares[kind, o].value:.1f}" for o in OUTPUTS)] for kind in OUTPUTS]
    values = [s.value for s in shares.values()]
    text = "Percent of outputs that show everything that the prompt shows.\n\n" + table(["prompt", *OUTPUTS], rows)
    goals = [Goal("single prompt to single output, mean of 16 cells", sum(values) / 16, 0.99), Goal("... the worst", min(values), 0.95)]
    picture = [[shares[k, o].value for o in OUTPUTS] for k in OUTPUTS]
    draw = lambda figure: plots.heatmap(figure, picture, OUTPUTS, OUTPUTS, "prompt (down) to output (across), % right")  # noqa: E731
    return Report(text, {f"{k} to {o}": s.value for (k, o), s in shares.items()}, goals, {"matrix": draw})


def _joint(runner: Runner, schedule: str) -> tuple[dict[str, dict[str, float]], list[list[str]]]:
    """Agreement of every set of outputs without a prompt, and with partial prompts, where outputs also show what the prompt says."""
    found, rows = {}, []
    for outputs in SETS:
        free = runner.read(Cell(outputs, settings=(("schedule", schedule),)))
        hits = [agree(free, outputs)]
        for part in PARTIAL:
            asked = runner.read(Cell(outputs, (part,), settings=(("schedule", schedule),)))
            told = [right(asked, o, [a for a in part.shows if a in SEEN_IN[o]]) for o in outputs if set(part.shows) & set(SEEN_IN[o])]
            hits.append(agree(asked, outputs) & torch.stack(told).all(0))
        partial = share(torch.cat(hits[1:]))
        found[names(outputs)] = {"no prompt": share(hits[0]).value, "partial prompt": partial.value}
        trained = "trained" if outputs in [tuple(sorted(p, key=OUTPUTS.index)) for p in TRAINED] else ""
        rows.append([names(outputs), trained, str(share(hits[0])), str(partial)])
    return found, rows


def _worst(found: dict[str, dict[str, float]], trained: bool | None) -> float:
    pairs = {names(tuple(sorted(p, key=OUTPUTS.index))) for p in TRAINED}
    return min(v for name, values in found.items() if trained is None or (name in pairs) == trained for v in values.values())


def coherence(runner: Runner) -> Report:
    """Outputs denoised together agree, without a prompt and with one that leaves something open."""
    found, rows = _joint(runner, "together")
    text = table(["outputs", "", "no prompt", "partial prompts"], rows)
    goals = [Goal("together, pairs that training saw, worst", _worst(found, True), 0.95),
             Goal("together, pairs, triples and all four that it did not see, worst", _worst(found, False), 0.85)]  # fmt: skip
    return Report(text, found, goals)


def sequential(runner: Runner) -> Report:
    """The same sets made one output after another."""
    found, rows = _joint(runner, "sequential")
    goal = Goal("made in sequence, worst", _worst(found, None), 0.95)
    return Report(table(["outputs", "", "no prompt", "partial prompts"], rows), found, [goal])


def synchrony(runner: Runner) -> Report:
    """Video and audio made together: does a note sound when the object hits?"""
    readings = runner.read(Cell(("video", "audio")))
    seen, heard = (readings.outputs[o]["times"] for o in ("video", "audio"))
    pairs = [(s[~s.isnan()], h[~h.isnan()]) for s, h in zip(seen, heard, strict=True)]
    apart = torch.tensor([(s - h).abs().max() if len(s) == len(h) and len(s) else math.inf for s, h in pairs])
    figures = {"within 80 ms": (apart <= 0.08).float().mean().item(), "median ms": 1000 * apart.median().item()}
    about = (
        "Largest distance between a hit that is seen and the note that is heard. In this world both follow from the number of beats "
        "alone: outputs that agree in the beats are synchronous.\n\n"
    )
    text = about + table(list(figures), [[f"{v:.3g}" for v in figures.values()]])
    return Report(text, figures)


def mixing(runner: Runner) -> Report:
    """Prompts that each say a part, together; and a sweep between two prompts."""
    colour, rest = Part("text", says=("colour",)), Part("text", says=("shape", "beats"))
    mixtures = {"text + text": (colour, rest), "image + text": (Part("image"), Part("text", says=("beats",))),
                "text + image": (Part("text"), Part("image")), "audio + image": (Part("audio"), Part("image"))}  # fmt: skip
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for name, parts in mixtures.items():
        shown = {a for part in parts for a in part.shows}
        shares = {o: share(right(runner.read(Cell((o,), parts)), o, [a for a in SEEN_IN[o] if a in shown])) for o in OUTPUTS}
        figures[name] = {o: s.value for o, s in shares.items()}
        rows.append([name, *(f"{100 * s.value:.1f}" for s in shares.values())])
    weights = (0.0, 0.25, 0.5, 0.75, 1.0)
    sweep: dict[str, list[float]] = {}
    for output in ("image", "audio"):
        for weight in weights:
            parts = (Part("text", weight=1 - weight or 1e-6), Part("text", scene="b", weight=weight or 1e-6))
            readings = runner.read(Cell((output,), parts))
            for scene in ("a", "b"):
                found = right(readings, output, ["colour"], scene).float().mean().item()
                sweep.setdefault(f"{output}, colour of {scene}", []).append(found)
    figures["sweep"] = sweep
    draw = lambda figure: plots.curves(figure, weights, sweep, "weight of prompt b", "share", "between two prompts")  # noqa: E731
    return Report(table(["prompts", *OUTPUTS], rows), figures, plots={"mixing": draw})


def completion(runner: Runner) -> Report:
    """One output is given, the others are made to fit it."""
    rows, figures = [], {}
    for kind in OUTPUTS:
        others = tuple(o for o in OUTPUTS if o != kind)
        readings = runner.read(Cell(OUTPUTS, given=(kind,)))
        shares = {o: share(right(readings, o, [a for a in SEEN_IN[o] if a in SEEN_IN[kind]])) for o in others}
        figures[kind] = {o: s.value for o, s in shares.items()}
        rows.append([kind, *(f"{100 * shares[o].value:.1f}" if o in shares else "given" for o in OUTPUTS)])
    return Report(table(["given", *OUTPUTS], rows), figures)


def spread(runner: Runner) -> Report:
    """What a prompt leaves open varies as in the world; without a prompt all scenes come."""
    ranges = {"x": (16.0, 48.0), "radius": (8.0, 11.0), "grey": (0.05, 0.20), "detune": (0.99, 1.01), "peak": (0.3, 0.8)}
    rows, figures = [], {}
    for output in OUTPUTS:
        told, free = runner.read(Cell((output,), (Part("text"),))).outputs[output], runner.read(Cell((output,))).outputs[output]
        for name, (low, high) in ranges.items():
            if name in told:
                figures[f"{output}, {name}"] = float(told[name][~told[name].isnan()].std() / ((high - low) / math.sqrt(12)))
        shown = torch.stack([free[a] for a in SEEN_IN[output]], dim=1)
        figures[f"{output}, kinds of scenes of {len(shown)} samples"] = float(len(shown[(shown >= 0).all(1)].unique(dim=0)))
        figures[f"{output}, readable without a prompt"] = float((shown >= 0).all(1).float().mean())
    rows = [[name, f"{value:.2f}"] for name, value in figures.items()]
    return Report("Standard deviations in units of the world's.\n\n" + table(["figure", "value"], rows), figures)


def retrieval(runner: Runner) -> Report:
    """Of 72 scenes, is the nearest in the shared space the same one? Both ways, text against the others."""
    generator = torch.Generator().manual_seed(runner.seed)
    scenes, model = draw_scenes(72, generator)["a"], runner.pipe.model
    found = {kind: torch.cat([encode_prompt(model, p) for p in media(kind, scenes, generator)])[:, 0].cpu() for kind in OUTPUTS}
    figures = {}
    for a, b in combinations(OUTPUTS, 2):
        common = [i for i, name in enumerate(ATTRIBUTES) if name in SEEN_IN[a] and name in SEEN_IN[b]]
        for one, other in ((a, b), (b, a)):
            nearest = (found[one] @ found[other].T).argmax(1)
            figures[f"{one} to {other}"] = float((scenes[nearest][:, common] == scenes[:, common]).all(1).float().mean())
    return Report(table(["retrieval", "right, %"], [[k, f"{100 * v:.1f}"] for k, v in figures.items()]), figures)


def fidelity(runner: Runner) -> Report:
    """How well images, videos and audio are made, whatever they show."""
    image, video, audio = (
        runner.read(Cell((o,), (Part("text"),))).outputs[o][n] for o, n in (("image", "iou"), ("video", "track"), ("audio", "distance"))
    )
    figures = {
        "image: IoU with the ideal shape, median": float(image.median()),
        "... worst tenth": float(image.quantile(0.1)),
        "video: error of the track, px": float(video.nanmean()),
        "audio: log-mel distance, dB": float(audio.nanmean()),
    }
    goals = [Goal(name, value, target, below) for (name, value), (target, below) in
             zip(figures.items(), ((0.96, False), (0.93, False), (0.25, True), (1.8, True)), strict=True)]  # fmt: skip
    text = "Media of the world itself have .975, .953, .01 and .72 (what is left is the measuring).\n\n"
    return Report(text + table(["figure", "value"], [[k, f"{v:.3f}"] for k, v in figures.items()]), figures, goals)


def users_words(runner: Runner) -> Report:
    """Prompts in users' words: as training draws them, and in phrasings that it never saw."""
    rows, figures = [], {}
    for words in ("captions", "users", "held back"):
        shares = {o: share(right(runner.read(Cell((o,), (Part("text", words=words),))), o, SEEN_IN[o])) for o in OUTPUTS}
        figures[words] = {o: s.value for o, s in shares.items()}
        rows.append([words, *(f"{100 * s.value:.1f}" for s in shares.values())])
    worst = min(v for words in ("users", "held back") for v in figures[words].values())
    return Report(table(["words", *OUTPUTS], rows), figures, [Goal("users' words, worst output", worst, 0.95)])


SECTIONS: dict[str, Callable[[Runner], Report]] = {
    "matrix": matrix, "coherence": coherence, "sequential": sequential, "synchrony": synchrony, "mixing": mixing,
    "completion": completion, "spread": spread, "retrieval": retrieval, "fidelity": fidelity, "words": users_words,
}  # fmt: skip

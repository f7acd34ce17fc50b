"""How few evaluations of the model suffice: accuracy and coherence by Bounce World's judge, for every sampler and number of steps.

python benchmarks/samplers.py [--model codi-mini] [--samples 64] [--samplers ddim,unipc,...] [--evaluations 4,6,8,12,16,25,50]
                              [--outputs image,audio,video,text] [--no-joint] [--device auto] [--threads N] [--out runs/samplers]

Accuracy: share of samples that show every attribute that a full sentence names, one output at a time. Coherence: share of joint clips and
sounds without a prompt that agree in every attribute, and what samples generated apart would reach. One evaluation is one call of the
denoiser with all it needs for one step (guidance is in it); every sampler here takes one a step, the published ddim rounds its steps up.
All runs draw the same scenes and the same noise. What was measured is kept in --out and not measured again. Results: a table on stdout,
samplers.md, samplers.json and samplers.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from codi_models.bounce_world.evaluation import plots  # noqa: E402
from codi_models.bounce_world.evaluation.asking import Recipe, of_kinds  # noqa: E402
from codi_models.bounce_world.evaluation.cells import Cell, Store  # noqa: E402
from codi_models.bounce_world.evaluation.coupling import agreement, shuffled  # noqa: E402
from codi_models.bounce_world.evaluation.laboratory import Laboratory  # noqa: E402
from codi_models.bounce_world.evaluation.quality import Examiner  # noqa: E402
from codi_models.bounce_world.evaluation.report import every, hits, percent, plain, pooled, share, shown_by, table  # noqa: E402
from codi_models.bounce_world.report import Share  # noqa: E402
from codi_models.config import MODALITIES  # noqa: E402
from codi_models.diffusion import SAMPLERS, ddim_timesteps  # noqa: E402
from codi_models.errors import CoDiError  # noqa: E402
from codi_models.files import write_text  # noqa: E402
from codi_models.pipeline import CoDiPipeline  # noqa: E402

JOINT = ("video", "audio")
REFERENCE = ("ddim", 50)
COLUMNS = ("all outputs", *MODALITIES, "coherence", "coherence by chance")


def evaluations(sampler: str, steps: int) -> int:
    """Calls of the denoiser that a run with so many steps takes."""
    return len(ddim_timesteps(steps)) if sampler == "ddim" else steps


def settings(sampler: str, steps: int) -> tuple[tuple[str, Any], ...]:
    return (("sampler", sampler), ("steps", steps))


def figures(lab: Laboratory, sampler: str, steps: int, outputs: Sequence[str], joint: bool) -> dict[str, Share]:
    """Column -> share."""
    recipe, found = of_kinds("text"), dict[str, Share]()
    for output in outputs:
        readings = lab.read(Cell(recipe, (output,), settings(sampler, steps)))
        found[output] = share(every(list(hits(readings, output, shown_by(output, recipe.determined)).values())))
    if outputs:
        found["all outputs"] = pooled([found[output] for output in outputs])
    if joint:
        readings = lab.read(Cell(Recipe(), JOINT, settings(sampler, steps)))
        sides = {output: readings.outputs[output] for output in JOINT}
        found["coherence"] = agreement(sides, readings.said)["all"]
        found["coherence by chance"] = agreement(shuffled(sides), readings.said)["all"]
    return found


def fewest(rows: dict[tuple[str, int], dict[str, Share]], columns: Sequence[str]) -> str:
    """The cheapest run that is not worse than the reference, beyond its interval, in any of the columns; and whether the goal is met."""
    floor, most = {c: rows[REFERENCE][c].interval[0] for c in columns}, evaluations(*REFERENCE)
    good = [(evaluations(*run), run[0]) for run, found in rows.items() if all(found[c].value >= floor[c] for c in columns)]
    count, sampler = min(good)  # the reference itself is among them
    goal = "met" if 3 * count <= most else "missed"
    return f"{count} evaluations with {sampler}, {count / most:.0%} of {most} (goal, at most a third: {goal})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="codi-mini")
    parser.add_argument("--samples", type=int, default=64, help="a figure")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--evaluations", default="4,6,8,12,16,25,50", help="numbers of steps")
    parser.add_argument("--outputs", default="image,audio,video,text", help="for accuracy; none to leave it out")
    parser.add_argument("--no-joint", action="store_true", help="leave coherence out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    outputs = [] if args.outputs == "none" else [name.strip() for name in args.outputs.split(",")]
    runs = [(sampler.strip(), int(steps)) for sampler in args.samplers.split(",") for steps in args.evaluations.split(",")]
    runs = list(dict.fromkeys([REFERENCE, *runs]))
    pipe = CoDiPipeline.from_pretrained(args.model, device=args.device, dtype="fp32")
    lab = Laboratory(Examiner(pipe, samples=args.samples, seed=args.seed, overrides={}), Store(args.out / "cells"), log=_log)
    lab.fill([Cell(of_kinds("text"), (output,), settings(*run)) for run in runs for output in outputs])
    if not args.no_joint:
        lab.fill([Cell(Recipe(), JOINT, settings(*run)) for run in runs])
    rows = {run: figures(lab, *run, outputs, not args.no_joint) for run in runs}
    shown = [column for column in COLUMNS if any(column in found for found in rows.values())]
    body = [[run[0], evaluations(*run), *(percent(found[c]) if c in found else "" for c in shown)] for run, found in rows.items()]
    lines = [
        f"{pipe.model.config.name}, {args.samples} samples a figure, 95 % intervals, {platform.machine()}, torch {torch.__version__}\n"
    ]
    lines.append(table(["sampler", "evaluations", *shown], body))
    judged = [column for column in ("all outputs", "coherence") if column in shown]
    for columns in dict.fromkeys((*((column,) for column in judged), tuple(judged))):
        lines.append(f"As good as {REFERENCE[0]} at {evaluations(*REFERENCE)} in {' and '.join(columns)}: {fewest(rows, columns)}.")
    print("\n".join(lines))
    write_text(args.out / "samplers.md", "\n".join(lines) + "\n")
    facts = [
        {"sampler": run[0], "evaluations": evaluations(*run), **{c: plain(s) for c, s in found.items()}} for run, found in rows.items()
    ]
    write_text(
        args.out / "samplers.json", json.dumps({"weights": pipe.model.hashes(), "samples": args.samples, "rows": facts}, indent=1) + "\n"
    )
    plots.save(args.out / "samplers.png", lambda figure: _draw(figure, rows, judged))


def _draw(figure: Any, rows: dict[tuple[str, int], dict[str, Share]], columns: Sequence[str]) -> None:
    figure.set_size_inches(4.5 * len(columns) + 0.5, 4)
    for k, column in enumerate(columns):
        axes = figure.add_subplot(1, len(columns), k + 1)
        for j, sampler in enumerate(dict.fromkeys(name for name, _ in rows)):
            points = sorted((evaluations(*run), 100 * found[column].value) for run, found in rows.items() if run[0] == sampler)
            style = "-" if j < len(plots.COLOURS) else "--"
            axes.plot(*zip(*points, strict=True), style, label=sampler, marker=".", color=plots.COLOURS[j % len(plots.COLOURS)])
        reference = rows[REFERENCE][column]
        axes.axhspan(*(100 * bound for bound in reference.interval), color="black", alpha=0.07, linewidth=0)
        axes.axvline(evaluations(*REFERENCE) / 3, color="black", linewidth=0.8, linestyle=":", label="a third of the published 50")
        axes.set_xscale("log")
        counts = sorted({evaluations(*run) for run in rows})
        axes.set_xticks(counts, [str(count) for count in counts], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("evaluations of the model")
        axes.set_ylabel(f"{column}, % of samples")
        axes.set_ylim(0, 103)
        if not k:
            axes.legend(fontsize=7)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except CoDiError as error:
        sys.exit(f"error: {error}")

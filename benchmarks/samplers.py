"""How few evaluations of the model suffice: accuracy and coherence by Bounce World's judge, for samplers, schedulers and numbers of steps.

python benchmarks/samplers.py [--model codi-mini] [--samples 64] [--runs ddim/ddim_uniform,dpmpp_2m/sgm_uniform,...]
                              [--evaluations 4,6,8,12,16,25,50] [--outputs image,audio,video,text] [--no-joint] [--device auto]
                              [--threads N] [--out runs/samplers]

Accuracy: share of samples that show every attribute that a full sentence names, one output at a time. Coherence: share of joint videos and
audios without a prompt that agree in every attribute, and what samples generated apart would reach. One evaluation is one call of the
denoiser with all it needs for one step (guidance is in it); every sampler takes one a step, the ddim schedulers round their steps up.
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
from codi_models.bounce_world.evaluation.cells import Cell, Part, Readings, Runner  # noqa: E402
from codi_models.bounce_world.evaluation.sections import agree, right, share, table  # noqa: E402
from codi_models.bounce_world.report import Share  # noqa: E402
from codi_models.bounce_world.world import SEEN_IN  # noqa: E402
from codi_models.config import CoDiConfig  # noqa: E402
from codi_models.diffusion import NoiseSchedule, run_sigmas  # noqa: E402
from codi_models.errors import CoDiError  # noqa: E402
from codi_models.files import write_text  # noqa: E402
from codi_models.modalities import MODALITIES  # noqa: E402
from codi_models.pipeline import CoDiPipeline  # noqa: E402

JOINT = ("video", "audio")
REFERENCE = ("ddim/ddim_published", 50)
RUNS = "ddim/ddim_published,ddim/sgm_uniform,dpmpp_2m/sgm_uniform,dpmpp_2m/karras,euler_ancestral/sgm_uniform"
COLUMNS = ("all outputs", *MODALITIES, "coherence", "coherence by chance")

Run = tuple[str, int]
"""sampler/scheduler, and steps."""


def evaluations(run: Run, config: CoDiConfig) -> int:
    """Calls of the denoiser that a run takes."""
    return len(run_sigmas(NoiseSchedule(config.diffusion), run[0].partition("/")[2], run[1])) - 1


def settings(run: Run) -> tuple[tuple[str, Any], ...]:
    """Of an evaluation's cell."""
    sampler, _, scheduler = run[0].partition("/")
    return (("sampler", sampler), ("scheduler", scheduler), ("steps", run[1]))


def shuffled(readings: Readings) -> Readings:
    """Outputs of samples that were generated apart: each with its neighbour's."""
    first, *others = readings.outputs
    apart = {o: {k: v.roll(1, 0) for k, v in readings.outputs[o].items()} for o in others}
    return Readings(readings.scenes, {first: readings.outputs[first], **apart})


def figures(runner: Runner, run: Run, outputs: Sequence[str], joint: bool) -> dict[str, Share]:
    """Column -> share."""
    found: dict[str, Share] = {}
    for output in outputs:
        readings = runner.read(Cell((output,), (Part("text"),), settings=settings(run)))
        found[output] = share(right(readings, output, SEEN_IN[output]))
    if outputs:
        found["all outputs"] = Share(sum(found[o].successes for o in outputs), sum(found[o].total for o in outputs))
    if joint:
        readings = runner.read(Cell(JOINT, settings=settings(run)))
        found["coherence"] = share(agree(readings, JOINT))
        found["coherence by chance"] = share(agree(shuffled(readings), JOINT))
    return found


def fewest(rows: dict[Run, dict[str, Share]], counts: dict[Run, int], columns: Sequence[str]) -> str:
    """The cheapest run that is not worse than the reference, beyond its interval, in any of the columns; and whether the goal is met."""
    floor, most = {c: rows[REFERENCE][c].interval[0] for c in columns}, counts[REFERENCE]
    count, name = min((counts[run], run[0]) for run, found in rows.items() if all(found[c].value >= floor[c] for c in columns))
    goal = "met" if 3 * count <= most else "missed"
    return f"{count} evaluations with {name}, {count / most:.0%} of {most} (goal, at most a third: {goal})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="codi-mini")
    parser.add_argument("--samples", type=int, default=64, help="a figure")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--runs", default=RUNS, help="samplers with their schedulers, separated by commas")
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
    runs = [(name.strip(), int(steps)) for name in args.runs.split(",") for steps in args.evaluations.split(",")]
    runs = list(dict.fromkeys([REFERENCE, *runs]))
    pipe = CoDiPipeline.from_pretrained(args.model, device=args.device, dtype="fp32")
    counts = {run: evaluations(run, pipe.model.config) for run in runs}
    runner = Runner(pipe, args.out / "readings.json.gz", samples=args.samples, seed=args.seed, overrides={}, log=_log)
    rows = {run: figures(runner, run, outputs, not args.no_joint) for run in runs}
    shown = [column for column in COLUMNS if any(column in found for found in rows.values())]
    body = [[run[0], counts[run], *(str(found.get(c, "")) for c in shown)] for run, found in rows.items()]
    lines = [
        f"{pipe.model.config.name}, {args.samples} samples a figure, 95 % intervals, {platform.machine()}, torch {torch.__version__}\n"
    ]
    lines.append(table(["sampler/scheduler", "evaluations", *shown], body))
    judged = [column for column in ("all outputs", "coherence") if column in shown]
    for columns in dict.fromkeys((*((column,) for column in judged), tuple(judged))):
        lines.append(f"As good as {REFERENCE[0]} at {counts[REFERENCE]} in {' and '.join(columns)}: {fewest(rows, counts, columns)}.")
    print("\n".join(lines))
    write_text(args.out / "samplers.md", "\n".join(lines) + "\n")
    facts = [
        {"run": run[0], "evaluations": counts[run], **{c: [s.successes, s.total] for c, s in found.items()}} for run, found in rows.items()
    ]
    write_text(args.out / "samplers.json", json.dumps({**runner.key, "rows": facts}, indent=1) + "\n")
    plots.save(args.out / "samplers.png", lambda figure: _draw(figure, rows, counts, judged))


def _draw(figure: Any, rows: dict[Run, dict[str, Share]], counts: dict[Run, int], columns: Sequence[str]) -> None:
    figure.set_size_inches(4.5 * len(columns) + 0.5, 4)
    for k, column in enumerate(columns):
        axes = figure.add_subplot(1, len(columns), k + 1)
        for name in dict.fromkeys(name for name, _ in rows):
            points = sorted((counts[run], 100 * found[column].value) for run, found in rows.items() if run[0] == name)
            axes.plot(*zip(*points, strict=True), label=name, marker=".")
        axes.axhspan(*(100 * bound for bound in rows[REFERENCE][column].interval), color="black", alpha=0.07, linewidth=0)
        axes.axvline(counts[REFERENCE] / 3, color="black", linewidth=0.8, linestyle=":", label="a third of the published 50")
        axes.set_xscale("log")
        ticks = sorted(set(counts.values()))
        axes.set_xticks(ticks, [str(count) for count in ticks], minor=False)
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

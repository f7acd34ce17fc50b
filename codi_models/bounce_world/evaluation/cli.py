"""`python -m codi_models evaluate`: tables, plots and figures on generated output, judged by measurement; resumable."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...cli.parser import THREADS, Parser, place, whole
from ...errors import CoDiError
from ...files import output_folder, write_text
from ...locks import sole_writer
from .sections import SECTIONS, Report, table

SAMPLES, QUICK_SAMPLES = 72, 4


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. Raises CoDiError for a model, sections or settings that cannot be used."""
    options = _parser().parse_args(argv)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    with sole_writer(output_folder(options.out)):
        _evaluate(options)
    print(f"written to {options.out}")
    return 0


def _evaluate(options: argparse.Namespace) -> None:
    from ...modalities import MODALITIES
    from ...pipeline import CoDiPipeline
    from ...settings import MOST_SAMPLES, Settings
    from .cells import Runner
    from .plots import save

    sections = chosen(options.only)
    samples = options.samples if options.samples is not None else (QUICK_SAMPLES if options.quick else SAMPLES)
    if not 1 <= samples <= MOST_SAMPLES:
        raise CoDiError(f"--samples {samples}: give 1 to {MOST_SAMPLES}")
    names = ("steps", "cfg", "cfg_rescale", "sampler", "scheduler", "wiring", "alignment_guidance")
    overrides = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    pipe = CoDiPipeline.from_pretrained(options.model, device=options.device, dtype="fp32")
    Settings.resolve(pipe.model.config, tuple(MODALITIES), **overrides)  # what is mistyped is told before the first section
    runner = Runner(
        pipe, options.out / "readings.json.gz", samples=samples, seed=options.seed, overrides=overrides, log=lambda s: print(s, flush=True)
    )  # fmt: skip
    reports: dict[str, Report] = {}
    for name in sections:
        print(f"{name}: {SECTIONS[name].__doc__}", flush=True)
        reports[name] = SECTIONS[name](runner)
        print(reports[name].text, flush=True)
        for plot, draw in reports[name].plots.items():
            save(options.out / f"{plot}.png", draw)
    facts = {**runner.key, "model": pipe.model.config.name}
    write_text(
        options.out / "results.json", json.dumps({**facts, "sections": {n: as_json(r) for n, r in reports.items()}}, indent=1) + "\n"
    )
    write_text(options.out / "README.md", page(reports, facts))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m codi_models evaluate", description=__doc__)
    parser.add_argument("--model", default="codi-mini", help="shipped model or folder (default: %(default)s)")
    parser.add_argument("--only", action="append", help="sections, comma-separated: " + ", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SAMPLES} samples a cell")
    parser.add_argument("--samples", type=int, help=f"a cell (default: {SAMPLES})")
    parser.add_argument("--seed", type=whole(0, 2**64 - 1), default=1000, help="of scenes, prompts and noise (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--sampler", help="default: the model's")
    parser.add_argument("--scheduler", help="default: the model's")
    parser.add_argument("--cfg", type=float, help="guidance by the prompt (default: the model's)")
    parser.add_argument("--cfg-rescale", type=float, help="what is taken back of guidance's contrast, 0 to 1 (default: the model's)")
    parser.add_argument("--wiring", help="of latent alignment (default: the model's)")
    parser.add_argument("--alignment-guidance", type=float, help="default: the model's; 1 is the paper")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=whole(1, THREADS), help="CPU threads (default: all)")
    parser.add_argument("--out", type=place, default=Path("docs/evaluation"), help="folder of the results (default: %(default)s)")
    return parser


def chosen(only: Sequence[str] | None) -> list[str]:
    """Names of `--only` in their order; all sections where nothing is chosen. Raises CoDiError for an unknown one."""
    given = [name.strip() for text in only or [] for name in text.split(",") if name.strip()]
    if unknown := [name for name in given if name not in SECTIONS]:
        raise CoDiError(f"--only {unknown[0]}: give some of {', '.join(SECTIONS)}")
    return list(dict.fromkeys(given)) or list(SECTIONS)


def as_json(report: Report) -> dict[str, Any]:
    """Figures and goals, NaN as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return (round(value, 5) if math.isfinite(value) else None) if isinstance(value, float) else value

    goals = [{"text": g.text, "value": g.value, "target": g.target, "at most": g.below, "met": g.met} for g in report.goals]
    return plain({"figures": report.figures, "goals": goals})


def page(reports: dict[str, Report], facts: dict[str, Any]) -> str:
    """The whole evaluation as one Markdown page."""
    settings = ", ".join(f"{k} {v}" for k, v in facts["settings"].items()) or "the model's own settings"
    goals = [
        [g.text, f"{'at most' if g.below else 'at least'} {g.target:g}", f"{g.value:.3g}", "yes" if g.met else "no"]
        for report in reports.values() for g in report.goals
    ]  # fmt: skip
    lines = [
        "# Evaluation", "",
        f"Made by `python -m codi_models evaluate` of {facts['model']}: {facts['samples']} samples a cell, seed {facts['seed']}, "
        f"{settings}. Everything is measured on generated output by Bounce World's judge, which reads attributes by measurement, not by "
        "a learned model; in brackets 95 % intervals. Readings of every sample: `readings.json.gz`.", "",
        table(["goal", "asked", "measured", "met"], goals),
    ]  # fmt: skip
    for name, report in reports.items():
        images = [f"![{name}]({plot}.png)\n" for plot in report.plots]
        lines += [f"## {name.capitalize()}", "", str(SECTIONS[name].__doc__), "", report.text, *images]
    lines += ["## Weights", "", "First 16 hexadecimal digits of SHA-256.", "", table(["file", "hash"], list(facts["weights"].items()))]
    return "\n".join(lines)

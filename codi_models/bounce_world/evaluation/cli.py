"""`python -m codi_models evaluate`: tables, plots and JSON on generated output, judged by measurement; resumable.

Sections: A any-to-any matrix, B coherence, C synchrony, D composition, E interpolation, F completion, G spread, H retrieval;
short tables: headline, single, held-out, joint."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import CoDiError
from ...files import write_text
from . import views
from .cells import Cell, Store, code_version
from .report import Report, Scope, table

SECTIONS = {
    "A": "matrix",
    "B": "coupling",
    "C": "synchrony",
    "D": "composition",
    "E": "mixing",
    "F": "completion",
    "G": "spread",
    "H": "retrieval",
}
"""Letter -> module of this package; each keeps to `report.Section`."""

FULL_SAMPLES, QUICK_SAMPLES = 64, 3
QUICK: dict[str, Any] = {"steps": 10, "sampler": "dpmpp_2m"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. Raises CoDiError for a model, sections or settings that cannot be used."""
    options = _parser().parse_args(argv)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    from ...pipeline import CoDiPipeline
    from .laboratory import Laboratory, duration
    from .quality import Examiner

    wanted = chosen(options.only)
    samples: int = options.samples if options.samples is not None else (QUICK_SAMPLES if options.quick else FULL_SAMPLES)
    if samples < 1:
        raise CoDiError(f"--samples {samples}: give 1 or more")
    names = ("steps", "cfg", "sampler", "wiring", "alignment_guidance", "order", "composition")
    given = {k: getattr(options, k) for k in names if getattr(options, k) is not None}
    overrides = {**(QUICK if options.quick else {}), **given}
    pipe = CoDiPipeline.from_pretrained(options.model, device=options.device, dtype="fp32")
    examiner = Examiner(pipe, samples=samples, seed=options.seed, overrides=overrides)
    scope = Scope(pipe.model.config, overrides, samples, options.seed, pipe.model)
    store = Store(options.cells or options.out / "cells", any_code=options.any_code)
    laboratory = Laboratory(examiner, store, log=lambda line: print(line, flush=True))
    modules = {letter: importlib.import_module(f".{SECTIONS[letter]}", __package__) for letter in wanted if letter in SECTIONS}
    cells: dict[str, list[Cell]] = {letter: module.cells(scope) for letter, module in modules.items()}
    cells |= {view: views.cells(view) for view in wanted if view in views.NAMES}
    if options.estimate:
        missing = laboratory.missing([cell for found in cells.values() for cell in found])
        print(f"{len(missing)} cells of {samples} samples are missing: {duration(laboratory.estimate(missing))} on this machine")
        return 0
    everything = [cell for found in cells.values() for cell in found]
    if len(cells) > 1:
        missing = laboratory.missing(everything)
        print(f"all sections: {len(missing)} cells missing, about {duration(laboratory.estimate(missing))} on this machine", flush=True)
    if options.part:
        mine, parts = part_of(options.part)
        laboratory.fill(laboratory.part(everything, mine, parts))
        print(f"part {options.part} is done; the same command without --part makes the tables once all parts are")
        return 0
    facts = {
        "model": pipe.model.config.name,
        "samples": samples,
        "seed": options.seed,
        "overrides": overrides,
        "quick": bool(options.quick),
        "code": code_version(),
        "machine": platform.machine(),
    }
    short: views.Rows = {}
    for name in wanted:
        print(f"{name}: {modules[name].TITLE if name in modules else 'short table'}", flush=True)
        laboratory.fill(cells[name])
        if name in views.NAMES:
            short |= views.rows(name, laboratory.read, scope)
            continue
        report = modules[name].report(laboratory.read, scope)
        weights = {k: v for cell in cells[name] for k, v in laboratory.prints.whole(cell, overrides).items()}
        seconds = sum(laboratory.read(cell).seconds for cell in dict.fromkeys(cells[name]))
        _write_section(options.out, name, modules[name].TITLE, report, {**facts, "weights": weights, "seconds": round(seconds)})
    if short:
        write_text(options.out / "quality.json", json.dumps({**facts, "rows": views.as_json(short)}, indent=1) + "\n")
        write_text(options.out / "quality.md", views.markdown(short, samples))
        print(views.markdown(short, samples))
    if modules:
        write_text(options.out / "README.md", overview(options.out))
    print(f"written to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m codi_models evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="codi-mini", help="shipped model or folder (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SAMPLES} samples a cell, {QUICK['sampler']} with {QUICK['steps']} steps"
    )
    parser.add_argument("--only", action="append", help="sections or short tables, comma-separated: A to H, " + ", ".join(views.NAMES))
    parser.add_argument("--samples", type=int, help=f"a cell (default: {FULL_SAMPLES})")
    parser.add_argument("--seed", type=int, default=1000, help="of scenes, prompts and noise (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--sampler", help="default: the model's")
    order = """of outputs: together, in turn, or turns such as "video, audio+text" or "(text), video" (default: the model's)"""
    parser.add_argument("--order", help=order)
    parser.add_argument("--cfg", type=float, help="guidance by the prompt (default: the model's)")
    parser.add_argument("--wiring", help="of latent alignment (default: the model's)")
    parser.add_argument("--alignment-guidance", type=float, help="default: the model's; 1 is the paper")
    parser.add_argument("--composition", help="of prompts: plain or facets (default: the model's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation"), help="folder of the results (default: %(default)s)")
    parser.add_argument(
        "--cells", type=Path, help="folder of the finished cells, which are used again (default: cells in the --out folder)"
    )
    parser.add_argument("--any-code", action="store_true", help="use finished cells of other versions of the code, too")
    parser.add_argument("--part", help="K/N: only fill one of N shares of the cells; run N such commands side by side, then one without")
    parser.add_argument("--estimate", action="store_true", help="only say what is missing and how long it takes")
    return parser


def chosen(only: Sequence[str] | None) -> list[str]:
    """Names of `--only` in their order; all sections where nothing is chosen. Raises CoDiError for an unknown one."""
    known = (*SECTIONS, *views.NAMES)
    names = [name.strip() for text in only or [] for name in text.split(",") if name.strip()]
    names = [name.upper() if name.upper() in SECTIONS else name for name in names]
    if unknown := [name for name in names if name not in known]:
        raise CoDiError(f"--only {unknown[0]}: give some of {', '.join(known)}")
    return list(dict.fromkeys(names)) or list(SECTIONS)


def part_of(text: str) -> tuple[int, int]:
    """ "2/3" -> (2, 3). Raises CoDiError for anything else."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise CoDiError(f"--part {text}: give K/N with 1 <= K <= N, such as 1/2")
    return int(number), int(count)


def _write_section(out: Path, letter: str, title: str, report: Report, facts: dict[str, Any]) -> None:
    from .plots import save

    stem = f"{letter}-{SECTIONS[letter]}"
    for name, draw in report.plots.items():
        save(out / f"{letter}-{name}.png", draw)
    goals = [
        {"text": g.text, "target": g.target, "value": g.value if math.isfinite(g.value) else None, "below": g.below, "met": g.met}
        for g in report.goals
    ]
    head = {"section": letter, "title": title, **facts, "goals": goals}
    write_text(out / f"{stem}.json", json.dumps({**head, "figures": report.figures}, indent=1, allow_nan=False) + "\n")
    images = "".join(f"\n![{title}]({letter}-{name}.png)\n" for name in report.plots)
    write_text(out / f"{stem}.md", f"# {letter}. {title}\n\n{_circumstances(head)}\n\n{report.text}\n{images}")


def _circumstances(head: dict[str, Any]) -> str:
    """One line: model, samples, settings."""
    settings = ", ".join(f"{k} {v}" for k, v in head["overrides"].items()) or "the model's own settings"
    return f"{head['model']}, {head['samples']} samples a cell, seed {head['seed']}, {settings}; 95 % intervals in brackets."


def overview(out: Path) -> str:
    """The first page of the folder, from the sections that are there: goals, and a line for each section."""
    found = []
    for letter, module in SECTIONS.items():
        path = out / f"{letter}-{module}.json"
        if path.is_file():
            found.append((f"{letter}-{module}", json.loads(path.read_text(encoding="utf-8"))))
    goals = [
        [
            g["text"],
            f"{'at most' if g['below'] else 'at least'} {g['target']:g}",
            "none" if g["value"] is None else f"{g['value']:.3g}",
            "yes" if g["met"] else "no",
        ]
        for _, data in found
        for g in data["goals"]
    ]
    sections = [
        [
            data["section"],
            f"[{data['title']}]({stem}.md)",
            data["samples"],
            ", ".join(f"{k} {v}" for k, v in data["overrides"].items()),
            "quick" if data["quick"] else "",
        ]
        for stem, data in found
    ]
    hashes: dict[str, set[str]] = {}
    for _, data in found:
        for component, value in data["weights"].items():
            hashes.setdefault(component, set()).add(value)
    lines = [
        "# Evaluation",
        "",
        "Made by `python -m codi_models evaluate`. Everything is measured on generated output by Bounce World's judge, "
        "which reads attributes by measurement, not by a learned model.",
        "",
        table(["goal", "asked", "measured", "met"], goals),
        table(["", "section", "samples a cell", "settings", ""], sections),
        "Weights (first 16 hexadecimal digits of SHA-256 over the tensors):",
        "",
        table(["component", "hash"], [[c, ", ".join(sorted(v))] for c, v in sorted(hashes.items())]),
    ]
    return "\n".join(lines)

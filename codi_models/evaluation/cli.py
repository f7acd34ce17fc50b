"""`python -m codi_models evaluate`: the quality table, as Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..pipeline import CoDiPipeline
from .quality import HEADLINE, Examiner, Row, coherence, single_outputs


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. Raises CoDiError for a model or settings that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m codi_models evaluate", description=__doc__)
    parser.add_argument("--model", default="codi-mini", help="shipped model or folder (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=64, help="per figure (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--sampler")
    parser.add_argument("--alignment-guidance", type=float)
    parser.add_argument("--only", choices=["headline", "single", "held-out", "joint"], action="append", help="part; may be repeated")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation"), help="folder (default: %(default)s)")
    options = parser.parse_args(argv)
    pipe = CoDiPipeline.from_pretrained(options.model, device=options.device, dtype="fp32")
    overrides = {k: getattr(options, k) for k in ("steps", "cfg", "sampler", "alignment_guidance") if getattr(options, k) is not None}
    examiner = Examiner(pipe, samples=options.samples, seed=options.seed, overrides=overrides)
    begin, rows = time.monotonic(), []
    for row in _rows(examiner, options.only or ["single", "held-out", "joint"]):
        rows.append(row)
        print(f"{time.monotonic() - begin:6.0f} s  {row.task:45} {row.attribute:7} {row.share}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"model": pipe.model.config.name, "weights": pipe.model.hashes(), "samples": options.samples,
                             "seed": options.seed, "overrides": overrides, "machine": platform.machine()}  # fmt: skip
    write_text(options.out / "quality.json", json.dumps({**facts, "rows": [row.as_dict() for row in rows]}, indent=1) + "\n")
    write_text(options.out / "quality.md", _markdown(rows, options.samples))
    print(f"written: {options.out / 'quality.md'}, {options.out / 'quality.json'}")
    return 0


def _rows(examiner: Examiner, parts: Sequence[str]) -> Iterator[Row]:
    if "headline" in parts:
        yield from single_outputs(examiner, pairs=HEADLINE)
    if "single" in parts:
        yield from single_outputs(examiner)
    if "joint" in parts:
        yield from coherence(examiner)
    if "held-out" in parts:
        yield from single_outputs(examiner, "only")


def _markdown(rows: Sequence[Row], samples: int) -> str:
    """One line a task, one column an attribute, 95 % intervals."""
    columns = ("shape", "colour", "beats", "all")
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        low, high = row.share.interval
        table.setdefault(row.task, {})[row.attribute] = f"{row.share.value:.0%} ({low:.0%}-{high:.0%})"
    lines = [f"{samples} samples a figure, 95 % Wilson intervals.", "", "| task | " + " | ".join(columns) + " |", "| --- " * 5 + "|"]
    lines += [f"| {task} | " + " | ".join(cells.get(c, "") for c in columns) + " |" for task, cells in table.items()]
    return "\n".join(lines) + "\n"

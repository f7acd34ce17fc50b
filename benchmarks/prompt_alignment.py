"""Outputs that hear each other through the prompt encoders: agreement against cost.

    python benchmarks/prompt_alignment.py --model codi-mini --samples 32 --every 1,2,5,10

Without a prompt, all denoised together. For every set of outputs: the share in which all agree in everything that two of them show, the
share of single outputs that the judge can read in full, and seconds of denoising as a ratio to `off`, run side by side."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from codi_models.bounce_world.evaluation.cells import Cell, Laboratory, Readings  # noqa: E402
from codi_models.bounce_world.evaluation.sections import SETS, agree, names, table  # noqa: E402
from codi_models.bounce_world.world import SEEN_IN  # noqa: E402
from codi_models.pipeline import CoDiPipeline  # noqa: E402


def readable(readings: Readings) -> float:
    """Share of outputs in which everything can be read."""
    return float(torch.cat([torch.stack([read[a] >= 0 for a in SEEN_IN[o]]).all(0) for o, read in readings.outputs.items()]).float().mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="codi-mini")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--every", default="1,2,5,10", help="steps from one reading to the next")
    parser.add_argument("--sets", default="", help="such as image+text,image+audio (default: all)")
    parser.add_argument("--wirings", default="off,prompt", help="of off, prompt, cross")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--sampler")
    parser.add_argument("--strength", type=float)
    parser.add_argument("--start", type=float)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    pipe = CoDiPipeline.from_pretrained(args.model, device="cpu")
    common = {"steps": args.steps, "sampler": args.sampler, "schedule": "together"}
    ways: dict[str, dict] = {}
    hearing = {"wiring": "prompt", "alignment_guidance": 1.0, "alignment": args.strength, "alignment_start": args.start}
    for wiring in args.wirings.split(","):
        if wiring == "prompt":
            ways |= {f"prompt {every}": {**hearing, "alignment_every": int(every)} for every in args.every.split(",")}
        else:
            ways[wiring] = {"wiring": wiring}
    sets = [s for s in SETS if not args.sets or names(s) in args.sets.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        lab = Laboratory(pipe, Path(folder) / "readings.gz", samples=args.samples, seed=args.seed, overrides={}, log=lambda _: None)
        for outputs in sets:
            first = None
            for way, settings in ways.items():
                given = {name: value for name, value in {**common, **settings}.items() if value is not None}
                before = pipe.seconds.get("denoise", 0.0)
                readings = lab.read(Cell(outputs, settings=tuple(given.items())))
                seconds = pipe.seconds["denoise"] - before
                first = first or seconds
                share = float(agree(readings, outputs).float().mean())
                rows.append([names(outputs), way, f"{share:.2f}", f"{readable(readings):.2f}", f"{seconds / first:.2f}"])
                print(" | ".join(rows[-1]), flush=True)
    print()
    print(table(["outputs", "wiring, read every", "agree", "readable", "time"], rows))


if __name__ == "__main__":
    main()

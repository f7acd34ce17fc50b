"""Seconds to load, seconds to encode and decode, and memory of every component, each in a process of its own.

python benchmarks/components.py [--config mini|official] [--only clip,vocoder,...] [--threads N] [--dtype fp32|fp16|bf16]

Weights are the recipe's, written to a temporary folder; the largest component of the official size is 8 GB (text_denoiser)."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from measure import alternate, in_a_process, machine, peak_bytes, table

import torch  # isort: skip
from codi_models.config import CoDiConfig  # isort: skip
from codi_models.model import COMPONENTS, DTYPES, load_component, save_component  # isort: skip
from codi_models.parity.half import forward_passes, recipe_component  # isort: skip


def measure_one(config: CoDiConfig, name: str, folder: str, dtype: str, repeats: int) -> None:
    """In a process of its own: prints seconds to load, peak bytes, and name=seconds of every forward pass."""
    before, begin = peak_bytes(), time.perf_counter()
    network = load_component(name, config, Path(folder) / f"{name}.safetensors", dtype=DTYPES[dtype])
    seconds = time.perf_counter() - begin
    with torch.inference_mode():
        passes = forward_passes(name, network, config)
        sides = {what: (lambda run=run: run(lambda x: x.to(DTYPES[dtype]))) for what, run in passes.items()}  # type: ignore[misc]
        taken = alternate(sides, repeats, torch.device("cpu"))
    print(seconds, peak_bytes() - before, *[f"{what}={value}" for what, value in taken.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=("mini", "official"), default="mini")
    parser.add_argument("--only", default=",".join(COMPONENTS))
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--measure-one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = getattr(CoDiConfig, args.config)()
    if args.measure_one:
        return measure_one(config, *args.measure_one, args.dtype, args.repeats)
    print(f"{config.name}, {args.dtype}, {machine(torch.device('cpu'))}\n")
    rows = []
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            network = recipe_component(name, config)
            size = save_component(name, network, config, folder, dtype=DTYPES[args.dtype]).stat().st_size
            del network
            options = ["--config", args.config, "--dtype", args.dtype, "--repeats", str(args.repeats), "--threads", str(args.threads)]
            loaded, peak, *taken = in_a_process(__file__, *options, "--measure-one", name, folder).split()
            for index, entry in enumerate(taken):
                what, seconds = entry.split("=")
                first = [f"{size / 2**20:.0f}", f"{float(loaded):.2f}", f"{float(peak) / 2**20:.0f}"] if index == 0 else ["", "", ""]
                rows.append([f"{name}, {what}", *first, f"{float(seconds):.3f}"])
    print(table(["component", "file, MiB", "load, s", "growth of peak memory, MiB", "one pass, s"], rows))


if __name__ == "__main__":
    main()

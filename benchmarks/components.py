"""Seconds to load, seconds to encode and decode, and memory of every component, each in a process of its own.

python benchmarks/components.py [--config mini|official] [--only clip,vocoder,...] [--threads N] [--dtype fp32|fp16|bf16] [--compute ...]

Weights are the recipe's, written tensor by tensor to a temporary folder; the largest file of the official size has 8 GB in float32
(text_denoiser). With --compute the network loads as its file is and is then cast to another precision for the passes."""

from __future__ import annotations

import argparse
import tempfile
import time

from measure import CONFIGS, alternate, config_of, in_a_process, machine, peak_bytes, table

import torch  # isort: skip
from codi_models.config import CoDiConfig  # isort: skip
from codi_models.components import COMPONENTS, load_component  # isort: skip
from codi_models.model import DTYPES  # isort: skip
from codi_models.parity.half import forward_passes, write_recipe  # isort: skip


def measure_one(config: CoDiConfig, name: str, path: str, dtype: torch.dtype, compute: torch.dtype, repeats: int) -> None:
    """In a process of its own: prints seconds to load, peak bytes, and name=seconds of every forward pass."""
    before, begin = peak_bytes(), time.perf_counter()
    network = load_component(name, config, path, dtype=dtype)
    seconds, grown = time.perf_counter() - begin, peak_bytes() - before
    with torch.inference_mode():
        passes = forward_passes(name, network.to(compute), config)
        sides = {what: (lambda run=run: run(lambda x: x.to(compute))) for what, run in passes.items()}  # type: ignore[misc]
        taken = alternate(sides, repeats, torch.device("cpu"))
    print(seconds, grown, peak_bytes() - before, *[f"{what}={value}" for what, value in taken.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="mini")
    parser.add_argument("--only", default=",".join(COMPONENTS))
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--compute", choices=tuple(DTYPES), help="precision of the passes (default that of the file)")
    parser.add_argument("--folder", help="existing folder that keeps the weights, all of one --dtype, for another run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--measure-one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config, compute = config_of(args.config), args.compute or args.dtype
    if args.measure_one:
        return measure_one(config, *args.measure_one, DTYPES[args.dtype], DTYPES[compute], args.repeats)
    print(f"{config.name}, file {args.dtype}, passes {compute}, {machine(torch.device('cpu'))}\n")
    rows = []
    options = ["--config", args.config, "--dtype", args.dtype, "--compute", compute]
    options += ["--repeats", str(args.repeats), "--threads", str(args.threads)]
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            path = write_recipe(name, config, args.folder or temporary, DTYPES[args.dtype])
            size = path.stat().st_size
            loaded, *grown, taken = in_a_process(__file__, *options, "--measure-one", name, str(path)).split(maxsplit=3)
        for index, entry in enumerate(taken.split()):
            what, seconds = entry.split("=")
            whole = [f"{size / 2**20:.0f}", f"{float(loaded):.2f}", *[f"{float(count) / 2**20:.0f}" for count in grown]]
            rows.append([f"{name}, {what}", *(whole if index == 0 else [""] * 4), f"{float(seconds):.3f}"])
    print(table(["component", "file, MiB", "load, s", "memory after loading, MiB", "peak memory, MiB", "one pass, s"], rows))


if __name__ == "__main__":
    main()

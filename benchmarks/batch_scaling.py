"""How `python -m codi_models batch` grows with the number of Ray workers, and what that means for 8 and 64 GPUs.

python benchmarks/batch_scaling.py [--model codi-mini] [--workers 1,2] [--items 16,64] [--steps 25] [--outputs image,audio] [--repeats 3]
                                   [--batch-size B] [--cpus 1] [--gpus X] [--ray ADDRESS]

Every number of workers makes a short and a long manifest, in turn; the difference of their times gives the steady rate, what is left the
start. Before that, the same items without Ray are made once more and must be the same files. The driver is the one part that does not grow
with the workers: its share is timed alone, by keeping items whose files are there already made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PACK))

from codi_models.batch.manifest import read_manifest  # noqa: E402
from codi_models.batch.store import Store  # noqa: E402
from codi_models.config import CoDiConfig  # noqa: E402
from codi_models.errors import CoDiError  # noqa: E402
from codi_models.model import find_model  # noqa: E402

ESTIMATED = (8, 64)


def write_manifest(path: Path, count: int, outputs: str, steps: int) -> Path:
    """`count` items that differ in their seeds."""
    entry = {"prompts": ["a red circle bounces twice"], "outputs": outputs, "settings": {"steps": steps}}
    path.write_text("".join(json.dumps({"id": f"i{i:06d}", "seed": i, **entry}) + "\n" for i in range(count)))
    return path


def make(manifest: Path, out: Path, *options: str) -> float:
    """Seconds of one run of the command, the start of Python included."""
    command = [sys.executable, "-m", "codi_models", "batch", str(manifest), "--out", str(out), "--strict", *options]
    begin = time.perf_counter()
    environment = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", **os.environ}
    done = subprocess.run(command, cwd=PACK, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - begin


def contents(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in (out / "items").rglob("*") if file.is_file()}


def driver_seconds(manifest: Path, config: CoDiConfig, made: Path, folder: Path) -> float:
    """What the driver does for an item: keep its files. Median over the items of a manifest."""
    items, _ = read_manifest(manifest, config)
    store, spent = Store(folder, {}), []
    for item in items:
        files = {file.name: file.read_bytes() for file in (made / "items" / item.id).iterdir() if file.name != "item.json"}
        begin = time.perf_counter()
        store.put(item, files)
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="codi-mini")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--items", default="16,64", help="of the short and of the long manifest")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--outputs", default="image,audio")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--cpus", type=int, default=1, help="and threads, of a worker")
    parser.add_argument("--gpus", type=float, help="of a worker")
    parser.add_argument("--ray", default="", metavar="ADDRESS")
    args = parser.parse_args()
    counts, short_long = [int(n) for n in args.workers.split(",")], [int(n) for n in args.items.split(",")]
    common = ["--model", str(find_model(args.model).resolve()), "--batch-size", str(args.batch_size)]
    cluster = ["--ray", *([args.ray] if args.ray else []), "--cpus", str(args.cpus), *(["--gpus", str(args.gpus)] if args.gpus else [])]
    spent: dict[tuple[int, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        manifests = {n: write_manifest(folder / f"{n}.jsonl", n, args.outputs, args.steps) for n in short_long}
        make(manifests[short_long[0]], folder / "alone", *common)
        for repeat in range(args.repeats):
            for n in short_long:
                for workers in counts:
                    out = folder / f"{repeat}-{n}-{workers}"
                    spent.setdefault((workers, n), []).append(make(manifests[n], out, *common, *cluster, "--workers", str(workers)))
        first = contents(folder / "alone")
        for workers in counts:
            other = contents(folder / f"0-{short_long[0]}-{workers}")
            if first.keys() != other.keys():
                sys.exit(f"error: {workers} workers made other files than one process without Ray")
        same = sum(first[name] == other[name] for name in first)
        config = CoDiConfig.load(find_model(args.model) / "config.json")
        driver = driver_seconds(manifests[short_long[0]], config, folder / "alone", folder / "driver")
    short, long = short_long
    print(f"{args.model}, {args.outputs}, {args.steps} steps, batches of {args.batch_size}, {args.cpus} CPU threads a worker")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, medians of {args.repeats}")
    print(f"{same} of {len(first)} files are the same to the byte as those made without Ray\n")
    print("| workers | start, s | items a second | speed-up | efficiency |\n| ---: | ---: | ---: | ---: | ---: |")
    rates: dict[int, float] = {}
    for workers in counts:
        times = {n: statistics.median(spent[workers, n]) for n in short_long}
        rates[workers] = (long - short) / max(times[long] - times[short], 1e-9)
        gain = rates[workers] / rates[counts[0]]
        start = times[short] - short / rates[workers]
        print(f"| {workers} | {start:.1f} | {rates[workers]:.3f} | {gain:.2f} | {gain * counts[0] / workers:.0%} |")
    base, most = counts[0], counts[-1]
    efficiency = rates[most] / rates[base] * base / most
    one = rates[base] / base
    print(f"\nThe driver takes {1000 * driver:.2f} ms an item: it keeps up with {1 / driver / one:.0f} such workers.")
    print("\n| workers | items a second, if none hinders another | at the measured efficiency | share of the driver's limit |")
    print("| ---: | ---: | ---: | ---: |")
    for n in ESTIMATED:
        free, held = (min(n * one * e, 1 / driver) for e in (1.0, min(1.0, efficiency)))
        print(f"| {n} | {free:.2f} | {held:.2f} | {n * one * driver:.1%} |")


if __name__ == "__main__":
    try:
        main()
    except CoDiError as error:
        sys.exit(f"error: {error}")

"""`python -m codi_models batch`: every item of a manifest once, on this machine or on a Ray cluster."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import CoDiConfig
from ..errors import CoDiError, WriteError
from ..files import output_folder
from ..locks import sole_writer
from ..model import DTYPES, find_model
from ..settings import MOST_AT_ONCE
from .generate import INTERRUPTED, versions
from .parser import THREADS, Parser, number, whole

FAILED = 1


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns 0, 1 with --strict where an item failed, 130 after an interrupt; raises CoDiError for bad input."""
    args = _arguments(argv)
    output_folder(args.out)
    with sole_writer(args.out):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from ..batch.manifest import read_manifest
    from ..batch.store import Store

    folder = find_model(args.model)
    config = CoDiConfig.load(folder / "config.json")
    items, broken = read_manifest(args.manifest, config)
    described = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    store = Store(args.out, {"model": config.name, "config": described, "dtype": args.dtype, "raw": args.raw})
    for failure in broken:
        store.fail(failure)
        print(f"line {failure.line}: {failure.error}", file=sys.stderr)
    if not items and not broken:
        raise CoDiError(f"{args.manifest} is empty: give one JSON object a line with id, prompts and outputs")
    begin = time.perf_counter()
    waiting = store.missing(items)
    made_otherwise = len(store.failures) - len(broken)
    try:
        facts = _make(args, folder, waiting, store, len(items))
    except KeyboardInterrupt:
        store.close()
        print(f"interrupted; the same command goes on from what is in {store.items}", file=sys.stderr)
        return INTERRUPTED
    except WriteError as error:
        raise CoDiError(f"{error}; the same command then goes on where it was") from error
    store.close()
    seconds, failed = time.perf_counter() - begin, len(store.failures)
    counts = {"items": len(items), "made": facts["made"], "there_already": len(items) - len(waiting) - made_otherwise, "failed": failed}
    store.report({"complete": True, **counts, **facts, "total_seconds": round(seconds, 3), "versions": versions()})
    print(f"{counts['made']} made, {counts['there_already']} there already, {failed} failed, in {seconds:.1f} s: {store.items}")
    if store.failures:
        print(f"what failed and why: {store.folder / 'failures.jsonl'}")
    return FAILED if args.strict and store.failures else 0


def _make(args: argparse.Namespace, folder: Path, waiting: list[Any], store: Any, total: int) -> dict[str, Any]:
    """Start the engine, unless there is nothing to do, and have it make what is waiting."""
    from tqdm import tqdm

    from ..batch.run import run

    if not waiting:
        return {"made": 0, "workers": 0, "seconds": {}}
    engine = _engine(args, folder)
    try:
        with tqdm(total=total, initial=total - len(waiting), unit="item", file=sys.stderr) as bar:

            def say(text: str) -> None:
                tqdm.write(text, file=sys.stderr)

            return run(waiting, store, engine, batch_size=args.batch_size, say=say, tick=bar.update)
    finally:
        engine.close()


def _engine(args: argparse.Namespace, folder: Path) -> Any:
    worker = {"device": args.device, "dtype": args.dtype, "raw": args.raw}
    if args.ray is None:
        from ..batch.run import LocalEngine
        from ..batch.worker import Worker

        return LocalEngine(Worker(folder, **worker))
    from ..batch.on_ray import RayEngine

    return RayEngine(folder.resolve(), address=args.ray, workers=args.workers, cpus=args.cpus, gpus=args.gpus, **worker)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m codi_models batch",
        description="Make every item of a manifest once. The same command again makes what is missing. See docs/scaling.md.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("manifest", metavar="MANIFEST.jsonl", help="one JSON object a line: id, prompts, outputs, and if wanted seed and settings")
    add("--out", required=True, metavar="DIR", help="folder: items/ID/ for each item, failures.jsonl, batch.json")
    add("--model", default="codi-mini", help="name of a shipped model or a model folder (default codi-mini)")
    add(
        "--batch-size",
        type=whole(1, MOST_AT_ONCE),
        metavar="B",
        help="items denoised at once (default: what suits the sizes); no influence on results",
    )
    add("--raw", action="store_true", help="also write ID_raw.npz with float32 arrays")
    add("--strict", action="store_true", help="exit status 1 where an item failed")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute (default auto)")
    add("--dtype", default="auto", choices=["auto", *DTYPES], help="precision (default auto)")
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="on Ray: the cluster at ADDRESS (auto: a running one), or workers started here",
    )
    add(
        "--workers",
        type=whole(1, 65_536),
        metavar="N",
        help="with --ray: number of workers (default: one a GPU, without GPUs what the CPUs carry)",
    )
    add("--cpus", type=whole(1, THREADS), default=1, metavar="N", help="with --ray: CPUs, and threads, of a worker (default 1)")
    add(
        "--gpus",
        type=number(0, THREADS),
        metavar="X",
        help="with --ray: GPUs of a worker, may be a fraction (default 1 where there are GPUs)",
    )
    return parser.parse_args(argv)

"""`python -m codi_models train`: a model from a recipe and data (--recipe), or one run on top of a finished model (--base).

Resumable: the same command goes on where it was. On several processes or machines through `accelerate launch -m codi_models train ...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli.parser import THREADS, Parser, number, place, whole
from ..errors import CoDiError
from . import STAGES
from .dataset import NAMED
from .recipe import EXAMPLES, SEED, STEPS

MINUTES = 1e6


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. Raises CoDiError for input that cannot be used."""
    options = _parser().parse_args(argv)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    if options.memory:
        return _memory(options)
    if options.report:
        return _report(options)
    if options.recipe and options.stage:
        raise CoDiError("--stage goes on from a finished model (--base); of a recipe choose runs with --only")
    return _recipe(options) if options.recipe else _finetune(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m codi_models train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="the same as --base")
    parser.add_argument("--recipe", type=place, help="networks and runs of a model to train from nothing")
    parser.add_argument(
        "--data",
        help="folder with manifest.jsonl, with files that share a name or with webdataset tars; or one tar; "
        f"or {', '.join(NAMED)}; or module:class of a Dataset (default: the recipe's own)",
    )
    parser.add_argument("--out", type=place, help="model folder to fill (default: runs/NAME/model)")
    parser.add_argument("--runs", type=place, help="states, logs and encoded data (default: beside --out)")
    parser.add_argument("--only", action="append", default=[], help="only this run of the recipe, may be repeated")
    parser.add_argument("--pause-after", type=number(0, MINUTES), help="minutes to save and stop after; the same command goes on")
    parser.add_argument("--again", action="store_true", help="train finished runs further, starting from their weights")
    parser.add_argument("--samples", type=number(0, MINUTES), default=10.0, help="minutes from sample to sample in the log, or 0")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out media that cannot be read instead of stopping")
    parser.add_argument("--threads", type=whole(1, THREADS), help="CPU threads")
    parser.add_argument("--report", metavar="MODEL", help="train nothing: what the denoisers of a model know at each noise level")
    own = parser.add_argument_group("one run on top of a finished model")
    own.add_argument("--base", help="model to start from, a name or a folder (default: codi-mini)")
    own.add_argument("--stage", choices=STAGES, help="what to train (default: alignment)")
    own.add_argument("--modality", help="of the stage denoiser: image, video, audio or text")
    own.add_argument("--pairs", default="", help="of the stage alignment, such as image+text,audio+video (default: the paper's)")
    own.add_argument("--steps", type=whole(1, STEPS), default=1000, help="(default: %(default)s)")
    own.add_argument("--batch", type=whole(1, EXAMPLES), default=8, help="examples of a batch (default: %(default)s)")
    own.add_argument("--learning-rate", type=float, help="default: 1e-5 for bridging, else 1e-4")
    own.add_argument("--seed", type=whole(0, SEED), default=0)
    own.add_argument("--batches", "--shards", type=whole(1, EXAMPLES), help="of a step, for all processes (default: one for each)")
    own.add_argument("--bf16", action="store_true", help="compute in bfloat16; weights that stay are kept in it")
    own.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass: less memory, more time")
    own.add_argument("--memory", action="store_true", help="only say how much memory latent alignment needs; MODEL may be official")
    return parser


def _accelerator() -> Any:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


def _recipe(options: argparse.Namespace) -> int:
    from .dataset import open_dataset
    from .recipe import Recipe
    from .run import train_recipe

    recipe = Recipe.load(options.recipe)
    if unknown := sorted(set(options.only) - {run.name for run in recipe.runs}):
        raise CoDiError(f"{options.recipe} has no run {unknown[0]!r}; it has {', '.join(run.name for run in recipe.runs)}")
    out = options.out or Path("runs") / recipe.networks.name / "model"
    runs = options.runs or out.with_name(f"{out.name}-runs")
    accelerator = _accelerator()
    if not (options.data or recipe.data):
        raise CoDiError(f"{options.recipe} names no data: give --data")
    data = open_dataset(options.data or recipe.data, recipe.networks, skip_unreadable=options.skip_unreadable)
    data.check(_encoding(accelerator, "looked at"))
    finished = train_recipe(
        recipe, data, out, runs, accelerator=accelerator, only=options.only, again=options.again, pause_after=options.pause_after,
        samples_every=options.samples, encoding=_encoding(accelerator), say=_say(accelerator),
    )  # fmt: skip
    accelerator.print(f"model folder: {out}" if finished else "paused; run the same command again to go on")
    return 0


def _finetune(options: argparse.Namespace) -> int:
    from .finetune import Finetune, finetune, parse_pairs

    if not options.data:
        raise CoDiError("nothing to train on: give --data FOLDER, and --recipe FILE for a model from nothing")
    runs = options.runs or (options.out.with_name(f"{options.out.name}-runs") if options.out else Path("runs/own"))
    what = Finetune(
        stage=options.stage or "alignment", data=options.data, out=options.out or runs / "model", runs=runs,
        model=options.base or options.model or "codi-mini", modality=options.modality, pairs=parse_pairs(options.pairs),
        steps=options.steps, batch=options.batch, learning_rate=options.learning_rate, bf16=options.bf16,
        checkpointing=options.checkpointing, skip_unreadable=options.skip_unreadable, seed=options.seed, batches=options.batches,
        again=options.again,
    )  # fmt: skip
    what.check()
    accelerator = _accelerator()
    how: dict[str, Any] = {"pause_after": options.pause_after, "samples_every": options.samples}
    if finetune(what, accelerator=accelerator, encoding=_encoding(accelerator), say=_say(accelerator), **how):
        accelerator.print(f"model folder: {what.out}")
    else:
        accelerator.print(f"{what.name}: paused; run the same command again to go on")
    return 0


def _say(accelerator: Any) -> Any:
    return lambda line: accelerator.print(line, flush=True)


def _encoding(accelerator: Any, word: str = "encoded") -> Any:
    def told(done: int, count: int) -> None:
        if count and (done == count or done % max(1, count // 20) == 0):
            accelerator.print(f"{word} {done} of {count} media", flush=True)

    return told


def _memory(options: argparse.Namespace) -> int:
    from ..config import CoDiConfig
    from ..model import find_model
    from .alignment import PAPER_PAIRS
    from .finetune import parse_pairs
    from .memory import alignment_memory, describe

    model = options.base or options.model or "codi-mini"
    config = CoDiConfig.official() if model == "official" else CoDiConfig.load(find_model(model) / "config.json")
    for pair in parse_pairs(options.pairs) or PAPER_PAIRS:
        figure = alignment_memory(config, pair, options.batch, bf16=options.bf16, checkpointing=options.checkpointing)
        print(f"{pair[0]}+{pair[1]}, batch {options.batch}: {describe(figure)}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from .information import write_report

    if not options.data:
        raise CoDiError("a report measures a model on data: give --data")
    write_report(options.report, options.data, options.out or Path("information"), say=lambda line: print(line, flush=True))
    return 0

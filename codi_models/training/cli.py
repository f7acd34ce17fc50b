"""`python -m codi_models train`: codi-mini from nothing, or one stage of any model on your own pairs (--data).

Resumable: the same command goes on where it was. On several processes or machines through `accelerate launch -m codi_models train ...`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import CoDiConfig
from ..errors import CoDiError
from . import OWN_STAGES
from .recipes import RECIPES


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        return _run_own(options) if options.data or options.memory else _run(options)
    except CoDiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m codi_models train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", default="codi-mini", help="with --data: model to start from, a name or a folder (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="model folder to fill (default: runs/codi-mini/model, with --data runs/own/model)")
    parser.add_argument("--runs", type=Path, help="states and logs (default: runs/codi-mini, with --data runs/own)")
    parser.add_argument("--stage", action="append", help=f"only this stage, may be repeated: {', '.join(RECIPES)}; with --data one of "
                                                         f"{', '.join(OWN_STAGES)}")  # fmt: skip
    parser.add_argument("--steps", type=int, help="instead of the recipe's number of steps; with --data 1000")
    parser.add_argument("--minutes", type=float, help="anneal each stage so that it ends after this many minutes at the latest")
    parser.add_argument("--pause-after", type=float, help="save and stop after this many minutes; the same command goes on from there")
    parser.add_argument("--again", action="store_true", help="train a finished stage further, starting from its weights")
    parser.add_argument(
        "--sheets", type=float, default=10.0, help="minutes between sample sheets in the log; 0 for none (default: %(default)s)"
    )
    parser.add_argument("--shards", type=int, help="batches of a step, shared among the processes (default: one for each)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    own = parser.add_argument_group("your own pairs")
    own.add_argument(
        "--data", type=Path, help="folder with manifest.jsonl, with files that share a name or with webdataset tars; or one tar"
    )
    own.add_argument("--modality", help="of the stage denoiser: image, video, audio or text")
    own.add_argument("--pairs", default="", help="of the stage alignment, such as image+text,audio+video (default: the paper's)")
    own.add_argument("--batch", type=int, default=8, help="examples of a batch (default: %(default)s)")
    own.add_argument("--learning-rate", type=float, help="default: 1e-5 for bridging, else 1e-4")
    own.add_argument("--bf16", action="store_true", help="compute in bfloat16; weights that stay are kept in it")
    own.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass: less memory, more time")
    own.add_argument("--skip-unreadable", action="store_true", help="leave out media that cannot be read instead of stopping")
    own.add_argument("--memory", action="store_true", help="only say how much memory latent alignment needs; MODEL may be official")
    return parser


def _run_own(options: argparse.Namespace) -> int:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    from .own_run import OwnRun, parse_pairs, train_own

    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    if options.memory:
        return _memory(options)
    if len(options.stage or ()) != 1:
        raise CoDiError(f"with --data give one --stage: {', '.join(OWN_STAGES)}")
    runs = options.runs or Path("runs/own")
    run = OwnRun(
        stage=options.stage[0], data=options.data, out=options.out or runs / "model", runs=runs,
        model=options.model, modality=options.modality,
        pairs=parse_pairs(options.pairs), steps=1000 if options.steps is None else options.steps, batch=options.batch,
        learning_rate=options.learning_rate, bf16=options.bf16, checkpointing=options.checkpointing,
        skip_unreadable=options.skip_unreadable,
        seed=options.seed, shards=options.shards, pause_after=options.pause_after, sheets=options.sheets, again=options.again,
    )  # fmt: skip
    run.check()
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    set_seed(options.seed)

    def encoding(done: int, count: int) -> None:
        if done == count or done % max(1, count // 20) == 0:
            accelerator.print(f"encoded {done} of {count} media", flush=True)

    if train_own(run, accelerator=accelerator, encoding=encoding, say=accelerator.print):
        accelerator.print(f"model folder: {run.out}")
    else:
        accelerator.print(f"{run.name}: paused; run the same command again to go on")
    return 0


def _memory(options: argparse.Namespace) -> int:
    from ..model import find_model
    from .memory import alignment_memory, describe
    from .own import PAPER_PAIRS
    from .own_run import parse_pairs

    config = CoDiConfig.official() if options.model == "official" else CoDiConfig.load(find_model(options.model) / "config.json")
    for pair in parse_pairs(options.pairs) or PAPER_PAIRS:
        figure = alignment_memory(config, pair, options.batch, bf16=options.bf16, checkpointing=options.checkpointing)
        print(f"{pair[0]}+{pair[1]}, batch {options.batch}: {describe(figure)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    from .loop import Schedule, train
    from .sheets import SampleSheet
    from .workspace import Workspace

    stages = options.stage or list(RECIPES)
    if options.model != "codi-mini" or (unknown := [stage for stage in stages if stage not in RECIPES]):
        what = f"model {options.model!r}" if options.model != "codi-mini" else f"stage {unknown[0]!r}"
        raise CoDiError(
            f"{what} is not among what is trained from nothing: codi-mini, stages {', '.join(RECIPES)}. For your own data give --data"
        )
    runs = options.runs or Path("runs/codi-mini")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    set_seed(options.seed)
    space = Workspace(options.out or Path("runs/codi-mini/model"), CoDiConfig.mini(), accelerator.device)
    for stage in stages:
        run = runs / stage
        done = run / "done"
        if done.exists():
            if not options.again:
                print(f"{stage}: done already")
                continue
            if accelerator.is_main_process:
                shutil.rmtree(run)
            accelerator.wait_for_everyone()
        recipe = RECIPES[stage]
        objective = recipe.objective(space)
        schedule = Schedule(
            steps=options.steps or recipe.steps, minutes=options.minutes, pause_after=options.pause_after, shards=options.shards
        )  # fmt: skip
        sheet = SampleSheet(space) if options.sheets else None
        if not train(objective, schedule, accelerator=accelerator, run=run, seed=options.seed, sheet=sheet, sheet_every=options.sheets):
            print(f"{stage}: paused; run the same command again to go on")
            return 0
        if accelerator.is_main_process:
            objective.write()
            done.write_text("finished\n", encoding="utf-8")
            (run / "state.pt").unlink()
        accelerator.wait_for_everyone()
    return 0

"""`python -m codi_models train codi-mini`: every stage in order, or one; resumable; on one machine or many through accelerate."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import CoDiConfig
from ..errors import CoDiError
from .recipes import RECIPES


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m codi_models train", description=__doc__)
    parser.add_argument("model", choices=["codi-mini"])
    parser.add_argument("--out", type=Path, default=Path("runs/codi-mini/model"), help="model folder to fill (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/codi-mini"), help="states and logs (default: %(default)s)")
    parser.add_argument("--stage", action="append", choices=list(RECIPES), help="only this stage; may be repeated")
    parser.add_argument("--steps", type=int, help="instead of the recipe's number of steps")
    parser.add_argument("--minutes", type=float, help="anneal each stage so that it ends after this many minutes at the latest")
    parser.add_argument("--pause-after", type=float, help="save and stop after this many minutes; the same command goes on from there")
    parser.add_argument("--again", action="store_true", help="train a finished stage further, starting from its weights")
    parser.add_argument(
        "--sheets", type=float, default=10.0, help="minutes between sample sheets in the log; 0 for none (default: %(default)s)"
    )
    parser.add_argument("--shards", type=int, help="batches of a step, shared among the processes (default: one for each)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    options = parser.parse_args(argv)
    try:
        return _run(options)
    except CoDiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    from .loop import Schedule, train
    from .sheets import SampleSheet
    from .workspace import Workspace

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    set_seed(options.seed)
    space = Workspace(options.out, CoDiConfig.mini(), accelerator.device)
    for stage in options.stage or RECIPES:
        run = options.runs / stage
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

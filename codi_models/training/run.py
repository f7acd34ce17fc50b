"""From a recipe and a data set to a model folder: the runs in order, each going on where it was interrupted."""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import write_text, writing
from ..locks import sole_writer
from .dataset import Dataset, Progress
from .loop import Objective, train
from .recipe import KINDS, Recipe, Run, build
from .workspace import Workspace

if TYPE_CHECKING:
    from accelerate import Accelerator

Say = Callable[[str], None]


def train_recipe(
    recipe: Recipe, data: Dataset, out: Path, runs: Path, *, accelerator: Accelerator, only: Sequence[str] = (), again: bool = False,
    say: Say = print, **how: Any,
) -> bool:  # fmt: skip
    """Train the runs of a recipe, or `only` those named, into the model folder `out`; states and logs lie in `runs`.

    A run that is done is not trained again unless `again` is asked for. how: as for `loop.train`. Returns False if it paused.
    Several processes may train different runs of a recipe beside each other. Raises Busy where one trains the same run."""
    with accelerator.main_process_first():
        space = Workspace(out, accelerator.device, recipe.networks, data)
    for run in recipe.runs:
        if not only or run.name in only:
            with holding(accelerator, out, run.name):
                finished = train_run(run, space, data, runs, accelerator=accelerator, again=again, say=say, **how)
            if not finished:
                return False
    return True


def train_run(
    run: Run, space: Workspace, data: Dataset, runs: Path, *, accelerator: Accelerator, again: bool = False,
    say: Say = print, encoding: Progress = lambda *_: None, progress: Callable[[int, float], None] | None = None, **how: Any,
) -> bool:  # fmt: skip
    """Train one run and write its components into the model folder. Returns False if it paused before the end.

    An exception that `progress` raises ends the run; the next call goes on from there, and the weights so far are in the model folder.
    encoding: called with the media encoded so far and all of them, before the first step. Raises Busy where another process trains it."""
    with holding(accelerator, runs, run.name):
        return _trained(run, space, data, runs, accelerator, again, say, encoding, progress, how)


def holding(accelerator: Accelerator, folder: Path, part: str = "") -> contextlib.AbstractContextManager[None]:
    """`sole_writer` for the processes of one training together."""
    return sole_writer(folder, part) if accelerator.is_main_process else contextlib.nullcontext()


def _trained(
    run: Run, space: Workspace, data: Dataset, runs: Path, accelerator: Accelerator, again: bool, say: Say, encoding: Progress,
    progress: Callable[[int, float], None] | None, how: dict[str, Any],
) -> bool:  # fmt: skip
    folder = runs / run.name
    done = folder / "done"
    if done.exists():
        if not again:
            say(f"{run.name}: done already")
            return True
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                with writing(folder):
                    shutil.rmtree(folder)
    with accelerator.main_process_first(), seeded(run.seed):
        objective = make_objective(run, space, data, runs / "cache", encoding=encoding, say=say)
    prepare(objective, run, accelerator.device)
    stopped: list[bool] = []

    def counted(step: int, loss: float) -> None:
        try:
            if progress:
                progress(step, loss)
        except BaseException:
            stopped.append(True)
            raise

    try:
        if not train(objective, run, accelerator=accelerator, folder=folder, progress=counted, say=say, **how):
            return False
    except BaseException:
        if stopped and accelerator.is_main_process:
            objective.write()  # the weights so far make a model that can be tried
        raise
    if accelerator.is_main_process:
        objective.eval()
        objective.write()
        write_text(done, "finished\n")
        (folder / "state.pt").unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return True


def make_objective(
    run: Run, space: Workspace, data: Dataset, cache: Path, *, encoding: Progress = lambda *_: None, say: Say = lambda _: None
) -> Objective:
    """What a run minimises, with the data encoded where it needs them so. Raises CoDiError for options that it does not have."""
    run.check()
    module, name = KINDS[run.kind]
    cls = getattr(importlib.import_module(module, __package__), name)
    options = build(cls.Options, run.options, f"run {run.name!r}")
    if hasattr(cls, "encode"):
        return cls(space, cls.encode(space, data, options, cache, encoding), options)
    return cls(space, data, options)


def prepare(objective: Any, run: Run, device: torch.device) -> None:
    """Precision, memory layout and checkpointing, as the run asks for."""
    if run.channels_last:
        objective.to(memory_format=torch.channels_last)
    if run.checkpointing:
        from .memory import checkpoint_blocks

        checkpoint_blocks(objective)
    if run.bf16:
        autocast = torch.autocast(device.type, torch.bfloat16)
        objective.forward, objective.samples = autocast(objective.forward), autocast(objective.samples)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fresh networks are drawn from `seed`; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield

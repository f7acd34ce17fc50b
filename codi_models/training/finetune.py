"""One run on a user's own pairs, from a model folder to a new one: what the command line and the Train node share."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import CoDiConfig
from ..errors import CoDiError
from ..files import remove_leftovers, temporary_of, whole_file
from ..locks import is_lock
from ..modalities import MODALITIES, denoisers_of
from ..model import find_model
from . import STAGES
from .alignment import pairs_of
from .dataset import Dataset, FolderDataset, Progress, open_dataset
from .memory import alignment_memory, describe
from .recipe import EXAMPLES, Run
from .run import Say, holding, train_run
from .workspace import Workspace

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """What to train on what. model: shipped name or folder to start from; out: model folder to write; runs: states, logs and the cache."""

    stage: str
    data: str | Path
    out: Path
    runs: Path
    model: str | Path = "codi-mini"
    modality: str | None = None  # of the stage denoiser
    pairs: tuple[tuple[str, str], ...] = ()  # of the stage alignment; () for the paper's
    steps: int = 1000
    batch: int = 8
    learning_rate: float | None = None
    bf16: bool = False
    checkpointing: bool = False
    skip_unreadable: bool = False
    seed: int = 0
    batches: int | None = None
    again: bool = False  # go on from a finished run

    @property
    def name(self) -> str:
        """Of the folder in `runs`."""
        return f"{self.stage}-{self.modality}" if self.stage == "denoiser" else self.stage

    def check(self) -> None:
        """Raises CoDiError for values that cannot be used."""
        checks = [
            (self.stage in STAGES, f"unknown stage {self.stage!r}: give one of {', '.join(STAGES)}"),
            (self.stage != "denoiser" or self.modality in MODALITIES, f"stage denoiser needs a modality: one of {', '.join(MODALITIES)}"),
            (1 <= self.batch <= EXAMPLES, f"batch {self.batch} must be 1 to {EXAMPLES}"),
            (self.stage != "bridging" or self.batch >= 2, "bridging compares examples with each other: give a batch of 2 or more"),
            (self.learning_rate is None or 0 < self.learning_rate < 1, f"learning rate {self.learning_rate} must lie between 0 and 1"),
            (all(len(p) == 2 and p[0] != p[1] and set(p) <= set(MODALITIES) for p in self.pairs),
             f"pairs {self.pairs} must be two different ones of {', '.join(MODALITIES)} each, such as image+text"),
        ]  # fmt: skip
        for good, message in checks:
            if not good:
                raise CoDiError(message)
        if any(len(denoisers_of(pair)) < 2 for pair in self.pairs):
            raise CoDiError("image and video share a denoiser: they cannot be aligned with each other")
        self.run.check()

    @property
    def run(self) -> Run:
        """The run of a recipe that this is."""
        options: dict[str, Any]
        if self.stage == "bridging":
            options = {"batch": dict.fromkeys(("image", "audio", "video"), self.batch), "freeze_text": True}
        elif self.stage == "denoiser":
            assert self.modality is not None
            options = {"modalities": [self.modality], "batch": {self.modality: self.batch}, "empty": 0.1, "variants": 1, "spread": 0.0}
        else:
            options = {"batch": self.batch, "pairs": self.pairs, "empty": 0.1, "contrastive": 0.05, "variants": 1, "spread": 0.0,
                       "half": self.bf16}  # fmt: skip
        return Run(
            name=self.name, kind=self.stage, steps=self.steps, seed=self.seed, bf16=self.bf16, checkpointing=self.checkpointing,
            learning_rate=self.learning_rate or (1e-5 if self.stage == "bridging" else 1e-4), batches=self.batches, options=options,
        )  # fmt: skip


def finetune(
    what: Finetune, *, accelerator: Accelerator, say: Say = print, encoding: Progress = lambda *_: None,
    progress: Callable[[int, float], None] | None = None, **how: Any,
) -> bool:  # fmt: skip
    """Train; the same call goes on from where it was interrupted. Returns False if it paused before the end.

    encoding, progress: as for `run.train_run`; how: as for `loop.train`. Raises CoDiError for settings and data that cannot be used, and
    where `out` cannot become a model folder or another process writes to it."""
    what.check()
    start = find_model(what.model)
    data = open_dataset(what.data, CoDiConfig.load(start / "config.json"), skip_unreadable=what.skip_unreadable)
    if (what.runs / what.name / "done").exists() and not what.again:
        say(f"{what.name}: done already")
        return True
    if isinstance(data, FolderDataset):
        data.pairs_only()
    if what.stage == "denoiser" and what.modality not in data.has:
        raise CoDiError(f"no example has {what.modality}; the data have {', '.join(data.has)}")
    _check_target(start, what.out)
    with holding(accelerator, what.out):
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                take_over(start, what.out)
        data.check(encoding)
        space = Workspace(what.out, accelerator.device)
        if what.stage == "alignment":
            _tell_memory(what, space, data, say)
        return train_run(
            what.run, space, data, what.runs, accelerator=accelerator, again=what.again, say=say, encoding=encoding, progress=progress,
            **how,
        )  # fmt: skip


def take_over(start: Path, out: Path) -> None:
    """Make `out` a model folder like `start`; one that is there already is trained further. Weights are linked where the disk allows it,
    for they are only ever replaced as whole files. Raises CoDiError where `out` is `start`, or holds something else."""
    _check_target(start, out)
    if (out / "config.json").is_file():
        return
    files = sorted((p for p in start.iterdir() if p.is_file() and not p.name.startswith(".")), key=lambda p: p.name == "config.json")
    names = {file.name for file in files}
    if out.exists() and any(not _copied(path, start, names) for path in out.iterdir() if not is_lock(path)):
        raise CoDiError(f"{out} holds something that is no CoDi model: give a new or empty folder")
    if out.exists():
        remove_leftovers(out, names)
    for file in files:  # config.json last: it tells a whole folder
        with whole_file(out / file.name) as temporary:
            try:
                if file.suffix != ".safetensors":
                    raise OSError
                os.link(file, temporary)
            except OSError:
                shutil.copyfile(file, temporary)


def _check_target(start: Path, out: Path) -> None:
    if out.exists() and out.resolve() == start.resolve():
        raise CoDiError(f"{out} is the model to start from: give another folder to write to")
    if out.exists() and not out.is_dir():
        raise CoDiError(f"{out} is a file: give a new or empty folder")


def _copied(path: Path, start: Path, names: set[str]) -> bool:
    """Whether a path is what a copy of `start` that was interrupted leaves: a file of the model, or the beginning of one."""
    if temporary_of(path) in names:
        return True
    return path.name in names and path.is_file() and filecmp.cmp(path, start / path.name, shallow=False)


def _tell_memory(what: Finetune, space: Workspace, data: Dataset, say: Say) -> None:
    pairs = what.pairs or pairs_of(data.has)
    figures = [alignment_memory(space.config, p, what.batch, bf16=what.bf16, checkpointing=what.checkpointing) for p in pairs]
    say(f"memory of the largest pair: {describe(max(figures, key=lambda figure: figure['frozen'] + figure['activations']))}")


def parse_pairs(text: str | Sequence[str]) -> tuple[tuple[str, str], ...]:
    """ "image+text, audio+video" -> pairs."""
    words = text.split(",") if isinstance(text, str) else list(text)
    return tuple(tuple(part.strip() for part in word.split("+")) for word in words if word.strip())  # type: ignore[misc]

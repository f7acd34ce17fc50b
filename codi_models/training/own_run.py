"""One stage on a user's own pairs, from a model folder to a new one: what the command line and the Train node share."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import DENOISER_OF, MODALITIES, CoDiConfig
from ..encoders.preprocess import clip_image, clip_video, repeat_pad, resample, spread
from ..encoders.tokenizer import encode_prompts
from ..errors import CoDiError
from ..files import whole_file
from ..model import CoDi, find_model
from ..prompts import Prompt, encode_prompt
from . import OWN_STAGES
from .encoded import encode_records, kept_media
from .loop import Objective, Schedule, train
from .memory import alignment_memory, checkpoint_blocks, describe
from .own import OwnAlignment, OwnBridging, OwnDenoising
from .records import Record, find_records, paired
from .sheets import SampleSheet
from .workspace import Workspace

if TYPE_CHECKING:
    from accelerate import Accelerator

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class OwnRun:
    """What to train on what. model: shipped name or folder to start from; out: model folder to write; runs: states, logs and the cache."""

    stage: str
    data: Path
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
    shards: int | None = None
    pause_after: float | None = None  # minutes
    sheets: float = 10.0  # minutes between sample sheets, 0 for none
    again: bool = False  # go on from a finished run

    def check(self) -> None:
        """Raises CoDiError for values that cannot be used."""
        checks = [
            (self.stage in OWN_STAGES, f"unknown stage {self.stage!r}: give one of {', '.join(OWN_STAGES)}"),
            (self.stage != "denoiser" or self.modality in MODALITIES, f"stage denoiser needs a modality: one of {', '.join(MODALITIES)}"),
            (self.steps >= 1, f"steps {self.steps} must be 1 or more"),
            (self.batch >= 1, f"batch {self.batch} must be 1 or more"),
            (self.stage != "bridging" or self.batch >= 2, "bridging compares examples with each other: give a batch of 2 or more"),
            (self.learning_rate is None or 0 < self.learning_rate < 1, f"learning rate {self.learning_rate} must lie between 0 and 1"),
            (all(len(p) == 2 and p[0] != p[1] and set(p) <= set(MODALITIES) for p in self.pairs),
             f"pairs {self.pairs} must be two different ones of {', '.join(MODALITIES)} each, such as image+text"),
            (all(DENOISER_OF.get(p[0]) != DENOISER_OF.get(p[-1]) for p in self.pairs),
             "image and video share a denoiser: they cannot be aligned with each other"),
        ]  # fmt: skip
        for good, message in checks:
            if not good:
                raise CoDiError(message)

    @property
    def name(self) -> str:
        """Of the folder in `runs`."""
        return f"{self.stage}-{self.modality}" if self.stage == "denoiser" else self.stage


class OpenedWorkspace(Workspace):
    """A whole model folder that is trained further; nothing in it is made up."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device


def train_own(
    run: OwnRun, *, accelerator: Accelerator, say: Say = print,
    encoding: Callable[[int, int], None] = lambda *_: None, progress: Callable[[int, float, float], None] | None = None,
) -> bool:  # fmt: skip
    """Train one stage; the same call goes on from where it was interrupted. Returns False if it paused before the end.

    An exception that `progress` raises ends the run; the next one goes on from there, and what was learnt so far is in the model folder.
    encoding: called with the media encoded so far and all; progress: as for `loop.train`. Raises CoDiError for settings and data that
    cannot be used, and where `out` cannot become a model folder."""
    run.check()
    folder = run.runs / run.name
    done = folder / "done"
    if done.exists() and not run.again:
        say(f"{run.name}: done already")
        return True
    records = paired(find_records(run.data))
    start = find_model(run.model)
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            take_over(start, run.out)
            if run.stage != "alignment":
                keep_prompts_whole(run.out)
            if done.exists():
                shutil.rmtree(folder)
        space = OpenedWorkspace(run.out, accelerator.device)
        objective = build(run, space, records, say=say if accelerator.is_main_process else lambda _: None, encoding=encoding)
    if run.bf16:
        in_bfloat16(objective, accelerator.device)
    if run.learning_rate:
        objective.learning_rate = run.learning_rate
    schedule = Schedule(steps=run.steps, pause_after=run.pause_after, warmup=min(100, max(1, run.steps // 10)), shards=run.shards)
    sheet: Any = SampleSheet(space) if run.sheets else None
    if sheet and run.bf16:
        sheet = torch.autocast(accelerator.device.type, torch.bfloat16)(sheet.__call__)
    stopped: list[bool] = []

    def told(step: int, share: float, loss: float) -> None:
        try:
            if progress:
                progress(step, share, loss)
        except BaseException:
            stopped.append(True)
            raise

    settings: dict[str, Any] = {
        "seed": run.seed,
        "progress": told,
        "sheet": sheet,
        "sheet_every": run.sheets,
        "log_every": max(1, min(25, run.steps // 20)),
    }
    try:
        if not train(objective, schedule, accelerator=accelerator, run=folder, **settings):
            return False
    except BaseException:
        if stopped and accelerator.is_main_process:
            objective.write()  # what was learnt so far is a model that can be tried
        raise
    if accelerator.is_main_process:
        objective.write()
        done.write_text("finished\n", encoding="utf-8")
        (folder / "state.pt").unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return True


def take_over(start: Path, out: Path) -> None:
    """Make `out` a model folder like `start`; one that is there already is trained further. Weights are linked where the disk allows it,
    for they are only ever replaced as whole files. Raises CoDiError where `out` is `start`, or holds something else."""
    if out.exists() and out.resolve() == start.resolve():
        raise CoDiError(f"{out} is the model to start from: give another folder to write to")
    if (out / "config.json").is_file():
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CoDiError(f"{out} holds something that is no CoDi model: give a new or empty folder")
    files = sorted((p for p in start.iterdir() if p.is_file() and not p.name.startswith(".")), key=lambda p: p.name == "config.json")
    for file in files:  # config.json last: it tells a whole folder
        with whole_file(out / file.name) as temporary:
            try:
                if file.suffix != ".safetensors":
                    raise OSError
                os.link(file, temporary)
            except OSError:
                shutil.copyfile(file, temporary)


def build(run: OwnRun, space: Workspace, records: list[Record], *, say: Say, encoding: Callable[[int, int], None]) -> Objective:
    """The stage's objective, with the data encoded."""
    model = CoDi.from_pretrained(space.folder, device=space.device, dtype=torch.float32)
    cache = run.runs / "cache"
    if run.stage == "bridging":
        return _bridging(run, space, model, records, cache, encoding)
    kinds = tuple(k for k in MODALITIES if any(k in r.sources for r in records))
    if run.stage == "denoiser":
        assert run.modality is not None
        records = [r for r in records if run.modality in r.sources]
        if not records:
            raise CoDiError(f"no example has {run.modality} together with something to prompt it with; the data have {', '.join(kinds)}")
        made: tuple[str, ...] = (run.modality,)
    else:
        made = kinds
    say(f"{len(records)} examples with {', '.join(kinds)}")
    encoded = encode_records(model, records, kinds, cache, latents=made, skip_unreadable=run.skip_unreadable, progress=encoding)
    empty = encode_prompt(model, Prompt("text", ""))[0, 0]
    model.loaded.clear()
    if run.stage == "denoiser":
        objective: Any = OwnDenoising(space, encoded, empty, run.batch, DENOISER_OF[made[0]])
        nets = [objective.net]
    else:
        dtype = torch.bfloat16 if run.bf16 else torch.float32
        objective = OwnAlignment(space, encoded, empty, run.batch, run.pairs, frozen_dtype=dtype)
        nets = list(objective.nets.values())
        figures = [alignment_memory(space.config, p, run.batch, bf16=run.bf16, checkpointing=run.checkpointing) for p in objective.pairs]
        most = max(figures, key=lambda figure: figure["frozen"] + figure["activations"])
        say(f"memory of the largest pair: {describe(most)}")
    if run.checkpointing:
        for net in nets:
            checkpoint_blocks(net)
    return objective


def keep_prompts_whole(folder: Path) -> None:
    """Makes "plain" the model's own composition: facets know the world that they were fitted to, not the pairs trained on here."""
    config = CoDiConfig.load(folder / "config.json")
    if config.sampling.composition != "plain":
        with whole_file(folder / "config.json") as temporary:
            dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, composition="plain")).save(temporary)


def in_bfloat16(objective: Objective, device: torch.device) -> None:
    """Let an objective compute in bfloat16 where that is safe; what learns stays in float32."""
    objective.forward = torch.autocast(device.type, torch.bfloat16)(objective.forward)  # type: ignore[method-assign]


def _bridging(
    run: OwnRun, space: Workspace, model: CoDi, records: list[Record], cache: Path, encoding: Callable[[int, int], None]
) -> OwnBridging:
    records = [r for r in records if "text" in r.sources]
    if not records:
        raise CoDiError("no example has a caption: bridging alignment pulls pictures, clips and sounds towards their texts")
    kinds = ("text", *(k for k in ("image", "video", "audio") if any(k in r.sources for r in records)))
    found = kept_media(
        model, records, kinds, cache, encoder_input, "inputs", ["clip"], skip_unreadable=run.skip_unreadable, progress=encoding
    )
    rows = [row for row in range(len(records)) if (row, "text") in found]
    inputs: dict[str, Tensor] = {}
    has: dict[str, Tensor] = {}
    for kind in kinds[1:]:
        there = [found.get((row, kind)) for row in rows]
        sample = next((one for one in there if one), None)
        if sample:
            has[kind] = torch.tensor([one is not None for one in there])
            inputs[kind] = torch.stack([(one or {"input": torch.zeros_like(sample["input"])})["input"] for one in there])
    texts = torch.stack([found[row, "text"]["input"] for row in rows]).float()
    model.loaded.clear()
    return OwnBridging(space, inputs, texts, has, run.batch)


@torch.inference_mode()
def encoder_input(model: CoDi, prompt: Prompt) -> dict[str, Tensor]:
    """What the prompt encoder of this kind takes; of a caption its unit embedding (D,), which bridging does not change."""
    value: Any = prompt.value
    size = model.config.clip.image_size
    if prompt.kind == "text":
        return {"input": encode_prompts(model.clip, model.clip_tokenizer, [str(value)])[0, 0].float()}
    if prompt.kind == "audio":
        clap = model.config.clap
        wave = resample(value[0][None].float(), int(value[1]), clap.sample_rate)
        return {"input": repeat_pad(wave, round(clap.clip_seconds * clap.sample_rate))[0].half()}
    if prompt.kind == "image":
        return {"input": clip_image(value[None], size)[0].half()}
    count = model.config.sampling.frames
    frames = spread(value[None], count)
    frames = torch.cat([frames, frames[:, -1:].expand(-1, count - frames.shape[1], -1, -1, -1)], dim=1)
    return {"input": clip_video(frames, size)[0].half()}


def parse_pairs(text: str | Sequence[str]) -> tuple[tuple[str, str], ...]:
    """ "image+text, audio+video" -> pairs."""
    words = text.split(",") if isinstance(text, str) else list(text)
    return tuple(tuple(part.strip() for part in word.split("+")) for word in words if word.strip())  # type: ignore[misc]

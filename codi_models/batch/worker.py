"""Makes items in batches; what goes wrong with one leaves the others alone."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cli.outputs import write_sample
from ..errors import CoDiError, WriteError, out_of_memory
from ..files import writing
from ..pipeline import CoDiPipeline
from .manifest import Failure, Item

_KEPT_PROMPTS = 4096  # encoded prompts kept for items that share them

Context = tuple[Tensor, Tensor | None]
Given = tuple[dict[str, Tensor], dict[str, Any]]
"""What `CoDiPipeline.encode_given` makes of the outputs that an item gives."""


@dataclass
class Report:
    """What came of one batch."""

    made: list[tuple[Item, dict[str, bytes]]] = field(default_factory=list)
    """Items with their files, name -> content."""
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a user should know beside."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds per stage."""


class Worker:
    """One model on one device. Raises CoDiError as `CoDiPipeline.from_pretrained`."""

    def __init__(self, model: str | Path, *, device: str = "auto", dtype: str = "auto", raw: bool = False) -> None:
        self.pipe = CoDiPipeline.from_pretrained(model, device=device, dtype=dtype)
        self.raw = raw
        self._contexts: dict[Any, Context] = {}
        self._most: dict[Any, int] = {}

    def make(self, items: Sequence[Item]) -> Report:
        """Make items of one group. Raises WriteError alone: all else is a failure of the item that it came from."""
        report, ready = Report(), []
        self.pipe.seconds = {}
        for item in items:
            try:
                ready.append((item, self._context(item), self._given(item, report)))
            except WriteError:
                raise
            except Exception as error:
                report.failures.append(_failure(item, error))
        todo = [ready] if ready else []
        while todo:
            batch = todo.pop()
            group = batch[0][0].group
            most = self._most.get(group, len(batch))
            if len(batch) > most:
                todo += [batch[i : i + most] for i in reversed(range(0, len(batch), most))]
                continue
            try:
                report.made += self._generate(batch)
                continue
            except WriteError:
                raise
            except Exception as error:
                problem = _failure(batch[0][0], error)
                too_much = out_of_memory(error)
            # Outside the handler, which would keep the failed batch's tensors alive.
            half = len(batch) // 2
            if too_much:
                _free()
            if not half:
                report.failures.append(problem)
                continue
            if too_much:
                self._most[group] = half
                report.notes.append(f"out of memory with {len(batch)} items at once: going on with {half}")
            todo += [batch[half:], batch[:half]]
        report.seconds = dict(self.pipe.seconds)
        return report

    def _context(self, item: Item) -> Context:
        """The mixed prompt of an item and what guidance leads away from; kept, since many items share a prompt."""
        key = (item.prompts, item.settings.mix)
        if key not in self._contexts:
            if len(self._contexts) >= _KEPT_PROMPTS:
                self._contexts.clear()
            prompts = [prompt.read(self.pipe.model.config) for prompt in item.prompts]
            self.pipe.load(prompts, item.settings)
            self._contexts[key] = self.pipe.condition(prompts, item.settings.mix)
        return self._contexts[key]

    def _given(self, item: Item, report: Report) -> Given:
        def note(text: str) -> None:
            report.notes.append(f"{item.id}: {text}")

        return self.pipe.encode_given(self.pipe.read_given(item.given, item.settings, note=note), item.settings)

    def _generate(self, batch: Sequence[tuple[Item, Context, Given]]) -> list[tuple[Item, dict[str, bytes]]]:
        cond = torch.cat([context[0] for _, context, _ in batch])  # (B, 1, D)
        away = [context[1] for _, context, _ in batch if context[1] is not None]
        uncond = torch.cat(away) if away else None  # a group has prompts throughout, or none at all
        settings, seeds = batch[0][0].settings, [item.settings.seed for item, _, _ in batch]
        given = {output: torch.cat([latents[output] for _, _, (latents, _) in batch]) for output in settings.given}
        shown = {output: [media[output] for _, _, (_, media) in batch] for output in settings.unchanged}
        samples, _ = self.pipe.generate(cond, uncond, settings, seeds, given=given, shown=shown)
        made = []
        for (item, _, _), sample in zip(batch, samples, strict=True):
            with writing(tempfile.gettempdir()), tempfile.TemporaryDirectory() as folder:
                names: list[str] = []
                write_sample(sample, Path(folder), item.id, raw=self.raw, written=names)
                made.append((item, {name: (Path(folder) / name).read_bytes() for name in names}))
        return made


def _failure(item: Item, error: Exception) -> Failure:
    if out_of_memory(error):
        text = "out of memory with this item alone: lower its size or frames, or use a device with more memory"
    else:
        text = str(error) if isinstance(error, CoDiError) else f"{type(error).__name__}: {error}"
    return Failure(item.line, item.id, text)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Fills the cells of the evaluation: cells that ask for the same outputs are generated in common batches, and each is stored at once.

Cells that are part of larger ones are not run (see `sharing`)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...config import DENOISER_OF
from ...errors import CoDiError
from ...latents import encode_media
from ...model import CoDi
from ...pipeline import Sample
from .asking import Asked, Recipe, as_scenes, ask, rendered_prompts, stream
from .cells import Cell, Fingerprints, Readings, Store, code_version, effective, settled
from .quality import Examiner, judged
from .sharing import Sharing, excerpt

Log = Callable[[str], None]
PASS = {"video": 10.0, "audio": 1.0, "image": 0.6, "text": 0.1}
_APART = 1.5  # as many passes of pictures and clips where their prompts are taken apart in half of the steps
DECODING = {"video": 35.0, "audio": 10.0, "image": 3.0, "text": 0.3}
"""Rough cost of one pass of the denoiser, and of decoding and judging, for one sample. The unit is timed on the machine."""


class Laboratory:
    """Readings of cells: from memory, from the store, or made by the model."""

    def __init__(self, examiner: Examiner, store: Store, *, log: Log = print) -> None:
        self.examiner, self.store, self.log = examiner, store, log
        self.prints = Fingerprints(examiner.pipe.model)
        self.sharing = Sharing(examiner.pipe.model.config, examiner.overrides)
        self._known: dict[Cell, Readings] = {}
        self._asked: dict[tuple[Recipe, str], Asked] = {}
        self._pace = 0.0  # seconds of this machine per unit of cost

    def key(self, cell: Cell) -> dict[str, Any]:
        """Everything that the readings of a cell depend on."""
        settings = effective(self.examiner.pipe.model.config, cell, self.examiner.overrides)
        return {"weights": self.prints.weights(cell, self.examiner.overrides), "settings": settings, "samples": self.examiner.samples,
                "seed": self.examiner.seed, "code": code_version()}  # fmt: skip

    def read(self, cell: Cell) -> Readings:
        """Readings of a cell that is filled. Raises CoDiError where it is not."""
        if cell not in self._known:
            found = self.store.get(cell, self.key(cell))
            if found is None:
                raise CoDiError(f"the cell {cell} has not been measured: run the evaluation of its section first")
            self._known[cell] = found
        return self._known[cell]

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """Cells, each once, that have no reading yet."""
        each = list(dict.fromkeys(cells))
        for cell in each:
            if cell not in self._known and (found := self.store.get(cell, self.key(cell))) is not None:
                self._known[cell] = found
        for run in [cell for cell in each if cell in self._known]:
            self._excerpt(each, run)
        return [cell for cell in each if cell not in self._known]

    def _excerpt(self, cells: Sequence[Cell], run: Cell) -> int:
        """Store what a known cell tells of others, and count them."""
        found = [cell for cell in cells if cell not in self._known and self.sharing.begins(cell, run)]
        for cell in found:
            self._keep(cell, excerpt(cell, self._known[run]))
        return len(found)

    def _keep(self, cell: Cell, readings: Readings) -> None:
        self._known[cell] = readings
        self.store.put(cell, self.key(cell), readings)

    def part(self, cells: Sequence[Cell], which: int, parts: int) -> list[Cell]:
        """See `Sharing.part`."""
        return self.sharing.part(cells, which, parts, {cell: self.cost(cell) for cell in cells})

    def cost(self, cell: Cell) -> float:
        """Work of a cell in units of `PASS` and `DECODING`."""
        config, overrides = self.examiner.pipe.model.config, self.examiner.overrides
        run = settled(config, cell, overrides)
        passes: float = run.steps * (2 if cell.recipe.parts and run.cfg != 1 else 1)
        if run.listening:
            passes *= 1.4 if run.alignment_guidance == 1 else 2.7
        apart = _APART if cell.recipe.parts and run.composition != "plain" else 1.0
        return self.examiner.samples * _units(cell.outputs, passes, apart)

    def estimate(self, cells: Sequence[Cell]) -> float:
        """Seconds that the cells will take here, after a trial of a few samples where nothing was timed yet."""
        if cells and not self._pace:
            self._pace = self._trial()
        return self._pace * sum(map(self.cost, self.sharing.runs(cells)))

    def _trial(self) -> float:
        """Seconds per unit of cost, timed on one small joint run after one that warms up."""
        outputs, count, steps = ("video", "audio"), 4, 2
        pipe = self.examiner.pipe
        wanted, _ = pipe.condition([])
        seconds = math.nan
        for _ in range(2):
            begin = time.perf_counter()
            settings: dict[str, Any] = {"steps": steps, "sampler": "ddim", "cfg": 1.0, "wiring": "off", "batch_size": count}
            list(self.examiner.batches(wanted.expand(count, -1, -1), None, range(count), outputs, **settings))
            seconds = time.perf_counter() - begin
        return seconds / (count * _units(outputs, steps))

    def fill(self, cells: Sequence[Cell]) -> None:
        """Generate, judge and store the cells that are missing. May be interrupted: what is stored stays."""
        missing = self.missing(cells)
        expected = self.estimate(missing)
        self.log(f"{len(missing)} of {len(set(cells))} cells to measure, {duration(expected)} expected on this machine")
        runs = self.sharing.runs(missing)
        begin, done, number, total = time.monotonic(), 0.0, 0, sum(map(self.cost, runs))
        groups: dict[str, list[Cell]] = {}
        for cell in runs:
            kinds = [] if self.examiner.pipe.model.space.means else [part.kind for part in cell.recipe.parts]  # decide what guidance leaves
            alike = [cell.outputs, cell.keep, bool(cell.recipe.parts), kinds, effective(self._config, cell, self.examiner.overrides)]
            groups.setdefault(json.dumps(alike, sort_keys=True), []).append(cell)
        for cell, readings in (pair for group in groups.values() for pair in self._run(group)):
            self._keep(cell, readings)
            number += 1 + self._excerpt(missing, cell)
            done += self.cost(cell)
            spent = time.monotonic() - begin
            # The first guess counts like a twentieth of the work: one cell says little about the others.
            pace = (spent + 0.05 * expected) / (done + 0.05 * total)
            self.log(f"[{number}/{len(missing)}] {duration(spent)} gone, {duration((total - done) * pace)} to go: {cell}")
        if done:
            self._pace = (time.monotonic() - begin) / done

    @property
    def _config(self) -> Any:
        return self.examiner.pipe.model.config

    def _run(self, group: Sequence[Cell]) -> Iterator[tuple[Cell, Readings]]:
        """Cells of the same outputs and settings in common batches; each comes out as soon as its samples are there."""
        first = group[0]
        kind = settled(self._config, first, self.examiner.overrides).composition
        for recipe in {cell.recipe for cell in group if (cell.recipe, kind) not in self._asked}:
            self._asked[recipe, kind] = ask(self.examiner.pipe, recipe, self.examiner.samples, self.examiner.seed, kind)
        asked = {cell: self._asked[cell.recipe, kind] for cell in group}
        wanted = torch.cat([asked[cell].contexts for cell in group])
        seeds = [seed for cell in group for seed in asked[cell].seeds]
        waiting, ready = list(group), list[Sample]()
        last = time.monotonic()
        kept = [kept_latents(self.examiner.pipe.model, cell, asked[cell], self.examiner.seed) for cell in group]
        keep = {output: torch.cat([latents[output] for latents in kept]) for output in first.keep}
        settings: Mapping[str, Any] = dict(first.settings)
        for batch in self.examiner.batches(wanted, asked[first].nothing, seeds, first.outputs, keep=keep, **settings):
            ready += batch
            while waiting and len(ready) >= self.examiner.samples:
                cell, samples = waiting.pop(0), ready[: self.examiner.samples]
                del ready[: self.examiner.samples]
                outputs = {o: judged(samples, o, nuisance=True) for o in cell.made}
                captions = [str(sample.text) for sample in samples] if "text" in cell.made else []
                spent = time.monotonic() - last
                last += spent
                yield cell, Readings(asked[cell].scenes, asked[cell].said, outputs, captions, spent)


def kept_latents(model: CoDi, cell: Cell, asked: Asked, seed: int) -> dict[str, Tensor]:
    """Latents (n, ...) of the world's own media of scene a for the outputs that a cell keeps."""
    found = {}
    for kind in cell.keep:
        generator = torch.Generator().manual_seed(stream(seed, cell.recipe.stream, "kept", kind))
        prompts = rendered_prompts(kind, as_scenes(asked.scenes["a"]), generator)
        found[kind] = torch.stack([encode_media(model, prompt) for prompt in prompts])
    return found


def _units(outputs: Sequence[str], passes: float, apart: float = 1.0) -> float:
    return sum(passes * PASS[o] * (apart if DENOISER_OF[o] == "vision_denoiser" else 1.0) + DECODING[o] for o in outputs)


def duration(seconds: float) -> str:
    """1 h 05 min, 12 min or 40 s."""
    if not math.isfinite(seconds):
        return "some time"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

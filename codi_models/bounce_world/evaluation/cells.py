"""Cells of the evaluation: so many samples of one request, what the judge reads in them, and where the readings are kept."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...conditioning import Prompt, encode_prompt, mix
from ...files import sha256, whole_file
from ...latents import encode_media
from ...pipeline import CoDiPipeline, Sample
from ...settings import Settings
from .. import judge, words
from ..render import render_audio, render_image, render_video
from ..world import (
    ATTRIBUTES,
    BEAT_WORDS,
    COLOURS,
    FULL_TEMPLATES,
    PARTIAL_TEMPLATES,
    SAMPLE_RATE,
    SEEN_IN,
    SHAPES,
    Scenes,
    every_scene,
    sample_nuisance,
)
from . import VERSION, fidelity

HELD_BACK = (
    "could there be {shape} in {colour} which {beats} {verb}?", "my favourite is a {colour} {shape}, it {verb} {beats}",
    "{beats}, no more and no less, a {shape} of the colour {colour} {verb}", "what about {colour}? a {shape}! {beats}!",
    "a {shape}. it is {colour}. it {verb} {beats}.", "once upon a time a {colour} {shape} was seen: {verb} {beats}",
    "the thing is {colour}, the thing is a {shape}, and it {verb} {beats} before it rests", "{colour}. {shape}. {verb} {beats}",
    "if a {shape} is {colour} then it {verb} {beats}", "one of those {colour} {shape} toys, {beats} it {verb}",
)  # fmt: skip
"""Phrasings that no training has seen, for names that it has."""


@dataclass(frozen=True)
class Part:
    """One prompt of a mixture, about scene `scene` of a sample. says (text only): the attributes that it names. words: "captions" of the
    world, "users" as in training, or "held back"."""

    kind: str
    scene: str = "a"
    says: tuple[str, ...] = ATTRIBUTES
    weight: float = 1.0
    words: str = "captions"

    @property
    def shows(self) -> tuple[str, ...]:
        """Attributes that it tells."""
        return tuple(a for a in SEEN_IN[self.kind] if self.kind != "text" or a in self.says)


@dataclass(frozen=True)
class Cell:
    """A request: prompts, outputs, outputs that are given (the world's own media of scene a), and settings that are not the model's."""

    outputs: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    given: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return json.dumps([self.outputs, [vars(p) for p in self.parts], self.given, self.settings])


@dataclass
class Readings:
    """What was asked for and what was read, n samples."""

    scenes: dict[str, Tensor]  # (n, 3) indices: shape, colour, beats
    outputs: dict[str, dict[str, Tensor]]  # output -> what the judge reads, nuisance and fidelity, (n,) or (n, times)
    seconds: float = 0.0
    texts: list[str] = field(default_factory=list)

    def scene(self, name: str = "a") -> Scenes:
        return Scenes(*self.scenes[name].unbind(1))

    def dump(self) -> dict[str, Any]:
        """As JSON takes it; `load` is the inverse."""
        outputs = {o: {k: _rounded(v) for k, v in read.items()} for o, read in self.outputs.items()}
        scenes = {name: value.tolist() for name, value in self.scenes.items()}
        return {"scenes": scenes, "outputs": outputs, "seconds": round(self.seconds, 2), "texts": self.texts}

    @staticmethod
    def load(data: dict[str, Any]) -> Readings:
        outputs = {o: {k: _tensor(v) for k, v in read.items()} for o, read in data["outputs"].items()}
        scenes = {name: torch.tensor(value) for name, value in data["scenes"].items()}
        return Readings(scenes, outputs, data["seconds"], data["texts"])


class Runner:
    """Readings of cells, made by a model where they are not in `file` yet: one compressed JSON, whole after every cell.

    It holds the readings of one key: hashes of the weights, settings, samples, seed and `VERSION`. Those of another key are dropped."""

    def __init__(
        self, pipe: CoDiPipeline, file: Path, *, samples: int, seed: int, overrides: Mapping[str, Any], log: Callable[[str], None] = print
    ) -> None:
        self.pipe, self.file, self.samples, self.seed, self.overrides, self.log = pipe, file, samples, seed, dict(overrides), log
        folder = pipe.model.folder
        weights = {path.name: sha256(path)[:16] for path in sorted(folder.glob("*.safetensors"))}
        self.key = {"version": VERSION, "weights": weights, "settings": self.overrides, "samples": samples, "seed": seed,
                    "sampling": json.loads(json.dumps(vars(pipe.model.config.sampling)))}  # fmt: skip
        self.known: dict[str, Readings] = {}
        try:
            data = json.loads(gzip.decompress(file.read_bytes()))
            if data["key"] == self.key:
                self.known = {name: Readings.load(one) for name, one in data["cells"].items()}
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            pass  # none there, or damaged: they are made again

    def read(self, cell: Cell) -> Readings:
        """Readings of a cell."""
        if str(cell) not in self.known:
            begin = time.monotonic()
            found = self._run(cell)
            found.seconds = time.monotonic() - begin
            self.known[str(cell)] = found
            self._store()
            asked = " + ".join(p.kind for p in cell.parts) or "no prompt"
            self.log(f"{asked} -> {', '.join(cell.outputs)}: {found.seconds:.1f} s")
        return self.known[str(cell)]

    def _store(self) -> None:
        data = {"key": self.key, "cells": {name: one.dump() for name, one in self.known.items()}}
        with whole_file(self.file) as temporary:
            temporary.write_bytes(gzip.compress(json.dumps(data).encode("utf-8"), mtime=0))

    def _run(self, cell: Cell) -> Readings:
        stream = int.from_bytes(hashlib.sha256(f"{self.seed}:{cell}".encode()).digest()[:5], "little")
        generator, rng = torch.Generator().manual_seed(stream), random.Random(stream)
        scenes = draw_scenes(self.samples, generator)
        cond, uncond = self._prompts(cell, scenes, generator, rng)
        model = self.pipe.model
        settings = Settings.resolve(
            model.config, cell.outputs, given=cell.given, count=self.samples, **{**self.overrides, **dict(cell.settings)}
        )
        given = {kind: media(kind, scenes["a"], generator) for kind in cell.given}
        latents = {kind: torch.stack([encode_media(model, prompt) for prompt in found]) for kind, found in given.items()}
        samples: list[Sample] = []
        for start in range(0, self.samples, settings.batch_size):
            rows = slice(start, min(start + settings.batch_size, self.samples))
            seeds = [stream + i for i in range(rows.start, rows.stop)]
            shown = {kind: [0] * len(seeds) for kind in cell.given}
            own = {kind: z[rows] for kind, z in latents.items()}
            samples += self.pipe.generate(cond[rows], uncond, settings, seeds, given=own, shown=shown)[0]
        outputs = {o: read_output(samples, o) for o in cell.outputs if o not in cell.given}
        texts = [str(s.text) for s in samples] if "text" in outputs else []
        return Readings({name: value.cpu() for name, value in scenes.items()}, outputs, texts=texts)

    def _prompts(
        self, cell: Cell, scenes: Mapping[str, Tensor], generator: torch.Generator, rng: random.Random
    ) -> tuple[Tensor, Tensor | None]:
        model = self.pipe.model
        empty = self.pipe.condition([])[0]
        if not cell.parts:
            return empty.expand(self.samples, -1, -1), None
        columns = []
        for part in cell.parts:
            if part.kind == "text":
                prompts = [Prompt("text", say(part, scene, rng)) for scene in scenes[part.scene].tolist()]
            else:
                prompts = media(part.kind, scenes[part.scene], generator)
            columns.append(torch.cat([encode_prompt(model, prompt) for prompt in prompts]))  # (n, 1, D)
        return mix(columns, [part.weight for part in cell.parts]), empty


def draw_scenes(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Scenes a and b of each sample, (n, 3); b differs from a in every attribute."""
    table = torch.stack([getattr(every_scene(), name) for name in ATTRIBUTES], dim=1)  # (72, 3)
    a = table[torch.randperm(len(table), generator=generator).repeat(-(-count // len(table)))[:count]]
    sizes = torch.tensor([len(SHAPES), len(COLOURS), len(BEAT_WORDS)])
    steps = torch.stack([torch.randint(1, int(size), (count,), generator=generator) for size in sizes], dim=1)
    return {"a": a, "b": (a + steps) % sizes}


def say(part: Part, scene: Sequence[int], rng: random.Random) -> str:
    """A text prompt about a scene."""
    if part.words == "users":
        return words.users_words(rng, *scene, whole=1.0)
    names = {"shape": SHAPES[scene[0]], "colour": COLOURS[scene[1]], "beats": BEAT_WORDS[scene[2]]}
    if part.words == "held back":
        names["shape"] = rng.choice(words.SHAPE_WORDS[names["shape"]])
        names["colour"] = rng.choice(words.COLOUR_WORDS[names["colour"]])
        names["beats"] = rng.choice([b for b in words.BEAT_PHRASES[scene[2]] if "bounce" not in b and b not in ("double", "triple")])
        return rng.choice(HELD_BACK).format(**names, verb=rng.choice(words.VERBS)[0])
    fitting = [t for t in (*FULL_TEMPLATES, *PARTIAL_TEMPLATES) if {a for a in ATTRIBUTES if "{" + a + "}" in t} == set(part.says)]
    return rng.choice(fitting).format(**names)


def media(kind: str, scenes: Tensor, generator: torch.Generator) -> list[Prompt]:
    """The world's own media of scenes (n, 3)."""
    of, nuisance = Scenes(*scenes.unbind(1)), sample_nuisance(len(scenes), generator=generator)
    if kind == "text":
        named = zip(of.shape.tolist(), of.colour.tolist(), of.beats.tolist(), strict=True)
        return [Prompt("text", FULL_TEMPLATES[0].format(shape=SHAPES[s], colour=COLOURS[c], beats=BEAT_WORDS[b])) for s, c, b in named]
    if kind == "audio":
        return [Prompt("audio", (wave, SAMPLE_RATE)) for wave in render_audio(of, nuisance)]
    return [Prompt(kind, pixels) for pixels in (render_image if kind == "image" else render_video)(of, nuisance)]


def read_output(samples: Sequence[Sample], output: str) -> dict[str, Tensor]:
    """What the judge reads in one output, with nuisance and fidelity."""
    if output == "text":
        return judge.judge_text([str(sample.text) for sample in samples])
    media = torch.stack([getattr(sample, output) for sample in samples])
    if output == "audio":
        rate = samples[0].sample_rate
        return {**judge.judge_audio(media, rate, nuisance=True), "distance": fidelity.spectral_distance(media, rate)}
    if output == "image":
        return {**judge.judge_image(media, nuisance=True), "iou": fidelity.outline_iou(media)}
    return {**judge.judge_video(media, nuisance=True), "track": fidelity.track_error(media)}


def _rounded(values: Tensor) -> list[Any]:
    if not values.is_floating_point():
        return values.tolist()
    return [[_number(x) for x in row] if isinstance(row, list) else _number(row) for row in values.tolist()]


def _number(x: float) -> float | None:
    return round(x, 4) if x == x else None


def _tensor(values: list[Any]) -> Tensor:
    flat = [x for row in values for x in (row if isinstance(row, list) else [row])]
    if all(isinstance(x, int) for x in flat):
        return torch.tensor(values)
    return torch.tensor([[_nan(x) for x in row] if isinstance(row, list) else _nan(row) for row in values], dtype=torch.float32)


def _nan(x: float | None) -> float:
    return float("nan") if x is None else x

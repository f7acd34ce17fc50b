"""Bounce World: a coloured shape bounces on a floor, and text, image, video and sound say the same thing about it.

Made by rule, so that every claim about a sample can be checked by measurement. A scene is (shape, colour, beats); all else
is nuisance. This module holds scenes, their nuisance, their motion and their captions; render.py makes media of them.
Everywhere an attribute is an index: SHAPES[shape], COLOURS[colour], BEATS[beats]; -1 stands for "not said" or "unreadable".
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator, Tensor

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
BEATS = (1, 2, 3)
BEAT_WORDS = ("once", "twice", "three times")
ATTRIBUTES = ("shape", "colour", "beats")
SEEN_IN = {"image": ("shape", "colour"), "video": ATTRIBUTES, "audio": ATTRIBUTES, "text": ATTRIBUTES}
"""Attributes that a medium shows. A still image does not show the beats."""

DURATION = 1.28  # seconds
FRAMES = 8
IMAGE_SIZE = 64
SAMPLE_RATE = 16000
SAMPLES = 20480  # DURATION * SAMPLE_RATE

RGB = (
    (0.90, 0.15, 0.15),
    (0.95, 0.85, 0.15),
    (0.15, 0.75, 0.25),
    (0.15, 0.80, 0.90),
    (0.20, 0.30, 0.95),
    (0.90, 0.25, 0.85),
)
FREQUENCIES = (330.0, 440.0, 587.0, 784.0, 1047.0, 1397.0)  # Hz, by colour

FULL_TEMPLATES = (
    "a {colour} {shape} bounces {beats}",
    "a {colour} {shape} bouncing {beats}",
    "the {shape} is {colour} and bounces {beats}",
    "{colour} {shape}, {beats}",
)
PARTIAL_TEMPLATES = (
    "a {colour} {shape}",
    "a {shape} bounces {beats}",
    "something {colour}",
    "a {shape}",
    "something {colour} bounces {beats}",
    "something bounces {beats}",
)
TEMPLATES = FULL_TEMPLATES + PARTIAL_TEMPLATES


B = TypeVar("B", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """Tensors that share their first dimension (n,) and their device."""

    def fields(self) -> Iterator[tuple[str, Tensor]]:
        for field in dataclasses.fields(self):
            yield field.name, getattr(self, field.name)

    def __len__(self) -> int:
        return len(next(self.fields())[1])

    @property
    def device(self) -> torch.device:
        return next(self.fields())[1].device

    def __getitem__(self: B, rows: slice | Tensor) -> B:
        """The rows that a slice, an index tensor or a mask (n,) selects."""
        return type(self)(**{name: value[rows] for name, value in self.fields()})

    def to(self: B, device: torch.device | str) -> B:
        return type(self)(**{name: value.to(device) for name, value in self.fields()})


@dataclass(frozen=True)
class Scenes(Batch):
    """n scenes as indices, int64 (n,) each: SHAPES[shape], COLOURS[colour], BEATS[beats]."""

    shape: Tensor
    colour: Tensor
    beats: Tensor

    def describe(self, row: int) -> dict[str, str | int]:
        return {
            "shape": SHAPES[int(self.shape[row])],
            "colour": COLOURS[int(self.colour[row])],
            "beats": BEATS[int(self.beats[row])],
        }


@dataclass(frozen=True)
class Nuisance(Batch):
    """What a scene leaves open, (n,) each. Media of one scene share none of it: draw a new one for each medium."""

    grey: Tensor  # background, 0.05 .. 0.20
    x: Tensor  # centre, 16 .. 48 px
    radius: Tensor  # 8 .. 11 px
    time: Tensor  # of a still image, 0 .. DURATION seconds
    detune: Tensor  # factor on the frequency, 0.99 .. 1.01
    peak: Tensor  # of the waveform, 0.3 .. 0.8
    noise_seed: Tensor  # int64; seeds the noise in the sound of a star


def every_scene(*, device: torch.device | str = "cpu") -> Scenes:
    """All 72 scenes, once each, in a fixed order."""
    sizes = (len(SHAPES), len(COLOURS), len(BEATS))
    return Scenes(*torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes)).unbind(1))


def sample_scenes(n: int, *, generator: Generator) -> Scenes:
    """n scenes drawn uniformly, on the generator's device."""
    table = every_scene(device=generator.device)
    return table[torch.randint(len(table), (n,), generator=generator, device=generator.device)]


def sample_nuisance(n: int, *, generator: Generator) -> Nuisance:
    """Nuisance of n samples of one medium, uniform over the ranges of the world, on the generator's device."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, device=generator.device)

    return Nuisance(
        grey=uniform(0.05, 0.20),
        x=uniform(16.0, 48.0),
        radius=uniform(8.0, 11.0),
        time=uniform(0.0, DURATION),
        detune=uniform(0.99, 1.01),
        peak=uniform(0.3, 0.8),
        noise_seed=torch.randint(2**31, (n,), generator=generator, device=generator.device),
    )


def frame_times(frames: int = FRAMES, *, device: torch.device | str = "cpu") -> Tensor:
    """Times of a clip's frames in seconds, (frames,)."""
    return (torch.arange(frames, device=device) + 0.5) * (DURATION / frames)


def hit_times(beats: Tensor) -> Tensor:
    """Beats index (n,) -> times of the hits in seconds, (n, 3), NaN where there are fewer."""
    count = (beats + 1).unsqueeze(1)
    k = torch.arange(len(BEATS), device=beats.device)
    return torch.where(k < count, (k + 0.5) * DURATION / count, torch.nan)  # (n, 3)


def height(beats: Tensor, time: Tensor) -> Tensor:
    """Height above the floor, 0 (hit) .. 1 (top), at times in seconds; beats (n,) and time (n, ...) -> as time."""
    count = (beats + 1).view(-1, *[1] * (time.ndim - 1))
    return (math.pi * count * time / DURATION).cos().abs()


def _caption_tables() -> tuple[tuple[str, ...], Tensor, Tensor]:
    index: dict[str, int] = {}
    said: list[list[int]] = []
    ids = torch.empty(len(TEMPLATES), len(SHAPES), len(COLOURS), len(BEATS), dtype=torch.long)
    for t, template in enumerate(TEMPLATES):
        for s, c, b in itertools.product(range(len(SHAPES)), range(len(COLOURS)), range(len(BEATS))):
            caption = template.format(shape=SHAPES[s], colour=COLOURS[c], beats=BEAT_WORDS[b])
            if caption not in index:
                index[caption] = len(index)
                said.append([v if "{" + name + "}" in template else -1 for name, v in zip(ATTRIBUTES, (s, c, b), strict=True)])
            ids[t, s, c, b] = index[caption]
    return tuple(index), ids, torch.tensor(said)


ALL_CAPTIONS, CAPTION_IDS, CAPTION_ATTRIBUTES = _caption_tables()
"""Every caption of the world (355 str); id of a caption by (template, shape, colour, beats), (10, 4, 6, 3); what each
caption says as (shape, colour, beats), -1 where it leaves an attribute open, (355, 3)."""


def template_range(full: bool | None) -> tuple[int, int]:
    """First and end in TEMPLATES: True for the four that say everything, False for the six partial ones, None for all ten."""
    return {True: (0, len(FULL_TEMPLATES)), False: (len(FULL_TEMPLATES), len(TEMPLATES)), None: (0, len(TEMPLATES))}[full]


def sample_caption_ids(scenes: Scenes, *, generator: Generator, full: bool | None = None) -> Tensor:
    """One caption of each scene as index into ALL_CAPTIONS, (n,), on the scenes' device.

    full: True draws among the four templates that say everything, False among the six partial ones, None among all ten.
    """
    first, end = template_range(full)
    template = torch.randint(first, end, (len(scenes),), generator=generator, device=generator.device).to(scenes.device)
    return CAPTION_IDS.to(scenes.device)[template, scenes.shape, scenes.colour, scenes.beats]


def captions(scenes: Scenes, *, generator: Generator, full: bool | None = None) -> list[str]:
    """One caption of each scene; `full` as for `sample_caption_ids`."""
    return [ALL_CAPTIONS[i] for i in sample_caption_ids(scenes, generator=generator, full=full).tolist()]

"""Neighbours of Bounce World: more outlines, colours, timbres and pitches, so that training meets each attribute in more company.

They serve training alone: the world, its judge and its evaluation know nothing of them. A network that has met a square in five colours
only learns eighteen pictures by heart; one that has met it in thirteen can learn what a square is. Scenes are numbered on from the
world's: SHAPES[:4] and COLOURS[:6] are the world's own. In a foreign colour the judge reads none, by eye or by ear. Of a foreign outline
or timbre, which comes in the world's colours only, it names the nearest that it knows: a cyan diamond is no circle, but has its colour."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Generator, Tensor

from . import world as bounce
from .world import BEATS, TEMPLATES, Scenes

SHAPES = (*bounce.SHAPES, "diamond", "wedge", "spark", "ring")
COLOURS = (*bounce.COLOURS, "salmon", "lime", "pink", "purple", "white", "brown", "teal", "navy")

RGB = (
    *bounce.RGB,
    (0.95, 0.57, 0.47),
    (0.60, 0.95, 0.40),
    (0.98, 0.76, 0.80),
    (0.50, 0.18, 0.68),
    (0.92, 0.92, 0.92),
    (0.50, 0.30, 0.15),
    (0.10, 0.42, 0.55),
    (0.15, 0.15, 0.55),
)
FREQUENCIES = (*bounce.FREQUENCIES, 381.0, 508.0, 678.0, 906.0, 262.0, 1209.0, 1661.0, 1976.0)  # Hz, by colour

TIMBRES = (
    (0.0, 0.0, 1.0, 0.0),
    (0.0, 1.0, 1.0, 0.0),
    (1.0, 1.0, 1.0, 0.0),
    (0.0, 0.0, 1.0, 1.0),
    (1.0, 0.0, 1.0, 0.0),
    (1.0, 0.0, 1.0, 1.0),
    (0.0, 1.0, 1.0, 1.0),
    (1.0, 1.0, 0.3, 0.0),
)
"""By shape: even and odd partials above the first (0 or 1), the power of 1 / h that they fall with, and noise beside them."""


@lru_cache(maxsize=1)
def captions() -> tuple[tuple[str, ...], Tensor, Tensor]:
    """What `bounce` has as ALL_CAPTIONS, CAPTION_IDS and CAPTION_ATTRIBUTES, with the neighbours' names too."""
    return bounce.caption_tables(SHAPES, COLOURS)


@lru_cache(maxsize=4)
def training_scenes(device: torch.device | str = "cpu") -> Scenes:
    """The world's 54 scenes of training in the order of `bounce.every_scene`, then 168 neighbours, in each of which one of shape
    and colour is the world's."""
    world = bounce.every_scene("exclude")
    near = [
        (shape, colour, beats)
        for shape in range(len(SHAPES))
        for colour in range(len(COLOURS))
        for beats in range(len(BEATS))
        if (shape < len(bounce.SHAPES)) != (colour < len(bounce.COLOURS))
    ]
    rows = torch.cat([torch.stack([world.shape, world.colour, world.beats], 1), torch.tensor(near)])
    return Scenes(*rows.to(device).unbind(1))


def draw_ids(count: int, generator: Generator, share: float) -> Tensor:
    """Rows of `training_scenes`, (count,): about a `share` (0..1) of them neighbours, the others the world's, each uniformly."""
    world, every = len(bounce.every_scene("exclude")), len(training_scenes())
    device = generator.device
    near = torch.rand(count, generator=generator, device=device) < share
    own = torch.randint(world, (count,), generator=generator, device=device)
    return torch.where(near, torch.randint(world, every, (count,), generator=generator, device=device), own)


def draw_scenes(count: int, generator: Generator, share: float) -> Scenes:
    """`count` scenes as `draw_ids` has them."""
    return training_scenes(generator.device)[draw_ids(count, generator, share)]


def foreign(scenes: Scenes) -> Tensor:
    """Which scenes are neighbours, bool (n,)."""
    return (scenes.shape >= len(bounce.SHAPES)) | (scenes.colour >= len(bounce.COLOURS))


def sample_caption_ids(scenes: Scenes, *, generator: Generator, full: bool | None = None) -> Tensor:
    """One caption of each scene as index into `captions()`, (n,); `full` as in `bounce.sample_caption_ids`.

    A caption of a neighbour says what is foreign in it: "a square" is one in the world's colours."""
    first, end = bounce.template_range(full)
    allowed = torch.ones(len(scenes), len(TEMPLATES), device=scenes.device)
    allowed[:, :first] = 0
    allowed[:, end:] = 0
    names = torch.tensor([["{shape}" in t, "{colour}" in t] for t in TEMPLATES], device=scenes.device)  # (10, 2)
    allowed[scenes.shape >= len(bounce.SHAPES)] *= names[:, 0]
    allowed[scenes.colour >= len(bounce.COLOURS)] *= names[:, 1]
    template = torch.multinomial(allowed.to(generator.device), 1, generator=generator)[:, 0].to(scenes.device)
    return captions()[1].to(scenes.device)[template, scenes.shape, scenes.colour, scenes.beats]

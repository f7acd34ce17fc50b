"""Sounds between those of Bounce World, so that training learns pitch apart from timbre.

They serve training alone. A sound lies between two neighbouring colours in pitch, between two shapes in timbre, or both, as far as its
prompt lies between theirs. None of them is a scene that is held out: what the judge would read as one is left out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from . import judge, neighbours, render
from . import world as bounce
from .world import Nuisance, Scenes

SIZES = {"shape": len(bounce.SHAPES), "colour": len(bounce.COLOURS), "beats": len(bounce.BEATS)}


@dataclass(frozen=True)
class Gliding(bounce.Batch):
    """n sounds: from a shape to another one and from a colour to the next one, each as far as its share, 0..1, says."""

    shape: Tensor
    other_shape: Tensor
    shape_share: Tensor
    colour: Tensor
    colour_share: Tensor
    beats: Tensor

    @property
    def scenes(self) -> Scenes:
        """The scenes with the first shape and the lower of the two colours."""
        return Scenes(self.shape, self.colour, self.beats)

    def odds(self) -> dict[str, Tensor]:
        """Shares of the values of each facet, the last of them of its absence: facet -> (n, values + 1)."""

        def between(name: str, first: Tensor, second: Tensor, share: Tensor) -> Tensor:
            start, end = (one_hot(value, SIZES[name] + 1).float() for value in (first, second))
            return torch.lerp(start, end, share[:, None])

        return {
            "shape": between("shape", self.shape, self.other_shape, self.shape_share),
            "colour": between("colour", self.colour, self.colour + 1, self.colour_share),
            "beats": one_hot(self.beats, SIZES["beats"] + 1).float(),
        }

    def render(self, nuisance: Nuisance) -> Tensor:
        """The sounds, (n, 20480) as `render.render_audio` has them."""
        steps = [math.log(b / a) for a, b in zip(bounce.FREQUENCIES, bounce.FREQUENCIES[1:], strict=False)]
        up = (self.colour_share * torch.tensor(steps).to(self.colour_share)[self.colour]).exp()
        table = torch.tensor(neighbours.TIMBRES, device=self.shape.device)
        timbres = torch.lerp(table[self.shape], table[self.other_shape], self.shape_share[:, None])
        return render.render_audio(self.scenes, replace(nuisance, detune=nuisance.detune * up), timbres)


def draw(count: int, generator: Generator) -> Gliding:
    """`count` sounds on the generator's device: a third each between two pitches, between two timbres, and between both."""
    device = generator.device

    def below(limit: int) -> Tensor:
        return torch.randint(limit, (count,), generator=generator, device=device)

    shape, beats = below(SIZES["shape"]), below(SIZES["beats"])
    other = (shape + 1 + below(SIZES["shape"] - 1)) % SIZES["shape"]
    lower = below(SIZES["colour"] - 1)
    shares = torch.rand(2, count, generator=generator, device=device)
    kind = below(3)
    colour_share = torch.where(kind == 1, below(2).float(), shares[0])  # a pitch of the world, the lower one or the next
    return Gliding(shape, other, torch.where(kind == 0, 0.0, shares[1]), lower, colour_share, beats)


def sounds(count: int, generator: Generator, chunk: int = 256) -> tuple[Gliding, Tensor]:
    """About `count` sounds between those of the world, none of them held out, and their waves (n, 20480)."""
    kept: list[tuple[Gliding, Tensor]] = []
    for start in range(0, count, chunk):
        drawn = draw(min(chunk, count - start), generator)
        waves = drawn.render(bounce.sample_nuisance(len(drawn), generator=generator))
        rows = ~held_out(waves)
        kept.append((drawn[rows], waves[rows]))
    fields = {name: torch.cat([getattr(part, name) for part, _ in kept]) for name, _ in kept[0][0].fields()}
    return Gliding(**fields), torch.cat([waves for _, waves in kept])


def held_out(waves: Tensor) -> Tensor:
    """Whether the judge reads a shape and a colour in them that are held out, bool (n,)."""
    read = judge.judge_audio(waves, bounce.SAMPLE_RATE)
    pairs = [(bounce.SHAPES.index(shape), bounce.COLOURS.index(colour)) for shape, colour in bounce.HELD_OUT]
    return torch.stack([(read["shape"] == shape) & (read["colour"] == colour) for shape, colour in pairs]).any(dim=0)

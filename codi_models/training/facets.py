"""Fits the facets of the shared space to captions and to media of the pairs that bridging alignment trains on. Nothing is iterated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ..bounce_world import bounce, neighbours
from ..facets import Facet, Facets

RIDGE = 1e-4  # variance that a reader takes for noise
HEAVIER = 0.6  # weight of the prompt that is to be heard in a mixture of two
SHARPNESSES = tuple(2 ** (k / 4) for k in range(8, 29))  # 4 .. 128


def caption_rows() -> Tensor:
    """Rows of `neighbours.captions` that tell of the world alone and of no pair that is held out, (n,)."""
    attributes = neighbours.captions()[2]
    held_out = {(bounce.SHAPES.index(shape), bounce.COLOURS.index(colour)) for shape, colour in bounce.HELD_OUT}
    apart = torch.tensor([pair not in held_out for pair in map(tuple, attributes[:, :2].tolist())])
    return (apart & (attributes[:, 0] < len(bounce.SHAPES)) & (attributes[:, 1] < len(bounce.COLOURS))).nonzero()[:, 0]


def fit_facets(captions: Tensor, empty: Tensor, media: Mapping[str, tuple[Tensor, Tensor]]) -> Facets:
    """Facets shape, colour and beats.

    captions: embeddings of all of `neighbours.captions`, (C, D); empty: of the empty text, (D,); media: kind -> embeddings (N, D) and
    their scenes (N, 3). All aligned in the shared space. Text and each kind of media count the same. Readers are fitted to prompts alone,
    the sharpness to mixtures of two as well: where both say something, the heavier is to be heard."""
    rows = caption_rows()
    said = torch.cat([neighbours.captions()[2][rows].to(captions.device), said_of_nothing(captions.device)])
    points = torch.cat([captions[rows], empty[None]])
    sources = [(points, said), *((e, shown(kind, scenes)) for kind, (e, scenes) in media.items())]
    inputs = torch.cat([e for e, _ in sources])
    shows = torch.cat([a for _, a in sources])
    weights = torch.cat([torch.full((len(e),), 1 / len(e), device=e.device) for e, _ in sources])
    sizes = [len(names) for names in (bounce.SHAPES, bounce.COLOURS, bounce.BEATS)]
    values = [_alone(points, said, facet, size) for facet, size in enumerate(sizes)]
    readers = [_reader(inputs, table[shows[:, facet]], weights) for facet, table in enumerate(values)]
    base, parts = _parts(points, said, sizes)
    named = zip(bounce.ATTRIBUTES, readers, values, parts, strict=True)
    found = Facets({name: Facet(*tensors) for name, *tensors in named}, base, 1.0)

    other = torch.multinomial(weights.cpu(), len(inputs), replacement=True, generator=torch.Generator().manual_seed(0)).to(inputs.device)
    mixed = torch.lerp(inputs[other], inputs, HEAVIER)
    asked = [(inputs, shows), (mixed, torch.where(shows >= 0, shows, shows[other]))]

    def surprise(sharpness: float) -> float:
        told = torch.zeros_like(weights)
        for prompts, says in asked:
            odds = Facets(found.facets, base, sharpness).odds(prompts[:, None])
            for k, name in enumerate(bounce.ATTRIBUTES):
                told += odds[name][:, 0].gather(1, (says[:, k] % (sizes[k] + 1))[:, None])[:, 0].clamp_min(1e-9).log()
        return -float((weights * told).sum())

    return Facets(found.facets, base, min(SHARPNESSES, key=surprise))


def said_of_nothing(device: torch.device) -> Tensor:
    """The attributes of the empty text, (1, 3)."""
    return torch.full((1, len(bounce.ATTRIBUTES)), -1, device=device)


def shown(kind: str, scenes: Tensor) -> Tensor:
    """(N, 3) with -1 for attributes that a medium does not show."""
    visible = torch.tensor([name in bounce.SEEN_IN[kind] for name in bounce.ATTRIBUTES], device=scenes.device)
    return torch.where(visible, scenes, -1)


def _alone(points: Tensor, said: Tensor, facet: int, size: int) -> Tensor:
    """Mean embedding of the captions that say one value of this facet and no other facet; last, of the empty text. (size + 1, D)"""
    single = (said >= 0).sum(dim=1) == 1
    rows = [points[single & (said[:, facet] == value)].mean(dim=0) for value in range(size)]
    return normalize(torch.stack([*rows, points[-1]]), dim=-1)


def _reader(inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Ridge regression with a constant, (D + 1, D)."""
    x = torch.cat([inputs, torch.ones(len(inputs), 1, device=inputs.device)], dim=1).double()
    weighted = x * (weights / weights.sum()).double()[:, None]
    ridge = RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    ridge[-1, -1] = 0
    return torch.linalg.solve(weighted.T @ x + ridge, weighted.T @ targets.double()).float()


def _parts(points: Tensor, said: Tensor, sizes: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Base (D,) and parts (n, D) of the facets whose sums come nearest to the captions, least squares of least norm.

    Captions that say the same facets count like one; those that say all of them, which are what denoisers are asked most, twice."""
    facets = [one_hot(said[:, k] % (size + 1), size + 1) for k, size in enumerate(sizes)]
    x = torch.cat([torch.ones(len(said), 1, device=said.device, dtype=torch.long), *facets], dim=1).double()
    kinds = (said >= 0).long() @ torch.tensor([1, 2, 4], device=said.device)
    weight = (1 / torch.bincount(kinds)[kinds] * torch.where(kinds == kinds.max(), 2, 1)).sqrt()[:, None].double()
    solution = torch.linalg.pinv(x * weight) @ (points.double() * weight)
    base, *parts = solution.float().split([1, *(size + 1 for size in sizes)])
    return base[0], parts

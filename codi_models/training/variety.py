"""Pictures and sounds from outside Bounce World, for the networks that only carry media: decoders and the vocoder.

A carrier that has met nothing but the training scenes bends everything towards them. What it meets here is never a scene: other
outlines in any colour, the world's outlines in other colours, and notes at other pitches."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..bounce_world import bounce
from ..bounce_world.render import FLOOR_BOTTOM, FLOOR_GREY, FLOOR_TOP, HIGHEST_PARTIAL, coverage

NEAREST_COLOUR = 0.3  # distance in RGB that a colour keeps from the world's six
LOWEST_PITCH = 200.0  # Hz
NEAREST_PITCH = 0.05  # relative distance that a pitch keeps from the world's six


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    size = (shape,) if isinstance(shape, int) else shape
    return low + (high - low) * torch.rand(size, generator=generator, device=generator.device)


def pictures(count: int, generator: torch.Generator) -> Tensor:
    """Pictures (n, 3, 64, 64) in 0..1: a polygon, a ring or a bar in any colour, or an outline of the world in a colour that is none."""
    n, device, size = count, generator.device, bounce.IMAGE_SIZE
    x, y = _uniform(n, 12, 52, generator), _uniform(n, 12, 46, generator)
    radius, turn = _uniform(n, 7, 12, generator), _uniform(n, 0, 2 * math.pi, generator)
    grid = (torch.arange(2 * size, device=device) + 0.5) / 2
    dx, dy = (
        (grid.view(1, 1, -1) - x.view(n, 1, 1)).expand(n, 2 * size, -1),
        (grid.view(1, -1, 1) - y.view(n, 1, 1)).expand(n, -1, 2 * size),
    )

    def column(value: Tensor) -> Tensor:
        return value.view(n, 1, 1)

    rho, angle = torch.hypot(dx, dy), torch.atan2(dx, -dy) - column(turn)
    half = math.pi / column(torch.randint(5, 7, (n,), generator=generator, device=device))
    polygon = rho * ((angle.remainder(2 * half) - half).abs()).cos() - column(radius)
    ring = (rho - column(radius)).abs() - column(_uniform(n, 1.0, 3.0, generator))
    along, across = rho * angle.cos(), rho * angle.sin()
    bar = torch.maximum(along.abs() - column(radius), across.abs() - column(radius * _uniform(n, 0.25, 0.6, generator)))
    known = coverage(column(torch.randint(len(bounce.SHAPES), (n,), generator=generator, device=device)), dx, dy, column(radius), edge=0.5)
    kind = column(torch.randint(4, (n,), generator=generator, device=device))
    alpha = (0.5 - torch.where(kind == 0, polygon, torch.where(kind == 1, ring, bar)) / 0.5).clamp(0, 1)
    alpha = functional.avg_pool2d(torch.where(kind == 3, known, alpha)[:, None], 2)  # (n, 1, 64, 64)

    table = torch.tensor(bounce.RGB, device=device)  # (6, 3)
    other = _uniform((n, 16, 3), 0.05, 1.0, generator)  # far from the six: the farthest of some draws
    gap = torch.cdist(other, table.expand(n, -1, -1)).amin(2)  # (n, 16)
    first = (gap > NEAREST_COLOUR).float().argmax(1)
    other = other[torch.arange(n, device=device), torch.where(gap.amax(1) > NEAREST_COLOUR, first, gap.argmax(1))]
    same = table[torch.randint(len(table), (n,), generator=generator, device=device)]
    worldly = (kind.view(n) != 3) & (_uniform(n, 0, 1, generator) < 0.6)
    colour = torch.where(worldly[:, None], same, other).view(n, 3, 1, 1)
    grey = _uniform(n, 0.05, 0.2, generator).view(n, 1, 1, 1)
    result = grey + alpha * (colour - grey)
    lit = (_uniform(n, 0, 1, generator) < 0.3).view(n, 1, 1, 1)
    result[:, :, FLOOR_TOP:FLOOR_BOTTOM] = torch.where(lit, colour, FLOOR_GREY)
    return result


def sounds(count: int, generator: torch.Generator) -> Tensor:
    """Sounds (n, 20480) at 16 kHz: one to four decaying notes of one pitch, with any balance of harmonics and noise."""
    n, device = count, generator.device
    known = torch.tensor(bounce.FREQUENCIES, device=device)
    draws = LOWEST_PITCH * 10 ** _uniform((n, 16), 0, 1, generator)  # 200 .. 2000 Hz
    free = ((draws[..., None] / known - 1).abs().amin(2) > NEAREST_PITCH).float().argmax(1)
    frequency = draws[torch.arange(n, device=device), free]  # (n,)
    time = torch.arange(bounce.SAMPLES, device=device) / bounce.SAMPLE_RATE
    slope, even, odd = _uniform(n, 0.5, 2.0, generator), _uniform(n, 0, 1, generator), _uniform(n, 0, 1, generator)
    even, odd = (torch.where(x < 0.35, 0.0, torch.where(x > 0.65, 1.0, x)) for x in (even, odd))
    phase = 2 * math.pi * frequency[:, None] * time  # (n, N)
    wave = phase.sin()
    for h in range(2, int(HIGHEST_PARTIAL / LOWEST_PITCH) + 1):
        level = torch.where(h * frequency <= HIGHEST_PARTIAL, (even if h % 2 == 0 else odd) * h**-slope, 0.0)
        if bool(level.any()):
            wave = wave + level[:, None] * (h * phase + _uniform((n, 1), 0, 2 * math.pi, generator)).sin()
    noise = _uniform(n, -1.0, 1.2, generator).clamp(min=0)
    wave = wave + noise[:, None] * torch.randn(wave.shape, generator=generator, device=device)
    starts = _uniform((n, 4), 0.0, 1.2, generator)
    starts = torch.where(torch.arange(4, device=device) <= torch.randint(4, (n, 1), generator=generator, device=device), starts, 9.0)
    since = time - starts[..., None]  # (n, 4, N)
    decay = _uniform((n, 1, 1), 0.05, 0.25, generator)
    envelope = torch.minimum(since / 0.005, (-(since - 0.005) / decay).exp()).clamp(min=0).amax(1)
    wave = wave * envelope
    return wave * (_uniform(n, 0.3, 0.8, generator) / wave.abs().amax(1).clamp(min=1e-6))[:, None]

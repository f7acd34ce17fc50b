"""Media of Bounce World scenes: pictures, clips and sounds, vectorised, on the device of the scenes.

Every renderer is a pure function of (scenes, nuisance): a sample does not depend on the batch it is made in. Pixel row i
covers y in [i, i + 1), counted from the top. Memory is bounded: large batches are made in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .world import BEATS, FREQUENCIES, IMAGE_SIZE, RGB, SAMPLE_RATE, SAMPLES, SHAPES, Nuisance, Scenes, frame_times, height, hit_times

FLOOR_TOP, FLOOR_BOTTOM = 56, 58  # rows [top, bottom)
FLOOR_GREY = 0.35
FLASH = 0.08  # seconds around a hit in which the floor takes the object's colour
ATTACK, DECAY = 0.005, 0.10  # seconds
HIGHEST_PARTIAL = 7000.0  # Hz


def _star(points: int, outer: float, inner: float) -> tuple[float, float, float, float]:
    normal = math.atan2(outer - inner * math.cos(math.pi / points), inner * math.sin(math.pi / points))
    return float(points), 0.0, normal, outer * math.cos(normal)


# Outline of each shape at radius 1, by its symmetry: (sectors, angle of a vertex from "up", angle of the edge's normal from the vertex,
# distance of the edge). A circle has no edge; its row is not used.
OUTLINES = (
    (1.0, 0.0, 0.0, 1.0),
    (4.0, math.pi / 4, math.pi / 4, 0.9),
    (3.0, 0.0, math.pi / 3, 1.15 / 2),
    _star(5, 1.2, 0.5),
)
CIRCLE = SHAPES.index("circle")
PARTIALS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])  # (shape, even and odd ones above the first), each 1 / h
NOISY = SHAPES.index("star")


def coverage(shape: Tensor, dx: Tensor, dy: Tensor, radius: Tensor, edge: float = 1.0) -> Tensor:
    """How much of a point's neighbourhood the object covers, 0 .. 1, from the signed distance to its outline.

    shape: int64; dx, dy: offset from the object's centre in px (dy downwards); radius in px; all broadcast against each other.
    edge: width in px over which the coverage falls from 1 to 0.
    """
    sectors, vertex, normal, distance = torch.tensor(OUTLINES, device=dx.device, dtype=dx.dtype)[shape].unbind(-1)
    rho = torch.hypot(dx, dy)
    half = math.pi / sectors
    angle = torch.atan2(dx, -dy) - vertex + half
    folded = (angle.remainder(2 * half) - half).abs()  # all edges fold onto one
    outside = rho * (folded - normal).cos() - distance * radius
    outside = torch.where(shape == CIRCLE, rho - radius, outside)
    return (0.5 - outside / edge).clamp(0, 1)


def _pieces(n: int, device: torch.device, on_cpu: int, elsewhere: int) -> Iterator[slice]:
    size = on_cpu if device.type == "cpu" else elsewhere
    for start in range(0, n, size):
        yield slice(start, start + size)


def _render_frames(scenes: Scenes, nuisance: Nuisance, time: Tensor) -> Tensor:
    """Frames at `time` (n,) seconds -> (n, 3, 64, 64)."""
    device = scenes.device
    n, radius = len(scenes), nuisance.radius
    y = 55 - radius - height(scenes.beats, time) * (51 - 2 * radius)

    # 2 x 2 points a pixel, each with an exact edge of half a pixel.
    grid = (torch.arange(2 * IMAGE_SIZE, device=device, dtype=torch.float32) + 0.5) / 2
    dx = grid.view(1, 1, -1) - nuisance.x.view(-1, 1, 1)
    dy = grid.view(1, -1, 1) - y.view(-1, 1, 1)
    alpha = coverage(scenes.shape.view(-1, 1, 1), dx, dy, radius.view(-1, 1, 1), edge=0.5)  # (n, 128, 128)
    alpha = torch.nn.functional.avg_pool2d(alpha.unsqueeze(1), 2)  # (n, 1, 64, 64)

    colour = torch.tensor(RGB, device=device)[scenes.colour].view(n, 3, 1, 1)
    grey = nuisance.grey.view(n, 1, 1, 1)
    frames = grey + alpha * (colour - grey)  # (n, 3, 64, 64)
    # Frame times of a clip lie exactly 0.08 s from hits: the margin keeps rounding from deciding.
    flash = ((hit_times(scenes.beats) - time.unsqueeze(1)).abs() <= FLASH + 1e-5).any(dim=1)  # NaN compares False
    frames[:, :, FLOOR_TOP:FLOOR_BOTTOM] = torch.where(flash.view(n, 1, 1, 1), colour, FLOOR_GREY)
    return frames


def render_image(scenes: Scenes, nuisance: Nuisance, time: Tensor | None = None) -> Tensor:
    """Still images, (n, 3, 64, 64) RGB 0 .. 1, at `time` (n,) seconds or at the nuisance's own times."""
    time = nuisance.time if time is None else time
    images = torch.empty(len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE, device=scenes.device)
    for piece in _pieces(len(scenes), scenes.device, 16, 2048):
        images[piece] = _render_frames(scenes[piece], nuisance[piece], time[piece])
    return images


def render_video(scenes: Scenes, nuisance: Nuisance) -> Tensor:
    """Clips of 8 frames, (n, 8, 3, 64, 64) RGB 0 .. 1, at 6.25 frames a second."""
    times = frame_times(device=scenes.device)
    rows = torch.arange(len(scenes), device=scenes.device).repeat_interleave(len(times))
    frames = render_image(scenes[rows], nuisance[rows], times.repeat(len(scenes)))
    return frames.unflatten(0, (len(scenes), len(times)))


def _hash(x: Tensor) -> Tensor:
    """Bijection of 32-bit integers (held in int64) that scrambles them ("lowbias32" of C. Wellons)."""
    mask = 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)


def _white_noise(seed: Tensor, samples: int) -> Tensor:
    """Gaussian white noise of RMS 1, (n, samples), a function of each row's seed (n,) alone: Box-Muller on a counter's hash."""
    counter = torch.arange(samples // 2, device=seed.device)
    stream = _hash(_hash(seed & 0xFFFFFFFF).unsqueeze(1) ^ counter)
    u = (_hash(stream ^ 0x9E3779B9).float() + 0.5) / 2**32
    v = _hash(stream ^ 0x7F4A7C15).float() / 2**32
    # Single precision rounds the largest integers up to 2 ** 32: u may be 1, never 0.
    length, angle = (-2 * u.log()).clamp(min=0).sqrt(), 2 * math.pi * v
    return torch.cat([length * angle.cos(), length * angle.sin()], dim=1)


def _note(scenes: Scenes, nuisance: Nuisance, start: Tensor, index: int) -> Tensor:
    """The notes that start at `start` (n,) seconds, one a row, (n, 20480); index: which hit of the clip it is."""
    device = scenes.device
    frequency = torch.tensor(FREQUENCIES, device=device)[scenes.colour] * nuisance.detune
    # The phase is counted in whole 2 ** -32 cycles: exact over the whole clip on any device, where float32 is not.
    step = (frequency * (2**32 / SAMPLE_RATE)).long()
    onset = start * SAMPLE_RATE
    first = onset.ceil()
    lead = first - onset  # in samples, 0 .. 1
    after = torch.arange(SAMPLES, device=device) - first.long().unsqueeze(1)  # samples since the first of the note, (n, 20480)
    cycles = (after * step.unsqueeze(1) + (lead * step).long().unsqueeze(1)) & 0xFFFFFFFF
    phase = cycles.float() * (2 * math.pi / 2**32)

    wave = phase.sin()
    even, odd = PARTIALS.to(device)[scenes.shape].unbind(1)
    rich = ((even > 0) | (odd > 0)).nonzero().squeeze(1)
    if len(rich):
        # sin((h + 1) p) = 2 cos(p) sin(h p) - sin((h - 1) p)
        twice_cos, previous, current = 2 * phase[rich].cos(), torch.zeros_like(phase[rich]), wave[rich]
        total = current.clone()
        for h in range(2, int(HIGHEST_PARTIAL / (0.99 * min(FREQUENCIES))) + 1):
            previous, current = current, torch.addcmul(-previous, twice_cos, current)
            level = (h * frequency[rich] <= HIGHEST_PARTIAL) * (odd if h % 2 else even)[rich] / h
            total.addcmul_(current, level.unsqueeze(1))
        wave[rich] = total
    noisy = (scenes.shape == NOISY).nonzero().squeeze(1)
    if len(noisy):
        hiss = _white_noise(nuisance.noise_seed[noisy] * len(BEATS) + index, SAMPLES) * math.sqrt(0.5)
        wave[noisy] += hiss

    since = (after + lead.unsqueeze(1)) / SAMPLE_RATE  # seconds
    envelope = torch.minimum(since / ATTACK, (-(since - ATTACK) / DECAY).exp()).clamp(min=0)  # 0 before the hit
    return wave * envelope


def render_audio(scenes: Scenes, nuisance: Nuisance) -> Tensor:
    """Sounds, (n, 20480) mono at 16 kHz: a note at each hit, pitch by colour, timbre by shape."""
    waves = torch.zeros(len(scenes), SAMPLES, device=scenes.device)
    for piece in _pieces(len(scenes), scenes.device, 8, 1024):
        part, extra, wave = scenes[piece], nuisance[piece], waves[piece]
        for index, starts in enumerate(hit_times(part.beats).unbind(1)):
            rows = (~starts.isnan()).nonzero().squeeze(1)
            wave[rows] += _note(part[rows], extra[rows], starts[rows], index)
        wave *= (extra.peak / wave.abs().amax(dim=1)).unsqueeze(1)
    return waves

"""Pictures of numbers, drawn with Pillow: a matrix of similarities, points on two axes, a spectrogram, a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .modalities import MODALITIES

PAPER, INK, FAINT = (24, 26, 31), (232, 234, 237), (92, 98, 110)
COLOURS = {**{name: row.colour for name, row in MODALITIES.items()}, "mix": (190, 139, 240)}
"""Colour of a point by its kind; others are drawn in the colour of ink."""
_LABEL = 20  # height of a point's name
_LOW, _MIDDLE, _HIGH = (58, 82, 160), (38, 41, 48), (233, 122, 66)  # similarity -1, 0, 1
_HEAT = ((8, 8, 20), (70, 20, 110), (190, 55, 85), (250, 150, 40), (252, 250, 180))  # silence to loud


@lru_cache(maxsize=8)
def font(size: int) -> Any:
    """Pillow's own typeface: the same on every machine."""
    return ImageFont.load_default(size)


def clipped(text: str, width: float, size: int) -> str:
    """The text cut to a width in pixels, with dots where something is missing."""
    text = " ".join(text.split())
    face = font(size)
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def draw_matrix(matrix: Tensor, labels: Sequence[str], kinds: Sequence[str], title: str = "", *, cell: int = 72) -> Image.Image:
    """Picture of similarities (n, n) in -1..1 with the labels of rows and columns; each cell names its number."""
    n, margin, top, below = len(labels), 168, 44, 40
    picture = Image.new("RGB", (margin + n * cell + 16, top + n * cell + below), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((12, 12), clipped(title, picture.width - 24, 16), INK, font(16))
    for i, label in enumerate(labels):
        y = top + i * cell
        colour = COLOURS.get(kinds[i], INK)
        draw.text((margin - 12, y + cell / 2), clipped(label, margin - 24, 14), colour, font(14), anchor="rm")
        draw.text((margin + (i + 0.5) * cell, top + n * cell + 18), clipped(label, cell - 6, 13), colour, font(13), anchor="mm")
        for j in range(n):
            value = float(matrix[i, j])
            x = margin + j * cell
            draw.rectangle((x + 1, y + 1, x + cell - 2, y + cell - 2), fill=_blend(value))
            draw.text((x + cell / 2, y + cell / 2), f"{value:.2f}", INK, font(16), anchor="mm")
    return picture


def draw_points(
    coordinates: Tensor, labels: Sequence[str], kinds: Sequence[str], shares: tuple[float, float], *, size: tuple[int, int] = (720, 560)
) -> Image.Image:
    """Picture of points (n, 2): one scale on both axes, a dot and a label each."""
    width, height = size
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    low, high = coordinates.min(dim=0).values, coordinates.max(dim=0).values
    middle, span = (low + high) / 2, max(float((high - low).max()), 1e-6)
    scale = (min(width, height) - 200) / span
    centre = torch.tensor([width / 2, height / 2 - 10])
    places = centre + (coordinates - middle) * scale * torch.tensor([1.0, -1.0])
    origin = centre - middle * scale * torch.tensor([1.0, -1.0])
    draw.line((24, float(origin[1]), width - 24, float(origin[1])), FAINT)
    draw.line((float(origin[0]), 24, float(origin[0]), height - 48), FAINT)
    said = f"first axis {shares[0]:.0%} of the differences, second axis {shares[1]:.0%}"
    draw.text((width / 2, height - 22), said, FAINT, font(18), anchor="mm")
    taken: list[tuple[float, float, float, float]] = []
    for place, label, kind in zip(places.tolist(), labels, kinds, strict=True):
        _point(draw, place, label, COLOURS.get(kind, INK), taken, size)
    return picture


def draw_spectrogram(loudness: Tensor, size: tuple[int, int]) -> Image.Image:
    """Picture (width, height) of loudness (time, bands) in 0..1: time to the right, low bands below."""
    levels = torch.tensor(_HEAT, dtype=torch.float32)
    position = loudness.float().cpu().clamp(0, 1).nan_to_num() * (len(_HEAT) - 1)
    index = position.long().clamp(max=len(_HEAT) - 2)
    part = (position - index)[..., None]
    colour = levels[index] * (1 - part) + levels[index + 1] * part  # (T, M, 3)
    pixels = colour.transpose(0, 1).flip(0).round().to(torch.uint8).contiguous().numpy()  # (M, T, 3)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


def draw_curve(values: Sequence[float], title: str, *, size: tuple[int, int] = (640, 360)) -> Image.Image:
    """Picture of a loss over its steps, logarithmic where all values are above 0: every value faint, their running mean bright."""
    width, height = size
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((12, 10), clipped(title, width - 24, 16), INK, font(16))
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return picture
    logarithmic = min(finite) > 0
    heights = [math.log10(v) if logarithmic else v for v in finite]
    low, high = min(heights), max(heights)
    span = max(high - low, 1e-9)
    left, right, top, bottom = 72, width - 16, 44, height - 40

    def line(points: Sequence[float], colour: tuple[int, int, int], thick: int) -> None:
        step = (right - left) / max(1, len(points) - 1)
        draw.line([(left + i * step, bottom - (p - low) / span * (bottom - top)) for i, p in enumerate(points)], colour, thick)

    mean, smooth = heights[0], []
    for i, value in enumerate(heights):
        mean += (value - mean) / min(i + 1, max(1, len(heights) // 20))
        smooth.append(mean)
    line(heights, FAINT, 1)
    line(smooth, COLOURS["video"], 3)
    for place, value in ((bottom, low), (top, high)):
        draw.text((left - 8, place), f"{10**value if logarithmic else value:.3g}", INK, font(14), anchor="rm")
    draw.text(((left + right) / 2, height - 18), f"{len(finite)} steps, now {finite[-1]:.4g}", FAINT, font(14), anchor="mm")
    return picture


def to_image(image: Image.Image) -> Tensor:
    """Pillow's picture as (H, W, 3), float32 in 0..1."""
    import numpy as np

    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float() / 255


def from_image(pixels: Tensor) -> Image.Image:
    """(H, W, 3) in 0..1 as Pillow's picture; values outside are clipped."""
    return Image.fromarray((pixels.detach().float().cpu().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).contiguous().numpy())


def _point(draw: Any, place: list[float], label: str, colour: tuple, taken: list, size: tuple[int, int]) -> None:
    """A dot, and its label at the first side where it covers neither another label nor the border."""
    x, y = place
    draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=colour, outline=INK)
    text = clipped(label, 280, _LABEL)
    length = font(_LABEL).getlength(text)
    sides = [(x + 13, y - 12), (x - 13 - length, y - 12), (x - length / 2, y - 36), (x - length / 2, y + 12)]
    sides += [(x + 13, y - 12 + shift) for shift in (24, -24, 48, -48, 72, -72)]
    boxes = [(a, b, a + length, b + 24) for a, b in sides]
    inside = [b for b in boxes if b[0] >= 0 and b[1] >= 0 and b[2] <= size[0] and b[3] <= size[1] - 34]
    free = [b for b in inside if not any(b[0] < t[2] and t[0] < b[2] and b[1] < t[3] and t[1] < b[3] for t in taken)]
    box = (free or inside or boxes)[0]
    taken.append(box)
    draw.text((box[0], box[1]), text, colour, font(_LABEL))


def _blend(value: float) -> tuple[int, int, int]:
    end, share = (_HIGH, value) if value >= 0 else (_LOW, -value)
    red, green, blue = (round(m + (e - m) * min(share, 1.0)) for m, e in zip(_MIDDLE, end, strict=True))
    return red, green, blue

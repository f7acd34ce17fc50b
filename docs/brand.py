"""Draws icon and banner of the pack: four streams that become one.

python docs/brand.py"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

IMAGES = Path(__file__).parent / "images"
PAPER, INK = (17, 19, 24), (240, 242, 245)
STREAMS = ((98, 190, 120), (91, 158, 245), (235, 116, 101), (238, 197, 87))  # image, video, sound, text
_SMOOTH = 4  # drawn so many times larger, then scaled down


def _knot(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    """Four strands from the left that wind around each other and meet in a ring."""
    x, y = centre
    width = max(2, round(radius * 0.13))
    for number, colour in enumerate(STREAMS):
        for step in range(601):
            t = step / 600
            along = x - radius * 1.75 + t * radius * 1.05
            across = y + (number - 1.5) * radius * 0.52 * (1 - t) ** 1.5 + math.sin(t * math.tau + number * math.pi / 2) * radius * 0.16 * t
            draw.ellipse((along - width / 2, across - width / 2, along + width / 2, across + width / 2), fill=colour)
    box = (x - radius * 0.72, y - radius * 0.72, x + radius * 0.72, y + radius * 0.72)
    for number, colour in enumerate(STREAMS):
        draw.arc(box, 180 + number * 90 - 47, 180 + number * 90 + 47, fill=colour, width=round(width * 1.7))


def icon(size: int = 400) -> Image.Image:
    """Square icon."""
    large = size * _SMOOTH
    picture = Image.new("RGB", (large, large), PAPER)
    _knot(ImageDraw.Draw(picture), (large * 0.62, large * 0.5), large * 0.31)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    """Banner, 21:9, with the name."""
    picture = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), PAPER)
    _knot(ImageDraw.Draw(picture), (360 * _SMOOTH, height * _SMOOTH / 2), 160 * _SMOOTH)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    draw.text((590, 170), "CoDi", INK, ImageFont.load_default(120))
    draw.text((594, 310), "any-to-any, denoised together", INK, ImageFont.load_default(38))
    draw.text((594, 366), "text · image · video · sound", (150, 156, 168), ImageFont.load_default(32))
    return picture


if __name__ == "__main__":
    icon().save(IMAGES / "icon.png", optimize=True)
    banner().save(IMAGES / "banner.png", optimize=True)

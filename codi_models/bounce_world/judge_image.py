"""Measures the object in pictures and frames of Bounce World: where it is, which shape and colour. Nothing is learned.

The outline is found by fitting each of the four shapes, in position and size, to the object's coverage, and comparing what
is left over; the colour by regressing the pixels on the best fit. Written for generated media too: blur, noise, a floor or
colours that are slightly off do not matter, and what resembles nothing reads -1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CoDiError
from .render import FLOOR_TOP, coverage
from .world import IMAGE_SIZE, RGB, SHAPES

PATCH = 32  # px; side of the window around the object in which it is fitted
EDGE = 2.5  # px; width of the edge of a fitted shape, between that of a sharp and of a blurred picture
STEPS = 3  # of Gauss-Newton
LEAST_CONTRAST = 0.25  # between object and background, distance in RGB
LEAST_FIT = 0.6  # explained share of the coverage's variance
SMALLEST = 4.0  # px; radius
FARTHEST_COLOUR = 0.4  # distance in RGB at which a colour is still called the nearest of the six
AREAS = (math.pi, 1.8**2, 0.75 * math.sqrt(3) * 1.15**2, 5 * 1.2 * 0.5 * math.sin(math.pi / 5))  # at radius 1


@dataclass(frozen=True)
class Objects:
    """What n pictures show. Where present is False the rest means nothing."""

    present: Tensor  # bool (n,)
    shape: Tensor  # int64 (n,), -1 where no shape fits
    misfit: Tensor  # (n, 4) share of the coverage's variance that each shape leaves unexplained
    rgb: Tensor  # (n, 3)
    x: Tensor  # (n,) px
    y: Tensor  # (n,) px
    radius: Tensor  # (n,) px, of the best fitting shape
    grey: Tensor  # (n,) background


def check_pixels(pixels: Tensor, dims: int) -> None:
    """Raises CoDiError unless pixels are floats (n, 3, 64, 64) for dims=4, (n, F, 3, 64, 64) for dims=5."""
    if pixels.ndim != dims or tuple(pixels.shape[-3:]) != (3, IMAGE_SIZE, IMAGE_SIZE) or not pixels.is_floating_point():
        lead = "n" if dims == 4 else "n, frames"
        raise CoDiError(
            f"The judge was given pixels {tuple(pixels.shape)} of {pixels.dtype}; it reads floats 0..1 of shape "
            f"({lead}, 3, {IMAGE_SIZE}, {IMAGE_SIZE}). Resize or convert them first."
        )


def measure_objects(pixels: Tensor, *, batch: int = 128) -> Objects:
    """pixels (n, 3, 64, 64) RGB 0 .. 1 -> what is seen in each. Raises CoDiError on another size."""
    check_pixels(pixels, 4)
    parts = [_measure(part.float().nan_to_num().clamp(0, 1)) for part in pixels.split(batch)]
    return Objects(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Objects)))


def nearest_colour(rgb: Tensor) -> Tensor:
    """rgb (n, 3) -> index into COLOURS (n,), -1 where none is near."""
    distance, index = torch.cdist(rgb, torch.tensor(RGB, device=rgb.device)).min(dim=1)
    return torch.where(distance < FARTHEST_COLOUR, index, -1)


def _floor_row(strength: Tensor) -> Tensor:
    """Difference from the background (n, 64, 64) -> first row of the floor, (n,): it spans the width, the object does not."""
    search = range(50, 62)
    rows = strength.median(dim=2).values[:, search.start : search.stop]  # (n, 12)
    found = rows > (0.5 * rows.amax(dim=1, keepdim=True)).clamp(min=0.05)
    return torch.where(found.any(dim=1), found.float().argmax(dim=1) + search.start, FLOOR_TOP)


def _near(x: Tensor, y: Tensor) -> Tensor:
    """1 within half a window of (x, y), else 0: (n, 64, 64)."""
    centres = torch.arange(IMAGE_SIZE, device=x.device) + 0.5
    columns = (centres - x.unsqueeze(1)).abs() < PATCH / 2
    rows = (centres - y.unsqueeze(1)).abs() < PATCH / 2
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).float()


def _find(difference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Difference from the background (n, 3, 64, 64) -> coverage (n, 64, 64), contrast, x, y (n,) of the densest object."""
    strength = difference.norm(dim=1)
    spot = functional.avg_pool2d(strength.unsqueeze(1), 15, stride=1, padding=7).flatten(1).argmax(dim=1)
    x, y = (spot % IMAGE_SIZE) + 0.5, spot.div(IMAGE_SIZE, rounding_mode="floor") + 0.5
    local = strength * _near(x, y)
    core = (local > 0.75 * local.amax(dim=(1, 2), keepdim=True)).float().unsqueeze(1)
    colour = (difference * core).sum(dim=(2, 3)) / core.sum(dim=(2, 3)).clamp(min=1)  # (n, 3)
    contrast = colour.norm(dim=1)
    alpha = torch.einsum("nchw,nc->nhw", difference, colour) / contrast.square().clamp(min=1e-6).view(-1, 1, 1)
    alpha = alpha.clamp(-0.25, 1.25)
    centres = torch.arange(IMAGE_SIZE, device=x.device) + 0.5
    for _ in range(2):
        weight = alpha * (alpha > 0.3) * _near(x, y)
        area = weight.sum(dim=(1, 2)).clamp(min=1e-6)
        x, y = (weight.sum(dim=1) * centres).sum(dim=1) / area, (weight.sum(dim=2) * centres).sum(dim=1) / area
    return alpha, contrast, x, y


class _Window:
    """The pixels (32 x 32) around (x, y), and which of them lie in the picture and above the floor."""

    def __init__(self, x: Tensor, y: Tensor, floor: Tensor) -> None:
        side = torch.arange(PATCH, device=x.device)
        columns = (x.round() - PATCH / 2).long().unsqueeze(1) + side  # (n, 32)
        rows = (y.round() - PATCH / 2).long().unsqueeze(1) + side
        inside_x = (columns >= 0) & (columns < IMAGE_SIZE)
        inside_y = (rows >= 0) & (rows < floor.unsqueeze(1))
        self.mask = (inside_y.unsqueeze(2) & inside_x.unsqueeze(1)).float()  # (n, 32, 32)
        self.at_x, self.at_y = (columns + 0.5).unsqueeze(1), (rows + 0.5).unsqueeze(2)
        self.index = (rows.clamp(0, IMAGE_SIZE - 1) * IMAGE_SIZE).unsqueeze(2) + columns.clamp(0, IMAGE_SIZE - 1).unsqueeze(1)

    def crop(self, picture: Tensor) -> Tensor:
        """(n, C, 64, 64) -> (n, C, 32, 32)."""
        index = self.index.flatten(1).unsqueeze(1).expand(-1, picture.shape[1], -1)
        return picture.flatten(2).gather(2, index).unflatten(2, (PATCH, PATCH))

    def cover(self, shape: Tensor, where: Tensor) -> Tensor:
        """Coverage (n, 32, 32) by shapes (n,) or (1,) at where = x, y, radius (n, 3)."""
        x, y, radius = where.view(-1, 3, 1, 1).unbind(1)
        return coverage(shape.view(-1, 1, 1), self.at_x - x, self.at_y - y, radius, EDGE)


def _fit(shape: int, target: Tensor, window: _Window, where: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares fit of one shape to a coverage (n, 32, 32), from x, y, radius (n, 3) -> unexplained share (n,), x, y, radius (n, 3)."""
    kind = torch.full((1,), shape, device=target.device)
    # Symmetric difference quotients, about as wide as an edge, see through the pixel grid.
    steps = 0.5 * torch.eye(3, device=target.device)
    for _ in range(STEPS):
        slopes = torch.stack([window.cover(kind, where + step) - window.cover(kind, where - step) for step in steps], dim=1)
        slopes = (slopes * window.mask.unsqueeze(1)).flatten(2)  # (n, 3, 1024); per px, the two steps add up to 1
        error = ((target - window.cover(kind, where)) * window.mask).flatten(1).unsqueeze(2)
        normal = slopes @ slopes.mT + 1e-3 * torch.eye(3, device=target.device)
        where = where + torch.linalg.solve(normal, slopes @ error).squeeze(2).clamp(-2, 2)
    error = (target - window.cover(kind, where)) * window.mask
    mean = (target * window.mask).sum(dim=(1, 2)) / window.mask.sum(dim=(1, 2)).clamp(min=1)
    variance = ((target - mean.view(-1, 1, 1)).square() * window.mask).sum(dim=(1, 2))
    return error.square().sum(dim=(1, 2)) / variance.clamp(min=1e-6), where


def _measure(pixels: Tensor) -> Objects:
    smooth = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    background = smooth[:, :, :50].flatten(2).median(dim=2).values  # (n, 3)
    smooth, sharp = smooth - background[:, :, None, None], pixels - background[:, :, None, None]
    floor = _floor_row(sharp.norm(dim=1)) - 1  # the row next to the floor may hold the blur of a flash
    row = torch.arange(IMAGE_SIZE, device=pixels.device)
    alpha, contrast, x, y = _find(smooth * (row < floor.unsqueeze(1)).view(-1, 1, IMAGE_SIZE, 1))

    window = _Window(x, y, floor)
    target = window.crop(alpha.unsqueeze(1)).squeeze(1) * window.mask
    area = (target * (target > 0.3)).sum(dim=(1, 2))
    guesses = [torch.stack([x, y, (area / one).sqrt().clamp(5, 14)], dim=1) for one in AREAS]
    fits = [_fit(shape, target, window, guesses[shape]) for shape in range(len(SHAPES))]
    misfit = torch.stack([fit[0] for fit in fits], dim=1)  # (n, 4)
    least, best = misfit.min(dim=1)
    where = torch.stack([fit[1] for fit in fits], dim=1)[torch.arange(len(best), device=best.device), best]  # (n, 3)
    x, y, radius = where.unbind(1)

    # Colour of a wholly covered pixel: background + slope of the pixels over the coverage.
    cover = (window.cover(best, where) * window.mask).unsqueeze(1)
    slope = (window.crop(sharp) * cover).sum(dim=(2, 3)) / cover.square().sum(dim=(2, 3)).clamp(min=1e-6)
    present = contrast > LEAST_CONTRAST
    shape = torch.where(present & (least < 1 - LEAST_FIT) & (radius > SMALLEST), best, -1)
    return Objects(present, shape, misfit, background + slope, x, y, radius, background.mean(dim=1))

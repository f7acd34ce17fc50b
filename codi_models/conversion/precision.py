"""What becomes of numbers on conversion: half precision dressed as full, values that float16 cannot hold, NaN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import CoDiError
from .sources import Found
from .writer import flat_pieces

_LOOKED_AT = 1 << 16  # elements of a tensor
_TELLING = 256  # elements that are no powers of two, before anything is concluded from them
_HALVES = (torch.float16, torch.bfloat16)


def half_in_full(places: Mapping[str, Found]) -> tuple[Found, str] | None:
    """A weight that shows that a component is half precision where full was expected, and what it is; None where it is not.

    Either some weights are half and others full, or all are stored as float32 with values that one half precision holds exactly."""
    floating = [p for p in places.values() if p.dtype.is_floating_point]
    halves = [p for p in floating if p.dtype in _HALVES]
    if halves:
        return (halves[0], _short(halves[0].dtype)) if len(halves) < len(floating) else None
    telling, first, exact = 0, None, dict.fromkeys(_HALVES, True)
    for place in floating:
        x = place.read().reshape(-1)[:_LOOKED_AT].float()
        exact = {half: so_far and torch.equal(x.to(half).float(), x) for half, so_far in exact.items()}
        if not any(exact.values()):
            return None
        found = int((torch.frexp(x).mantissa.abs() % 0.5 != 0).sum())  # constants such as 0, 1 or 0.5 tell nothing
        telling, first = telling + found, first or (place if found else None)
    kind = next((half for half in reversed(_HALVES) if exact[half]), torch.float16)
    return (first, f"{_short(kind)} stored as float32") if first is not None and telling >= _TELLING else None


def openly_half(places: Mapping[str, Found]) -> torch.dtype | None:
    """The one half-precision dtype of all floating-point weights, or None."""
    dtypes = {p.dtype for p in places.values() if p.dtype.is_floating_point}
    return next(iter(dtypes)) if len(dtypes) == 1 and dtypes <= set(_HALVES) else None


def converted(place: Found, dtype: torch.dtype) -> Iterator[Tensor]:
    """A weight's elements in `dtype`, piece by piece. Raises CoDiError for NaN, infinity and values beyond the dtype's range."""
    limit = torch.finfo(dtype).max
    for piece in flat_pieces(place.read()):
        if piece.numel():
            low, high = (float(v) for v in torch.aminmax(piece.float() if piece.dtype.itemsize == 1 else piece))
            most = max(-low, high) if low == low and high == high else float("nan")
            if not most < float("inf"):
                raise CoDiError(
                    f"{place.source.path}: {place.key} holds infinity or NaN, expected finite numbers: it is damaged, or its numbers did "
                    "not fit the precision that it was saved in. Give a full-precision file, or another revision"
                )
            if most > limit:
                raise CoDiError(
                    f"{place.source.path}: {place.key} reaches {most:g}, beyond {limit:g}, the largest number of {_short(dtype)}: it would "
                    "become infinite. Convert with --dtype bf16 or --dtype fp32"
                )
        yield piece.to(dtype)


def whole_numbers(place: Found) -> Tensor | None:
    """A tensor as int64, whatever type holds its numbers; None where they are not whole or not in range."""
    x = place.read()
    if not x.is_floating_point():
        return x.to(torch.int64)
    x = x.double()
    fits = torch.isfinite(x).all() and (x == x.round()).all() and (x.abs() < 2.0**63).all()
    return x.to(torch.int64) if bool(fits) else None


def difference(a: Found, b: Found) -> tuple[float, float, float]:
    """Of two tensors of one shape: largest absolute difference, squared norm of the difference, squared norm of `b`."""
    most = apart = size = 0.0
    for x, y in zip(flat_pieces(a.read()), flat_pieces(b.read()), strict=True):
        x, y = x.double(), y.double()
        if x.numel():
            most, apart, size = max(most, float((x - y).abs().max())), apart + float((x - y).square().sum()), size + float(y.square().sum())
    return most, apart, size


def equal(a: Found, b: Found) -> bool:
    """Whether two tensors of one shape hold the same numbers."""
    return a.shape == b.shape and difference(a, b)[0] == 0


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""What becomes of numbers on conversion: half precision dressed as full, values that float16 cannot hold, NaN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import CoDiError
from .matching import Found
from .sources import AGAIN
from .writer import flat_pieces

_LOOKED_AT = 1 << 16  # elements of a tensor
_TELLING = 256  # elements that are no powers of two, before anything is concluded from them
_HALVES = (torch.float16, torch.bfloat16)


def half_in_full(places: Mapping[str, Found]) -> tuple[Found, str] | None:
    """A weight that shows that a component is half precision where full was expected, and what it is; None where it is not.

    Either some weights are half and others full, or all are stored as float32 with values that one half precision holds exactly."""
    floating = [p for p in places.values() if p.source.dtypes[p.key].is_floating_point]
    halves = [p for p in floating if p.source.dtypes[p.key] in _HALVES]
    if halves:
        return (halves[0], _short(halves[0].source.dtypes[halves[0].key])) if len(halves) < len(floating) else None
    telling, first, exact = 0, None, dict.fromkeys(_HALVES, True)
    for place in floating:
        x = place.source.read(place.key).reshape(-1)[:_LOOKED_AT].float()
        exact = {half: so_far and torch.equal(x.to(half).float(), x) for half, so_far in exact.items()}
        if not any(exact.values()):
            return None
        found = int((torch.frexp(x).mantissa.abs() % 0.5 != 0).sum())  # constants such as 0, 1 or 0.5 tell nothing
        telling, first = telling + found, first or (place if found else None)
    kind = next((half for half in reversed(_HALVES) if exact[half]), torch.float16)
    return (first, f"{_short(kind)} stored as float32") if first is not None and telling >= _TELLING else None


def openly_half(places: Mapping[str, Found]) -> torch.dtype | None:
    """The one half-precision dtype of all floating-point weights, or None."""
    dtypes = {p.source.dtypes[p.key] for p in places.values() if p.source.dtypes[p.key].is_floating_point}
    return next(iter(dtypes)) if len(dtypes) == 1 and dtypes <= set(_HALVES) else None


def converted(place: Found, dtype: torch.dtype) -> Iterator[Tensor]:
    """A weight's elements in `dtype`, piece by piece. Raises CoDiError for NaN, infinity and values beyond the dtype's range."""
    limit = torch.finfo(dtype).max if dtype.is_floating_point else None
    for piece in flat_pieces(place.source.read(place.key)):
        if limit is not None and piece.numel():
            low, high = (float(v) for v in torch.aminmax(piece))
            most = max(-low, high) if low == low and high == high else float("nan")
            if not most < float("inf"):
                raise CoDiError(f"{place.source.path}: {place.key} holds infinity or NaN, expected finite numbers: it is damaged. {AGAIN}")
            if most > limit:
                raise CoDiError(
                    f"{place.source.path}: {place.key} reaches {most:g}, beyond {limit:g}, the largest number of {_short(dtype)}: it would "
                    "become infinite. Convert with --dtype bf16 or --dtype fp32"
                )
        yield piece.to(dtype)


def equal(a: Found, b: Found) -> bool:
    """Whether two weights of one shape hold the same numbers."""
    if a.source.shapes[a.key] != b.source.shapes[b.key]:
        return False
    pairs = zip(flat_pieces(a.source.read(a.key)), flat_pieces(b.source.read(b.key)), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

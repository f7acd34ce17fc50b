"""What a link hands to a node, held against the node's schema: the host checks widgets, but not what other nodes pass on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ...codi_models.errors import CoDiError
from ...codi_models.media import SAMPLE_RATES
from .handle import CoDiHandle

LAST_PLACE = 65_535
"""The largest number of a batch_index."""

FILES = ("name", "file", "order")
"""Combos whose nodes look for themselves: their options change while the host runs, or had other names once."""


def admitted(inputs: Sequence[Any], values: Mapping[str, Any], *, lists: bool = False) -> dict[str, Any]:
    """Values of a node's inputs (of its schema), numbers and texts in their own types. Left out are others, of workflows that an earlier
    version of the node saved, and None for what may be missing: it takes its default.

    lists: every value is a list of them, as for nodes that take lists. Raises CoDiError naming the input, what came and what is taken."""
    out: dict[str, Any] = {}
    for entry in inputs:
        if (name := entry.id) not in values:
            continue
        value = values[name]
        if (template := getattr(entry, "template", None)) is not None:
            given = {key: one for key, one in (value or {}).items() if one is not None}
            out[name] = {key: _checked(template.input, one, key) for key, one in given.items()}
        elif entry.optional and (value is None or (lists and value == [None])):
            continue  # its default
        elif lists and isinstance(value, list):
            out[name] = [_checked(entry, one, name) for one in value]
        else:
            out[name] = _checked(entry, value, name)
    return out


def _checked(entry: Any, value: Any, name: str) -> Any:
    kind = entry.get_io_type()
    if value is None:
        if entry.optional:
            return None
        raise CoDiError(f"{name}: {_NOTHING.get(kind, 'nothing was given: the node that it comes from handed on None')}")
    check = _CHECKS.get(kind)
    return value if check is None else check(value, name, entry)


_NOTHING = {"AUDIO": "no audio was given: a video without audio has none to hand on"}


def _wrong(name: str, value: Any, wanted: str) -> CoDiError:
    given = tuple(value.shape) if isinstance(value, Tensor) else repr(value)[:80] if isinstance(value, (str, int, float, bool)) else ""
    return CoDiError(f"{name}: {wanted} is needed, got {type(value).__name__}{f' {given}' if given != '' else ''}")


def _finite(tensor: Tensor, name: str, what: str, advice: str = "look at the node that made it") -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise CoDiError(f"{name}: this {what} holds NaN or infinite values: {advice}")


def image(value: Any, name: str, _: Any = None) -> Tensor:
    """An IMAGE. Raises CoDiError for anything else and for one without a picture; values that are not finite are left to who reads them."""
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
        raise _wrong(name, value, "an IMAGE, a tensor (batch, height, width, channels) of numbers in 0..1,")
    if not value.numel() or value.shape[-1] not in (1, 3, 4):
        raise CoDiError(f"{name}: an IMAGE of shape {tuple(value.shape)} has nothing in it: give at least one image of 1, 3 or 4 channels")
    return value


def _video(value: Any, name: str, _: Any = None) -> Any:
    if isinstance(value, Tensor):
        return image(value, name)
    if not hasattr(value, "get_components"):
        raise _wrong(name, value, "a VIDEO, or its frames as a batch of images,")
    return value


def _mask(value: Any, name: str, _: Any = None) -> Tensor:
    if not isinstance(value, Tensor) or not 2 <= value.ndim <= 4:
        raise _wrong(name, value, "a MASK, a tensor (batch, height, width) of numbers in 0..1,")
    if not value.numel():
        raise CoDiError(f"{name}: the mask is empty, {tuple(value.shape)}: look at the node that made it")
    _finite(value, name, "MASK")
    return value


def _audio(value: Any, name: str, _: Any = None) -> dict:
    wave, rate = (value.get("waveform"), value.get("sample_rate")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(wave, Tensor) or wave.ndim != 3 or not wave.is_floating_point():
        raise _wrong(name, value if wave is None else wave, "an AUDIO, with a waveform (batch, channels, samples) of numbers in -1..1,")
    if not wave.numel():
        raise CoDiError(f"{name}: the audio has no samples, {tuple(wave.shape)}: give one of at least a few milliseconds")
    _finite(wave, name, "AUDIO")
    low, high = SAMPLE_RATES
    if not isinstance(rate, Real) or not low <= float(rate) <= high:
        raise CoDiError(f"{name}: the audio's sample rate is {rate!r}; it takes {low} to {high} Hz")
    return {**value, "sample_rate": int(float(rate))}


def _latent(value: Any, name: str, _: Any = None) -> dict:
    samples = value.get("samples") if isinstance(value, Mapping) else None
    parts = _tensors(samples)
    if not parts or not all(isinstance(p, Tensor) and p.ndim >= 3 and p.is_floating_point() for p in parts):
        raise _wrong(name, value if samples is None else samples, "a LATENT, from CoDi Empty Joint Latent or made of one,")
    if len({len(p) for p in parts}) > 1 or not all(p.numel() for p in parts):
        sizes = ", ".join(str(tuple(p.shape)) for p in parts)
        raise CoDiError(f"{name}: the parts of this LATENT are {sizes}: each must hold the same number of samples, one or more")
    for tensor in (*parts, *_tensors(value.get("noise_mask"))):
        _finite(tensor, name, "LATENT", "lower cfg or the alignment where it was sampled, or load the model as fp32")
    if (numbers := value.get("batch_index")) is not None:
        return {**value, "batch_index": batch_index(numbers, name)}
    return dict(value)


def batch_index(value: Any, name: str) -> list[int]:
    """The places in a batch that samples had, from which the host draws their noise: it draws that of all places before, too.

    Raises CoDiError for other than whole numbers from 0 to `LAST_PLACE`."""
    numbers = value.tolist() if isinstance(value, Tensor) else value
    if not isinstance(numbers, (list, tuple)) or not all(isinstance(n, Integral) and 0 <= int(n) <= LAST_PLACE for n in numbers):
        raise CoDiError(f"{name}: the batch_index of this LATENT is {str(value)[:80]}: it must be a list of numbers from 0 to {LAST_PLACE}")
    return [int(n) for n in numbers]


def _tensors(value: Any) -> list[Tensor]:
    if value is None:
        return []
    return list(value.unbind()) if getattr(value, "is_nested", False) else [value]


def _conditioning(value: Any, name: str, _: Any = None) -> Any:
    entries = value if isinstance(value, (list, tuple)) else []
    good = [e for e in entries if isinstance(e, (list, tuple)) and len(e) == 2 and isinstance(e[0], Tensor) and isinstance(e[1], Mapping)]
    if not entries or len(good) < len(entries):
        raise _wrong(name, value, "a CONDITIONING with at least one prompt, from CoDi's Encode nodes or made of theirs,")
    for tensor, _more in entries:
        if tensor.ndim != 3 or not tensor.numel():
            raise CoDiError(f"{name}: a CONDITIONING is (batch, tokens, width), got {tuple(tensor.shape)}: look at the node that made it")
        _finite(tensor, name, "CONDITIONING")
    return value


def _model(value: Any, name: str, _: Any = None) -> Any:
    if not hasattr(value, "model") or not hasattr(value, "clone"):
        raise _wrong(name, value, "a MODEL of CoDi, from Load CoDi (joint), CoDi Denoiser or CoDi Compose,")
    return value


def _codi(value: Any, name: str, _: Any = None) -> Any:
    if not isinstance(value, CoDiHandle):
        raise _wrong(name, value, "an opened model, from Load CoDi or Load CoDi (joint),")
    return value


def _clip(value: Any, name: str, _: Any = None) -> Any:
    if not hasattr(value, "cond_stage_model"):
        raise _wrong(name, value, "a CLIP, from Load CLIP or a checkpoint,")
    return value


def _text(value: Any, name: str, _: Any = None) -> str:
    if not isinstance(value, (str, int, float)):
        raise _wrong(name, value, "a text")
    return str(value)


def _number(value: Any, name: str, entry: Any) -> Any:
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise _wrong(name, value, "a number")
    try:
        number = value if isinstance(value, int) else float(value)  # a float would lose the last digits of a seed
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: a tensor of several
        raise _wrong(name, value, "a number") from error
    low, high = (math.inf * sign if (bound := getattr(entry, end, None)) is None else bound for end, sign in (("min", -1), ("max", 1)))
    if not low <= number <= high or abs(number) == math.inf:
        raise CoDiError(f"{name} is {number}: it must be a finite number from {low} to {high}")
    return number


def _float(value: Any, name: str, entry: Any) -> float:
    return float(_number(value, name, entry))


def _whole(value: Any, name: str, entry: Any) -> int:
    number = _number(value, name, entry)
    if number != int(number):
        raise CoDiError(f"{name} is {number}: it must be a whole number")
    return int(number)


def _switch(value: Any, name: str, _: Any = None) -> bool:
    if not isinstance(value, (bool, int, float)):
        raise _wrong(name, value, "true or false")
    return bool(value)


def _choice(value: Any, name: str, entry: Any) -> Any:
    if name not in FILES and value not in entry.options:
        raise CoDiError(f"{name} {str(value)[:80]!r} is unknown: give one of {', '.join(map(str, entry.options))}")
    if not isinstance(value, str):
        raise _wrong(name, value, "a name")
    return value


_CHECKS: dict[str, Callable[[Any, str, Any], Any]] = {
    "IMAGE": image, "VIDEO,IMAGE": _video, "MASK": _mask, "AUDIO": _audio, "LATENT": _latent, "CONDITIONING": _conditioning,
    "MODEL": _model, "CODI_MODEL": _codi, "CLIP": _clip, "STRING": _text, "INT": _whole, "FLOAT": _float, "BOOLEAN": _switch,
    "COMBO": _choice,
}  # fmt: skip

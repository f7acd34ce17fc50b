"""Convolutions computed the way that suits their size, with the weight that the layer's own operations hand over.

Only `_conv_forward` of a layer is exchanged, so that injected operations still cast, patch and stream its weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFTS = 8
"""Chunks of channels in the frame shift of the temporal modules."""

_GROUP = 2  # chunks that one convolution makes
_WIDE = 256  # channels from which another way than torch's own pays


def _as_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any, **__: Any) -> Tensor:
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def pointwise(layer: Any) -> Any:
    """Compute a convolution of kernel 1 as one matrix product, (B, C, ...) -> (B, C', ...) with channels last in memory."""
    layer._conv_forward = _as_linear
    return layer


def by_size(layer: Any) -> Any:
    """Compute a 3x3 convolution with padding 1, (B, C, H, W) -> (B, C', H', W'), by the size of the map.

    On CPU torch brings the weight into another order at every call, twice where values lie channels last; for a small map that takes
    longer than the arithmetic. A matrix product takes the weight as it lies."""
    layer._conv_forward = partial(_convolve, stride=layer.stride[0])
    return layer


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any, stride: int = 1, **__: Any) -> Tensor:
    channels = weight.shape[0]
    if x.device.type == "cpu" and weight.dtype == torch.float32 and channels >= _WIDE and not torch.is_grad_enabled():
        positions = x[:, 0, ::stride, ::stride].numel()
        if 4 * positions <= channels:
            padded = F.pad(x.movedim(1, -1), (0, 0, 1, 1, 1, 1))  # (B, H+2, W+2, C)
            around = padded.unfold(1, 3, stride).unfold(2, 3, stride).flatten(3)  # (B, H', W', C*9)
            return F.linear(around, weight.flatten(1), bias).movedim(-1, 1)
        if 2 * positions <= 9 * channels:
            x = x.contiguous()
    return F.conv2d(x, weight, bias, stride, 1)


def delayed(layer: Any) -> Any:
    """Let a 3x3 convolution take frames, (B, F, C, H, W) -> the same, and delay chunk i of its result by i frames; zeros come in.

    On CPU a wide layer leaves out what the delay pushes out at the end: of eight frames three eighths."""
    layer._conv_forward = _convolve_and_delay
    return layer


def _convolve_and_delay(x: Tensor, weight: Tensor, bias: Tensor, *_: Any, **__: Any) -> Tensor:
    batch, frames = x.shape[:2]
    partly = x.device.type == "cpu" and not torch.is_grad_enabled() and weight.shape[0] >= _WIDE and weight.shape[0] % SHIFTS == 0
    group = _GROUP if partly else SHIFTS
    parts = []
    for first, (part, shift) in enumerate(zip(weight.chunk(SHIFTS // group), bias.chunk(SHIFTS // group), strict=True)):
        seen = max(frames - first * group, 0)
        h = _convolve(x[:, :seen].flatten(0, 1), part, shift).unflatten(0, (batch, seen)).movedim(2, -1)  # (B, seen, H, W, C / groups)
        parts += h.chunk(group, dim=-1)
    return delay(parts, range(SHIFTS), frames).movedim(-1, 2)  # (B, F, C, H, W), channels last in memory


def delay(parts: Sequence[Tensor], by: Iterable[int], frames: int) -> Tensor:
    """Put parts of the channels (B, up to F, ..., c) side by side, each later by so many frames; zeros come in -> (B, F, ..., C).

    Each number is written once: padding and joining would copy all of them twice."""
    batch, _, *inner, _ = parts[0].shape
    late, first = parts[0].new_empty(batch, frames, *inner, sum(part.shape[-1] for part in parts)), 0
    for part, shift in zip(parts, by, strict=True):
        shift, last = min(shift, frames), first + part.shape[-1]
        place, first = late[..., first:last], last
        place[:, :shift] = 0
        place[:, shift:] = part[:, : frames - shift]
    return late


def before_delay(layer: Any, x: Tensor, result: Tensor) -> Tensor:
    """What a layer makes of `x`, whole and before any delay, (B*F, C, H, W); of layers without a delay it is their `result`."""
    if getattr(layer, "_conv_forward", None) is not _convolve_and_delay:
        return result
    return _convolve(x.flatten(0, 1), layer.weight, layer.bias)

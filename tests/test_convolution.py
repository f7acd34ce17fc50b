"""Convolutions computed by their size give what torch's own give, whatever the layout, and so does the delay of frames."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from codi.codi_models.denoisers.convolution import SHIFTS, before_delay, by_size, delayed
from torch import Tensor, nn


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("batch", "size"), [(2, (4, 4)), (1, (5, 3)), (4, (8, 8)), (3, (24, 24))], ids=str)
def test_a_convolution_by_size_is_the_convolution(batch: int, size: tuple[int, int], stride: int) -> None:
    layer = nn.Conv2d(16, 320, 3, stride=stride, padding=1)
    ours = by_size(copy.deepcopy(layer))
    x = torch.randn(batch, 16, *size)
    with torch.no_grad():
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(ours(given), layer(x), rtol=1e-4, atol=1e-5)


def late(h: Tensor, frames: int) -> Tensor:
    """Chunk i of the channels of (B, F, C, H, W) delayed by i frames, written out."""
    out, width = torch.zeros_like(h), h.shape[2] // SHIFTS
    for frame in range(frames):
        for i in range(min(frame + 1, SHIFTS)):
            out[:, frame, i * width : (i + 1) * width] = h[:, frame - i, i * width : (i + 1) * width]
    return out


@pytest.mark.parametrize("channels", [16, 320], ids=["narrow", "wide"])
@pytest.mark.parametrize("frames", [1, 3, 8, 11])
def test_a_delayed_convolution_is_the_convolution_and_the_delay(channels: int, frames: int) -> None:
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    ours = delayed(copy.deepcopy(layer))
    x = torch.randn(2, frames, channels, 3, 4)
    whole = F.conv2d(x.flatten(0, 1), layer.weight, layer.bias, padding=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), late(whole.unflatten(0, (2, frames)), frames), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(before_delay(ours, x, ours(x)), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(x), late(whole.unflatten(0, (2, frames)), frames), rtol=1e-4, atol=1e-5)  # as in training
    ours(x).square().sum().backward()
    late(whole.unflatten(0, (2, frames)), frames).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, layer.weight.grad, rtol=1e-3, atol=1e-3)

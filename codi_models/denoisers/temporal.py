"""Temporal modules: what makes the image UNet a video UNet (paper section 3.2, after Make-A-Video, Singer et al. 2022).

They work on frames folded into the batch, (B*F, C, H, W), and are left out for pictures.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CoDiError
from .convolution import delay, delayed, pointwise
from .layers import group_norm

HEADS = 8
"""Heads of temporal attention."""

_NARROW_HEAD = 96

FRAME_RATE_INDEX = 3
"""Row of the frame-rate table that is always used: four frames a second."""


def variance_floor(x: Tensor, gain: Tensor) -> float:
    """Smallest variance that the published norms divide by: 1e-5 in float32 and 1e-3 in every other type.

    The floor stays 1e-5 for half-precision activations of a float32 network (autocast), so that a network trained that way
    computes the same in float32.
    """
    return 1e-5 if torch.float32 in (x.dtype, gain.dtype) else 1e-3


def log_distances(frames: int, like: Tensor) -> Tensor:
    """sign(d) * log(1 + |d|) of all pairs, d = query index - key index -> (F*F, 1)"""
    index = torch.arange(frames, device=like.device, dtype=torch.float32)
    distance = index[:, None] - index[None, :]
    return (distance.sign() * distance.abs().log1p()).view(-1, 1).to(like.dtype)


class FrameNorm(nn.Module):
    """Normalise every pixel and channel over the frames, then a gain per channel; a variance below the floor counts as the floor."""

    def __init__(self, channels: int, *, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(channels, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(N, F, C) -> (N, F, C)"""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # squares of large activations overflow in half precision
        centred = wide - wide.mean(dim=1, keepdim=True)
        scale = centred.square().mean(dim=1, keepdim=True).clamp(min=variance_floor(x, self.g)).rsqrt() * self.g.to(wide)
        return (centred * scale).to(x.dtype)


class ChannelNorm(nn.Module):
    """Normalise over the channels, then a gain per channel."""

    def __init__(self, channels: int, *, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(channels, 1, 1, 1, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 1, H, W) -> the same"""
        centred = x - x.mean(dim=1, keepdim=True)
        scale = centred.square().mean(dim=1, keepdim=True).clamp(min=variance_floor(x, self.g)).rsqrt()
        return centred * scale * self.g.to(x)


class TemporalPositionBias(nn.Module):
    """Relative position bias of temporal attention: a small network of the signed logarithmic distance."""

    def __init__(
        self, channels: int, heads: int = HEADS, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None
    ) -> None:
        super().__init__()
        extra = dict(dtype=dtype, device=device)
        inner = channels // 2
        self.net = nn.ModuleList([
            nn.ModuleList([operations.Linear(1, inner, **extra), nn.SiLU()]),
            nn.ModuleList([operations.Linear(inner, inner, **extra), nn.SiLU()]),
            operations.Linear(inner, heads, **extra),
        ])  # fmt: skip

    def forward(self, distances: Tensor) -> Tensor:
        """(F*F, 1) -> (heads, F, F)"""
        first, second, last = self.net
        bias = last(F.silu(second[0](F.silu(first[0](distances)))))  # type: ignore[index]
        return bias.t().unflatten(1, (math.isqrt(bias.shape[0]), -1))


def attend_in_time(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Attention of the frames of every row, q, k and v (N, F, heads*dim), logits plus bias (heads, F, F) -> (N, F, heads*dim).

    On CPU a call costs more than the arithmetic of so few tokens: there two rows share one, and a mask keeps them apart.
    """
    rows, frames, width = q.shape
    together = 2 if q.device.type == "cpu" and rows % 2 == 0 and width // heads <= _NARROW_HEAD else 1
    if together == 2:
        apart = torch.full_like(bias, -math.inf)
        bias = torch.cat([torch.cat([bias, apart], dim=2), torch.cat([apart, bias], dim=2)], dim=1)  # (heads, 2*F, 2*F)
    q, k, v = (t.reshape(-1, together * frames, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None])  # (N / together, heads, together*F, dim)
    return out.transpose(1, 2).reshape(rows, frames, width)


class TemporalAttention(nn.Module):
    """Attention along time, for every pixel alone. Eight heads of a quarter of the channels make the inner width twice the channels."""

    def __init__(
        self, channels: int, max_frames: int, heads: int = HEADS, head_dim: int | None = None, *,
        operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        extra = dict(dtype=dtype, device=device)
        self.heads = heads
        inner = (head_dim or channels // 4) * heads
        self.pos_embeds = nn.Parameter(torch.empty(1, max_frames, channels, **extra))  # type: ignore[arg-type]
        self.frame_rate_embeds = nn.Parameter(torch.empty(1, max_frames, channels, **extra))  # type: ignore[arg-type]
        self.norm = FrameNorm(channels, **extra)  # type: ignore[arg-type]
        self.to_q = operations.Linear(channels, inner, bias=False, **extra)
        self.to_kv = operations.Linear(channels, 2 * inner, bias=False, **extra)
        self.to_out = operations.Linear(inner, channels, bias=False, **extra)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (N, F, C), one row a pixel, bias (heads, F, F) -> (N, F, C)"""
        frames, known = x.shape[1], self.pos_embeds.shape[1]
        if frames > known:
            raise CoDiError(f"this model makes videos of at most {known} frames, got {frames}. Use a shorter video")
        tables = self.pos_embeds[:, :frames], self.frame_rate_embeds[:, FRAME_RATE_INDEX : FRAME_RATE_INDEX + 1]
        place, rate = (table if table.dtype.itemsize > 1 else table.to(x) for table in tables)  # eight bits cannot be added
        h = self.norm(x + (place + rate).to(x))
        keys, values = self.to_kv(h).chunk(2, dim=-1)
        return self.to_out(attend_in_time(self.to_q(h), keys, values, bias, self.heads))


class GatedGELU(nn.Module):
    """First half of the channels times the GELU of the second, computed in float32 in every precision."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """2*C entries along axis `dim` -> C of them, float32"""
        value, gate = x.float().chunk(2, dim=self.dim)
        return value * F.gelu(gate)


class TemporalFeedForward(nn.Module):
    """Gated feed-forward in which half of the channels come from the frame before."""

    def __init__(self, channels: int, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        extra = dict(dtype=dtype, device=device)
        inner = int(channels * 4 * 2 / 3)
        self.proj_in = nn.ModuleList([pointwise(operations.Conv3d(channels, inner * 2, 1, bias=False, **extra)), GatedGELU(dim=1)])
        norm = ChannelNorm(inner, **extra)  # type: ignore[arg-type]
        self.proj_out = nn.ModuleList([norm, pointwise(operations.Conv3d(inner, channels, 1, bias=False, **extra))])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B*F, C, H, W) -> (B*F, C, H, W)"""
        widen, gate = self.proj_in
        h = gate(widen(x[:, :, None]))  # (B*F, C', 1, H, W)
        halves = h.movedim(1, -1).unflatten(0, (-1, frames)).chunk(2, dim=-1)  # (B, F, 1, H, W, C'/2)
        h = delay(halves, (0, 1), frames).flatten(0, 1).movedim(-1, 1)  # (B*F, C', 1, H, W), channels last in memory
        return self.proj_out[1](self.proj_out[0](h).to(x.dtype))[:, :, 0]


class FrameShift(nn.Module):
    """x + shift(conv(SiLU(GroupNorm(x)))): chunk i of the channels is delayed by i frames, zeros come in."""

    def __init__(
        self, channels: int, norm_groups: int, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None
    ) -> None:
        super().__init__()
        extra = dict(dtype=dtype, device=device)
        norm = operations.GroupNorm(norm_groups, channels, **extra)
        self.out_layers = nn.ModuleList([norm, nn.SiLU(), delayed(operations.Conv2d(channels, channels, 3, padding=1, **extra))])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B*F, C, H, W) -> (B*F, C, H, W)"""
        norm, _, conv = self.out_layers
        return x + conv(F.silu(group_norm(norm, x)).unflatten(0, (-1, frames))).flatten(0, 1)


class TemporalModule(nn.Module):
    """Temporal attention, temporal feed-forward and frame shift behind a ResBlock."""

    def __init__(
        self, channels: int, norm_groups: int, max_frames: int = 30, *, heads: int = HEADS, head_dim: int | None = None,
        operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        extra: dict[str, Any] = dict(operations=operations, dtype=dtype, device=device)
        self.frameshiftblock = FrameShift(channels, norm_groups, **extra)
        self.temporal_attn = TemporalAttention(channels, max_frames, heads, head_dim, **extra)
        self.temporal_rel_pos_bias = TemporalPositionBias(channels, heads, **extra)
        self.ff = TemporalFeedForward(channels, **extra)

    def forward(self, x: Tensor, frames: int, distances: Tensor) -> Tensor:
        """x (B*F, C, H, W), distances from `log_distances` -> (B*F, C, H, W)"""
        size = x.shape[2:]
        pixels = x.unflatten(0, (-1, frames)).permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B*H*W, F, C)
        pixels = pixels + self.temporal_attn(pixels, self.temporal_rel_pos_bias(distances))
        x = pixels.unflatten(0, (-1, *size)).permute(0, 3, 1, 2, 4).flatten(0, 1)  # (B*F, H, W, C)
        x = x.permute(0, 3, 1, 2)
        x = x + self.ff(x, frames)
        return self.frameshiftblock(x, frames)

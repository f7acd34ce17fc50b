"""Layers that the 2-D and the text UNet share: time embedding, residual blocks, spatial transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import by_size, pointwise
from .hooks import PLAIN, Hooks

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""`attention(q (B, N, heads*dim), k (B, M, heads*dim), v, heads) -> (B, N, heads*dim)`, scaled by dim ** -0.5."""


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention with torch's fused kernels."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, N, dim)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, heads*dim)


@lru_cache(maxsize=32)
def _frequencies(half: int, device: torch.device) -> Tensor:
    """exp(-ln(10000) * i / half), float32 (half,), the same to the last bit on every machine.

    An angle is up to 999 times a frequency, and in the last bit of a float32 exponential processors differ. So it is spelt out, in
    the steps with which the published numbers were made: exp(x) = 2 ** (k / 128) * (1 + r + r * r / 2), r = x - k * ln(2) / 128,
    with ln(2) / 128 and the power of two each as a sum of two float32 numbers.
    """
    with torch.inference_mode(False):
        x = -math.log(10000) * torch.arange(half, dtype=torch.float32, device="cpu") / half
        k = (x * (128 / math.log(2))).round()
        coarse = 710 / 2**17  # ln(2) / 128 in ten bits, so that k times it is exact
        r = (x - k * coarse) - k * (math.log(2) / 128 - coarse)
        power = torch.exp2(k.double() / 128)
        high = power.float()
        low = (power - high).float()
        return (high + (low + high * (r + 0.5 * (r * r)))).to(device)


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of diffusion timesteps (B,), integer or fractional: cosines first -> float32 (B, dim)."""
    angles = timesteps.float()[:, None] * _frequencies(dim // 2, timesteps.device)  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@dataclass(frozen=True)
class Branch:
    """A cross-attention branch `to_out(to_v(context))` computed ahead: exact for a context of one token.

    (B, 1, C) for all frames of a sample, (B, F, C) with a token of its own for every frame."""

    value: Tensor


@dataclass(frozen=True)
class FoldedContext:
    """The branches of every prompt cross-attention of one UNet, in the order in which the UNet runs them."""

    branches: tuple[Branch, ...]

    @property
    def batch(self) -> int:
        """Samples that the context was folded for."""
        return self.branches[0].value.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> FoldedContext:
        """Apply a function of (B, 1 or F, C) to every branch, such as an index of samples or a cast."""
        return FoldedContext(tuple(Branch(function(branch.value)) for branch in self.branches))


Context = Tensor | FoldedContext
"""Prompt of a UNet: tokens (B, n, context_dim), tokens of every frame (B, F, n, context_dim), or what its `fold_context` made of them."""


@dataclass(frozen=True)
class Weighted:
    """Tokens (B, n, D) that share the attention in proportion to weights above 0, one a token, beside what the queries ask for."""

    tokens: Tensor
    weights: tuple[float, ...]

    @property
    def shape(self) -> torch.Size:
        """(B, n, D)"""
        return self.tokens.shape


_FEW_VALUES = 1 << 18


def group_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, around two weaknesses of torch on CPU where values lie channels last.

    Of small maps the norm takes several times as long as a copy and the norm of the copy. And its backward pass crashes where the
    input needs no gradient and the weights do: a trainable connector behind a frozen layer.
    """
    if x.device.type == "cpu" and (x.numel() <= _FEW_VALUES or torch.is_grad_enabled() and not x.requires_grad):
        x = x.contiguous()
    return norm(x)


class Downsample(nn.Module):
    """Halve height and width: 3x3 convolution of stride 2."""

    def __init__(self, channels: int, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        self.op = by_size(operations.Conv2d(channels, channels, 3, stride=2, padding=1, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)"""
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        self.conv = by_size(operations.Conv2d(channels, channels, 3, padding=1, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)"""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """Residual block conditioned by the time embedding.

    `tokens` is None for pictures. Otherwise the block is the fully connected block of the text UNet: the state (B, C, tokens, 1)
    is flattened to tokens*C channels of one position, where a 1x1 convolution is a full linear map.
    """

    def __init__(
        self, channels: int, out_channels: int, emb_channels: int, norm_groups: int, *, tokens: int | None = None,
        operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        extra = dict(dtype=dtype, device=device)
        self.tokens = tokens
        size, width, out_width = (3, channels, out_channels) if tokens is None else (1, channels * tokens, out_channels * tokens)

        def conv(inside: int, size: int = size) -> nn.Module:
            layer = operations.Conv2d(inside, out_width, size, padding=size // 2, **extra)
            return pointwise(layer) if size == 1 else by_size(layer)

        self.in_layers = nn.ModuleList([operations.GroupNorm(norm_groups, width, **extra), nn.SiLU(), conv(width)])
        self.emb_layers = nn.ModuleList([nn.SiLU(), operations.Linear(emb_channels, out_width, **extra)])
        self.out_layers = nn.ModuleList([operations.GroupNorm(norm_groups, out_width, **extra), nn.SiLU(), nn.Identity(), conv(out_width)])
        self.skip_connection = nn.Identity() if width == out_width else conv(width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B*F, C, H, W), emb (B, emb_channels) already through its SiLU, F frames a sample -> (B*F, C', H, W)"""
        if self.tokens is not None:
            x = x.flatten(1)[:, :, None, None]  # (B, C*tokens, 1, 1)
        norm, _, conv = self.in_layers
        h = conv(F.silu(group_norm(norm, x)))
        shift = self.emb_layers[1](emb)  # (B, C')
        frames = h.shape[0] // shift.shape[0]
        if frames == 1:
            h = h + shift[:, :, None, None]
        else:
            h = (h.unflatten(0, (-1, frames)) + shift[:, None, :, None, None]).flatten(0, 1)
        norm, _, _, conv = self.out_layers
        h = self.skip_connection(x) + conv(F.silu(group_norm(norm, h)))
        return h if self.tokens is None else h.view(h.shape[0], -1, self.tokens, 1)


class CrossAttention(nn.Module):
    """Multi-head attention; self-attention where `context_dim` is the channels of the queries."""

    def __init__(
        self, channels: int, context_dim: int, heads: int, *, attention: Attention,
        operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        extra = dict(dtype=dtype, device=device)
        self.heads = heads
        self.attention = attention
        self.to_q = operations.Linear(channels, channels, bias=False, **extra)
        self.to_k = operations.Linear(context_dim, channels, bias=False, **extra)
        self.to_v = operations.Linear(context_dim, channels, bias=False, **extra)
        self.to_out = nn.ModuleList([operations.Linear(channels, channels, **extra)])

    def fold(self, context: Tensor) -> Tensor:
        """(B, 1, context_dim) -> (B, 1, C): softmax over a single token is 1, whatever the query."""
        return self.to_out[0](self.to_v(context))

    def forward(self, x: Tensor, context: Tensor | Weighted) -> Tensor:
        """x (B, N, C), context (B, M, context_dim) -> (B, N, C)"""
        if isinstance(context, Weighted):
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (
                self.to_q(x), self.to_k(context.tokens), self.to_v(context.tokens)
            ))  # (B, heads, N or M, dim) # fmt: skip
            bias = q.new_tensor(context.weights).log()[None, None, None]  # (1, 1, 1, M)
            return self.to_out[0](F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
        return self.to_out[0](self.attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class GEGLU(nn.Module):
    """Linear map whose first half is gated by the exact GELU of the second (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        self.proj = operations.Linear(channels, inner * 2, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., inner)"""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated feed-forward of expansion 4."""

    def __init__(self, channels: int, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        extra = dict(dtype=dtype, device=device)
        self.net = nn.ModuleList([GEGLU(channels, channels * 4, operations=operations, **extra), nn.Identity()])
        self.net.append(operations.Linear(channels * 4, channels, **extra))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)"""
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each on the layer-normalised input with a residual."""

    def __init__(
        self, channels: int, context_dim: int, heads: int, *, attention: Attention,
        operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        extra = dict(dtype=dtype, device=device)
        self.attn1 = CrossAttention(channels, channels, heads, attention=attention, operations=operations, **extra)
        self.ff = FeedForward(channels, operations=operations, **extra)
        self.attn2 = CrossAttention(channels, context_dim, heads, attention=attention, operations=operations, **extra)
        self.norm1 = operations.LayerNorm(channels, **extra)
        self.norm2 = operations.LayerNorm(channels, **extra)
        self.norm3 = operations.LayerNorm(channels, **extra)

    def forward(self, x: Tensor, context: Tensor | Branch | Weighted) -> Tensor:
        """x (B*F, N, C), context (B, M, context_dim), of every frame (B, F, M, context_dim), or branch (B, 1 or F, C) -> (B*F, N, C)"""
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        batch = (context.value if isinstance(context, Branch) else context).shape[0]
        frames = x.unflatten(0, (batch, -1))  # (B, F, N, C): all frames of a sample share its context
        if isinstance(context, Branch):
            x = (frames + context.value[:, :, None]).flatten(0, 1)
        elif isinstance(context, Tensor) and context.ndim == 4:
            x = x + self.attn2(self.norm2(x), context.flatten(0, 1))
        else:
            queries = self.norm2(x).unflatten(0, (batch, -1)).flatten(1, 2)  # (B, F*N, C)
            x = (frames + self.attn2(queries, context).view_as(frames)).flatten(0, 1)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the positions of a feature map, attending to a context; the connectors are such transformers too.

    `inner`: its own width, by default that of the feature map. UNets have `depth` 1."""

    def __init__(
        self, channels: int, context_dim: int, heads: int, norm_groups: int, *, inner: int | None = None, depth: int = 1,
        attention: Attention = scaled_dot_product,
        operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        extra = dict(dtype=dtype, device=device)
        self.norm = operations.GroupNorm(norm_groups, channels, eps=1e-6, **extra)
        width = inner or channels
        self.proj_in = pointwise(operations.Conv2d(channels, width, 1, **extra))
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, context_dim, heads, attention=attention, operations=operations, **extra) for _ in range(depth)
        )
        self.proj_out = pointwise(operations.Conv2d(width, channels, 1, **extra))

    def fold(self, context: Tensor) -> Branch:
        """Cross-attention branch (depth 1) of a context of one token (B, 1, context_dim), or of one a frame (B, F, 1, context_dim)."""
        context = context.flatten(1, 2) if context.ndim == 4 else context
        return Branch(self.transformer_blocks[0].attn2.fold(context))  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, context: Tensor | Branch | Weighted, strength: float | Tensor = 1.0, hooks: Hooks = PLAIN) -> Tensor:
        """x (B*F, C, H, W), context (B, n, context_dim) or its branch -> x + strength * change, strength a number or (B,)"""
        if isinstance(context, Tensor) and context.shape[-2] == 1 and len(self.transformer_blocks) == 1 and not hooks.unfolded:
            context = self.fold(context)
        h = self.proj_in(group_norm(self.norm, x)).flatten(2).transpose(1, 2)  # (B*F, H*W, C)
        for block in self.transformer_blocks:
            h = hooks.transformer(block, h, context, x.shape)
        h = self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))  # (B*F, C, H, W)
        if isinstance(strength, Tensor):
            frames = x.shape[0] // strength.shape[0]
            return x + h * strength.to(h).repeat_interleave(frames)[:, None, None, None]
        return x + h if strength == 1 else torch.add(x, h, alpha=strength)

"""Temporal attention inside the vision tower of the prompt encoder (paper section 3.1: CLIP extended to video)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoisers.temporal import FrameNorm, GatedGELU, variance_floor


class Pointwise(nn.Conv1d):
    """A 1x1 convolution by its weight (outputs, inputs, 1), computed as one matrix product on channels-last tensors (..., C)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:, :, 0])


class ChannelNorm(nn.Module):
    """Layer norm with a gain and no bias; the gain has the shape of a convolution's (1, C, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, dim, 1))

    def forward(self, x: Tensor) -> Tensor:  # (N, F, C)
        x = x - x.mean(dim=-1, keepdim=True)
        return x * x.square().mean(dim=-1, keepdim=True).clamp(min=variance_floor(x, self.g)).rsqrt() * self.g.flatten().to(x)


class RelativePositionBias(nn.Module):
    """Attention bias from the signed logarithmic distance in frames: an MLP 1 -> hidden -> hidden -> heads."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([
            nn.Sequential(nn.Linear(1, hidden), nn.SiLU()),
            nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU()),
            nn.Linear(hidden, heads),
        ])  # fmt: skip

    def forward(self, frames: int, like: Tensor) -> Tensor:
        """Bias (heads, frames, frames) of query minus key distance; each distance goes through the MLP once."""
        distance = torch.arange(1 - frames, frames, device=like.device, dtype=torch.float32)  # (2F-1,)
        x = (distance.sign() * distance.abs().log1p()).to(like.dtype)[:, None]
        for layer in self.net:
            x = layer(x)
        position = torch.arange(frames, device=like.device)
        return x[position[:, None] - position[None, :] + frames - 1].permute(2, 0, 1)  # (heads, F, F)


class TemporalAttention(nn.Module):
    """Self-attention along time for every token.

    The position and frame-rate tables are parameters of the published checkpoint that its forward pass never reads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.pos_embeds = nn.Parameter(torch.zeros(1, 30, dim))
        self.frame_rate_embeds = nn.Parameter(torch.zeros(1, 30, dim))
        self.norm = FrameNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # (N, F, C), (heads, F, F)
        n, frames, _ = x.shape
        x = self.norm(x)
        q, k, v = (t.view(n, frames, self.heads, -1).transpose(1, 2) for t in (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1)))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))  # (N, heads, F, C / heads)
        return self.to_out(x.transpose(1, 2).reshape(n, frames, -1)).nan_to_num()


class TemporalFeedForward(nn.Module):
    """Gated feed-forward of width 8/3 on every token and frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = int(dim * 4 * 2 / 3)
        self.proj_in = nn.Sequential(Pointwise(dim, 2 * inner), GatedGELU(dim=-1))
        self.proj_out = nn.Sequential(ChannelNorm(inner), Pointwise(inner, dim))
        nn.init.zeros_(self.proj_out[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # (N, F, C)
        hidden = self.proj_out[0](self.proj_in(x))
        return self.proj_out[1](hidden.to(x.dtype))


class TemporalModule(nn.Module):
    """x + attention(x), then x + feed-forward(x), along the frames of a clip; an identity when freshly initialised."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.temporal_attn = TemporalAttention(dim, heads)
        self.temporal_rel_pos_bias = RelativePositionBias(dim // 2, heads)
        self.ff = TemporalFeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, F, C) of N places over F frames, to the same shape."""
        x = x + self.temporal_attn(x, self.temporal_rel_pos_bias(x.shape[1], x))
        return x + self.ff(x)

"""HTSAT, the hierarchical token-semantic audio transformer (Chen et al. 2022): shifted windows on a folded spectrogram."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CLAPConfig
from .log_mel import PowerMel


@lru_cache(maxsize=64)
def relative_position_index(window: int, device: torch.device) -> Tensor:
    """(w*w * w*w,) rows of the bias table for every query and key of a w x w window."""
    with torch.inference_mode(False):
        y, x = (t.flatten() for t in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        rows = (y[:, None] - y[None] + window - 1) * (2 * window - 1) + x[:, None] - x[None] + window - 1
        return rows.flatten().to(device)


@lru_cache(maxsize=64)
def shift_mask(resolution: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, w*w, w*w): -100 between tokens that only met because the map was rolled round its edge, else 0."""
    with torch.inference_mode(False):
        region = torch.zeros(resolution, dtype=torch.long)
        region[-window:], region[-shift:] = 1, 2
        labels = (3 * region[:, None] + region[None])[None, :, :, None]
        labels = to_windows(labels, window)[..., 0]  # (windows, w*w)
        return torch.where(labels[:, :, None] == labels[:, None], 0.0, -100.0).to(device)


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, w*w, C)."""
    b, height, width, dim = x.shape
    x = x.view(b, height // window, window, width // window, window, dim).transpose(2, 3)
    return x.reshape(-1, window * window, dim)


def from_windows(x: Tensor, window: int, resolution: int) -> Tensor:
    """(B * windows, w*w, C) -> (B, H, W, C) of a square map."""
    side = resolution // window
    x = x.view(-1, side, side, window, window, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, resolution, resolution, x.shape[-1])


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learnt bias for every offset."""

    def __init__(self, dim: int, window: int, heads: int, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads, **factory))
        self.qkv = operations.Linear(dim, 3 * dim, **factory)
        self.proj = operations.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # (B * windows, T, C), (windows, T, T)
        tokens, heads = x.shape[1], self.heads
        qkv = self.qkv(x).view(x.shape[0], tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (3, B * windows, heads, T, C / heads)
        index = relative_position_index(self.window, x.device)
        bias = self.relative_position_bias_table.to(x)[index].view(1, tokens, tokens, heads).permute(0, 3, 1, 2)
        if mask is not None:
            bias = (bias + mask[:, None].to(bias)).flatten(0, 1)[None]  # (1, windows * heads, T, T)
            qkv = qkv.reshape(3, -1, bias.shape[1], tokens, qkv.shape[-1])
        q, k, v = qkv
        # Written out: fused attention has no fast path for a bias that is trained, and windows are small.
        out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias.to(q)).softmax(dim=-1) @ v
        out = out.reshape(x.shape[0], heads, tokens, -1).transpose(1, 2)
        return self.proj(out.reshape(x.shape))


class MLP(nn.Module):
    """Two linear layers with GELU."""

    def __init__(self, dim: int, hidden: int, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.fc1 = operations.Linear(dim, hidden, **factory)
        self.fc2 = operations.Linear(hidden, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Window attention, every second time on windows shifted by half their size, then MLP; both pre-norm with residual."""

    def __init__(self, dim: int, resolution: int, window: int, shift: int, heads: int, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.resolution, self.window, self.shift = resolution, window, shift
        self.norm1 = operations.LayerNorm(dim, eps=1e-5, **factory)
        self.attn = WindowAttention(dim, window, heads, operations=operations, **factory)
        self.norm2 = operations.LayerNorm(dim, eps=1e-5, **factory)
        self.mlp = MLP(dim, 4 * dim, operations=operations, **factory)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        h = self.norm1(x)
        mask = None
        if self.shift:
            h = torch.roll(h, (-self.shift, -self.shift), dims=(1, 2))
            mask = shift_mask(self.resolution, self.window, self.shift, x.device)
        h = from_windows(self.attn(to_windows(h, self.window), mask), self.window, self.resolution)
        if self.shift:
            h = torch.roll(h, (self.shift, self.shift), dims=(1, 2))
        x = x + h
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """2 x 2 neighbours become one token of twice the width."""

    def __init__(self, dim: int, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.reduction = operations.Linear(4 * dim, 2 * dim, bias=False, **factory)
        self.norm = operations.LayerNorm(4 * dim, eps=1e-5, **factory)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C) -> (B, H/2, W/2, 2C)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Stage(nn.Module):
    """Blocks at one resolution, then, except in the last stage, patch merging."""

    def __init__(self, dim: int, resolution: int, depth: int, heads: int, window: int, merge: bool, **factory: Any) -> None:
        super().__init__()
        window = min(window, resolution)
        shift = window // 2 if resolution > window else 0
        self.blocks = nn.ModuleList(Block(dim, resolution, window, shift * (i % 2), heads, **factory) for i in range(depth))
        self.downsample = PatchMerging(dim, **factory) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, then a norm."""

    def __init__(self, config: CLAPConfig, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.proj = operations.Conv2d(1, config.embed_dim, config.patch_size, stride=config.patch_size, **factory)
        self.norm = operations.LayerNorm(config.embed_dim, eps=1e-5, **factory)

    def forward(self, x: Tensor) -> Tensor:  # (B, 1, S, S) -> (B, H, W, C)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class MelBatchNorm(nn.BatchNorm2d):
    """Batch norm over mel bins, computed in float32 whatever its weights are stored in."""

    def forward(self, x: Tensor) -> Tensor:  # (B, mel, T, 1)
        assert self.running_mean is not None and self.running_var is not None
        if not self.training:
            mean, var, weight, bias = (t.to(x).view(1, -1, 1, 1) for t in (self.running_mean, self.running_var, self.weight, self.bias))
            return (x - mean) * torch.rsqrt(var + self.eps) * weight + bias
        return super().forward(x)


class HTSAT(nn.Module):
    """Waveform (B, N) to features (B, width). The classification heads of the published network are kept, never evaluated."""

    def __init__(self, config: CLAPConfig, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        factory: dict[str, Any] = dict(dtype=dtype, device=device)
        self.config = config
        stages = len(config.depths)
        self.folds = config.spec_size // config.n_mels  # time segments stacked along frequency
        self.width = config.embed_dim * 2 ** (stages - 1)
        self.mel = PowerMel(config)
        self.bn0 = MelBatchNorm(config.n_mels, **factory)
        factory["operations"] = operations
        self.patch_embed = PatchEmbedding(config, **factory)
        side = config.spec_size // config.patch_size
        self.layers = nn.ModuleList(
            Stage(config.embed_dim * 2**i, side // 2**i, depth, heads, config.window_size, i < stages - 1, **factory)
            for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True))
        )
        del factory["operations"]
        self.norm = operations.LayerNorm(self.width, eps=1e-5, **factory)
        rows = side // 2 ** (stages - 1) // self.folds
        self.tscam_conv = operations.Conv2d(self.width, config.num_classes, (rows, 3), padding=(0, 1), **factory)
        self.head = operations.Linear(config.num_classes, config.num_classes, **factory)

    def initialise(self) -> None:
        """Normal weights of standard deviation 0.02, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.normal_(module.relative_position_bias_table, std=0.02)

    def fold(self, mel: Tensor) -> Tensor:
        """Normalised mel (B, T, n_mels) stretched in time and cut into `folds` segments, stacked: (B, 1, S, S)."""
        mel = mel[:, None]
        frames = self.config.spec_size * self.folds
        if mel.shape[2] != frames:
            mel = F.interpolate(mel, (frames, mel.shape[3]), mode="bicubic", align_corners=True)
        b = mel.shape[0]
        mel = mel.view(b, self.folds, self.config.spec_size, -1).transpose(2, 3)  # (B, folds, n_mels, S)
        return mel.reshape(b, 1, -1, self.config.spec_size)

    def forward(self, waveform: Tensor) -> Tensor:
        mel = self.mel(waveform)  # (B, T, n_mels), float32, decibels
        mel = self.bn0(mel.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        x = self.patch_embed(self.fold(mel).to(self.patch_embed.proj.weight.dtype))  # type: ignore[arg-type]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).mean(dim=(1, 2))

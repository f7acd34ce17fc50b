"""Convolutional KL autoencoder of latent diffusion (Rombach et al. 2022), for pictures and for log-mel spectrograms.

Attribute names are the published checkpoint's keys."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AutoencoderConfig

NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a residual: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, channels: int, out_channels: int, groups: int, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, channels, eps=NORM_EPS, **factory)
        self.conv1 = operations.Conv2d(channels, out_channels, 3, padding=1, **factory)
        self.norm2 = operations.GroupNorm(groups, out_channels, eps=NORM_EPS, **factory)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **factory)
        if channels != out_channels:
            self.nin_shortcut = operations.Conv2d(channels, out_channels, 1, **factory)
        self.widens = channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if self.widens else x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, with a residual. `full_precision` attends in float32 whatever the weights are."""

    def __init__(self, channels: int, groups: int, *, full_precision: bool, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.full_precision = full_precision
        self.norm = operations.GroupNorm(groups, channels, eps=NORM_EPS, **factory)
        self.q = operations.Conv2d(channels, channels, 1, **factory)
        self.k = operations.Conv2d(channels, channels, 1, **factory)
        self.v = operations.Conv2d(channels, channels, 1, **factory)
        self.proj_out = operations.Conv2d(channels, channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))  # (B, 1, H*W, C)
        if self.full_precision:
            q, k, v = q.float(), k.float(), v.float()
        h = F.scaled_dot_product_attention(q, k, v)
        h = h[:, 0].transpose(1, 2).reshape(x.shape).to(x.dtype)
        return x + self.proj_out(h)


class Middle(nn.Module):
    """ResBlock, attention, ResBlock at the lowest resolution."""

    def __init__(self, channels: int, groups: int, *, full_precision: bool, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups, operations=operations, **factory)
        self.attn_1 = AttentionBlock(channels, groups, full_precision=full_precision, operations=operations, **factory)
        self.block_2 = ResnetBlock(channels, channels, groups, operations=operations, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H // 2, W // 2); one row and one column of zeros are added below and at the right."""

    def __init__(self, channels: int, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2 * H, 2 * W), nearest neighbour and a 3x3 convolution."""

    def __init__(self, channels: int, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """ResBlocks of one resolution, each with attention behind it where `attend`, then the step to the next one if there is one."""

    def __init__(
        self, widths: list[int], groups: int, *, downsample: bool, upsample: bool, attend: bool, full_precision: bool,
        operations: Any, **factory: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        pairs = zip(widths, widths[1:], strict=False)
        self.block = nn.ModuleList(ResnetBlock(a, b, groups, operations=operations, **factory) for a, b in pairs)
        self.attn = nn.ModuleList(
            AttentionBlock(width, groups, full_precision=full_precision, operations=operations, **factory)
            for width in (widths[1:] if attend else ())
        )
        self.resizes = downsample or upsample
        if downsample:
            self.downsample = Downsample(widths[-1], operations=operations, **factory)
        if upsample:
            self.upsample = Upsample(widths[-1], operations=operations, **factory)

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip_longest(self.block, self.attn):
            x = block(x)
            if attention is not None:
                x = attention(x)
        if not self.resizes:
            return x
        return self.downsample(x) if hasattr(self, "downsample") else self.upsample(x)


def _attending(config: AutoencoderConfig) -> tuple[bool, ...]:
    """Whether each level attends."""
    return config.attention or (False,) * len(config.channel_mult)


def _inner(config: AutoencoderConfig) -> int:
    """Channels between the convolutions and the 1x1 maps to and from the latent."""
    return config.inner_channels or config.latent_channels


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, 2 * inner_channels, H / f, W / f)."""

    def __init__(self, config: AutoencoderConfig, *, full_precision_attention: bool, operations: Any, **factory: Any) -> None:
        super().__init__()
        shared = dict(factory, operations=operations)
        widths = [config.model_channels * m for m in config.channel_mult]
        groups, last = config.norm_groups, len(widths) - 1
        self.conv_in = operations.Conv2d(config.in_channels, config.model_channels, 3, padding=1, **factory)
        self.down = nn.ModuleList()
        before = config.model_channels
        for i, (width, attend) in enumerate(zip(widths, _attending(config), strict=True)):
            path = [before] + [width] * config.num_blocks
            kind = dict(downsample=i < last, upsample=False, attend=attend, full_precision=full_precision_attention)
            self.down.append(Level(path, groups, **kind, **shared))
            before = width
        self.mid = Middle(before, groups, full_precision=full_precision_attention, **shared)
        self.norm_out = operations.GroupNorm(groups, before, eps=NORM_EPS, **factory)
        self.conv_out = operations.Conv2d(before, 2 * _inner(config), 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """(B, inner_channels, h, w) -> (B, in_channels, h * f, w * f); one ResBlock a level more than the encoder."""

    def __init__(self, config: AutoencoderConfig, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        shared = dict(factory, operations=operations)
        widths = [config.model_channels * m for m in config.channel_mult]
        groups = config.norm_groups
        self.conv_in = operations.Conv2d(_inner(config), widths[-1], 3, padding=1, **factory)
        self.mid = Middle(widths[-1], groups, full_precision=False, **shared)
        entering = widths[1:] + widths[-1:]  # width that level i receives from the level below it
        self.up = nn.ModuleList(
            Level(
                [entering[i]] + [width] * (config.num_blocks + 1), groups,
                downsample=False, upsample=i > 0, attend=attend, full_precision=False, **shared,
            )
            for i, (width, attend) in enumerate(zip(widths, _attending(config), strict=True))
        )  # fmt: skip
        self.norm_out = operations.GroupNorm(groups, widths[0], eps=NORM_EPS, **factory)
        self.conv_out = operations.Conv2d(widths[0], config.in_channels, 3, padding=1, **factory)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class KLAutoencoder(nn.Module):
    """Encoder to a diagonal normal distribution over latents, and decoder. Latents here are unscaled ("latent space")."""

    def __init__(
        self,
        config: AutoencoderConfig,
        *,
        full_precision_attention: bool = False,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        factory: dict[str, Any] = dict(dtype=dtype, device=device)
        channels, inner = config.latent_channels, _inner(config)
        self.encoder = Encoder(config, full_precision_attention=full_precision_attention, operations=operations, **factory)
        self.decoder = Decoder(config, operations=operations, **factory)
        self.quant_conv = operations.Conv2d(2 * inner, 2 * channels, 1, **factory)
        self.post_quant_conv = operations.Conv2d(channels, inner, 1, **factory)

    @property
    def factor(self) -> int:
        """Input positions per latent position, on both axes."""
        return 2 ** (len(self.config.channel_mult) - 1)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)  # 2 x (B, C, h, w)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


def sample_posterior(mean: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw from N(mean, exp(logvar)), shaped like mean. The generator may live on another device."""
    device = generator.device if generator is not None else mean.device
    noise = torch.randn(mean.shape, generator=generator, device=device, dtype=torch.float32)
    return mean + torch.exp(0.5 * logvar) * noise.to(mean)

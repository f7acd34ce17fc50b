"""2-D latent diffusion UNet of pictures, clips (with temporal modules) and sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import UNetConfig
from ..errors import CoDiError
from .layers import Attention, Downsample, ResBlock, Upsample
from .temporal import TemporalModule
from .unet import UNet


class UNet2D(UNet):
    """UNet over latents (B, C, H, W); a temporal one takes clips (B, C, F, H, W) too, whose frames only meet in the temporal modules."""

    config: UNetConfig

    def __init__(
        self, config: UNetConfig, *,
        operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None, attention: Attention | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, operations=operations, dtype=dtype, device=device, attention=attention)

    def _stem(self, channels: int) -> nn.Module:
        return self._operations.Conv2d(self.config.in_channels, channels, 3, padding=1, **self._extra)

    def _res(self, channels: int, out_channels: int) -> nn.Module:
        config, extra = self.config, dict(operations=self._operations, **self._extra)
        block = ResBlock(channels, out_channels, 4 * config.model_channels, config.norm_groups, **extra)
        if not config.temporal:
            return block
        return nn.ModuleList([block, TemporalModule(out_channels, config.norm_groups, config.max_frames, **extra)])

    def _down(self, channels: int) -> nn.Module:
        return Downsample(channels, operations=self._operations, **self._extra)

    def _up(self, channels: int) -> nn.Module:
        return Upsample(channels, operations=self._operations, **self._extra)

    def _head(self, norm_channels: int, channels: int, out_channels: int) -> nn.ModuleList:
        norm = self._operations.GroupNorm(self.config.norm_groups, norm_channels, **self._extra)
        conv = self._operations.Conv2d(channels, out_channels, 3, padding=1, **self._extra)
        return nn.ModuleList([norm, nn.SiLU(), conv])

    def _split(self, x: Tensor) -> tuple[Tensor, int]:
        config = self.config
        shape = tuple(x.shape)
        if x.dim() == 5 and not config.temporal:
            raise CoDiError(f"latent of shape {shape} is a video, but this denoiser has no temporal modules and takes 4 dimensions")
        if x.dim() not in (4, 5) or x.shape[1] != config.in_channels:
            clip = f" or (batch, {config.in_channels}, frames, height, width)" if config.temporal else ""
            raise CoDiError(f"latent of shape {shape}: this denoiser takes (batch, {config.in_channels}, height, width){clip}")
        multiple = 2 ** (len(config.channel_mult) - 1)  # the environment encoder takes any size
        if x.shape[-2] % multiple or x.shape[-1] % multiple:
            raise CoDiError(f"latent of {x.shape[-2]} x {x.shape[-1]}: height and width must be multiples of {multiple}")
        if x.dim() == 4:
            return x, 1
        return x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2), x.shape[2]  # (B*F, C, H, W), channels last

    def _join(self, h: Tensor, x: Tensor, frames: int) -> Tensor:
        return h if x.dim() == 4 else h.unflatten(0, (-1, frames)).transpose(1, 2)  # (B, C, F, H, W)

"""Fully connected UNet of text latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import TextUNetConfig
from ..errors import CoDiError
from .layers import Attention, ResBlock
from .unet import UNet


class TextUNet(UNet):
    """UNet over latent vectors (B, D), or (B, D, 1), whose state is (B, C, tokens, 1).

    Residual blocks and resamplings mix all tokens and channels; transformers see `tokens` tokens of width C.
    """

    config: TextUNetConfig

    def __init__(
        self, config: TextUNetConfig, *,
        operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None, attention: Attention | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, operations=operations, dtype=dtype, device=device, attention=attention)

    def _stem(self, channels: int) -> nn.Module:
        return self._operations.Linear(self.config.in_channels, channels * self.config.tokens, **self._extra)

    def _res(self, channels: int, out_channels: int) -> nn.Module:
        config, extra = self.config, dict(operations=self._operations, **self._extra)
        return ResBlock(channels, out_channels, 4 * config.model_channels, config.norm_groups, tokens=config.tokens, **extra)

    def _down(self, channels: int) -> nn.Module:
        width = channels * self.config.tokens
        return self._operations.Linear(width, width, **self._extra)

    def _up(self, channels: int) -> nn.Module:
        return self._down(channels)

    def _head(self, norm_channels: int, channels: int, out_channels: int) -> nn.ModuleList:
        norm = self._operations.GroupNorm(self.config.norm_groups, norm_channels, **self._extra)
        return nn.ModuleList([norm, nn.SiLU(), self._operations.Linear(channels * self.config.tokens, out_channels, **self._extra)])

    def _plain(self, layer: nn.Module, h: Tensor) -> Tensor:
        return layer(h.flatten(1)).unflatten(1, (-1, self.config.tokens))[..., None]  # (B, C, tokens, 1)

    def _plain_head(self, layer: nn.Module, h: Tensor) -> Tensor:
        return layer(h.flatten(1))[..., None]  # (B, D, 1)

    def _split(self, x: Tensor) -> tuple[Tensor, int]:
        if x.dim() not in (2, 3) or x.shape[1] != self.config.in_channels or x.shape[2:].numel() != 1:
            raise CoDiError(f"text latent of shape {tuple(x.shape)}: this denoiser takes (batch, {self.config.in_channels})")
        return x.flatten(1), 1

    def _join(self, h: Tensor, x: Tensor, frames: int) -> Tensor:
        return h.view(x.shape)

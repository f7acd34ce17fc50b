"""Convolutional KL autoencoder of latent diffusion (Rombach et al. 2022), of the diffusers library: for images and log-mel spectrograms."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ..config import AutoencoderConfig
from ..libraries import Borrowed, building

_NAMES = (
    (r"\bdown_blocks\.(\d+)\.resnets\b", r"down.\1.block"),
    (r"\bdown_blocks\.(\d+)\.attentions\b", r"down.\1.attn"),
    (r"\bdown_blocks\.(\d+)\.downsamplers\.0\b", r"down.\1.downsample"),
    (r"\bup_blocks\.(\d+)\.resnets\b", r"up.\1.block"),
    (r"\bup_blocks\.(\d+)\.attentions\b", r"up.\1.attn"),
    (r"\bup_blocks\.(\d+)\.upsamplers\.0\b", r"up.\1.upsample"),
    (r"\bmid_block\.resnets\.0\b", "mid.block_1"),
    (r"\bmid_block\.resnets\.1\b", "mid.block_2"),
    (r"\bmid_block\.attentions\.0\b", "mid.attn_1"),
    (r"\bconv_norm_out\b", "norm_out"),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\bgroup_norm\b", "norm"),
    (r"\bto_([qkv])\b", r"\1"),
    (r"\bto_out\.0\b", "proj_out"),
)
"""The library's names as patterns, and the published ones."""


def _network(config: AutoencoderConfig, widths: list[int], attends: tuple[bool, ...] = ()) -> Any:
    """The library's network with so many channels on each level, highest resolution first; no level attends by default."""
    attends = attends or (False,) * len(widths)
    return diffusers.AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        down_block_types=tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends),
        up_block_types=tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)),
        block_out_channels=tuple(widths),
        layers_per_block=config.num_blocks,
        latent_channels=config.inner_channels or config.latent_channels,
        norm_num_groups=config.norm_groups,
        scaling_factor=config.scale,
    )


class KLAutoencoder(Borrowed):
    """Encoder to a diagonal normal distribution over latents, and decoder. Latents here are unscaled ("latent space").

    Files have the published keys. `operations` are not used: the network is the library's."""

    matrices_are_convolutions = True

    def __init__(
        self,
        config: AutoencoderConfig,
        *,
        operations: Any = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        inner, channels = config.inner_channels or config.latent_channels, config.latent_channels
        width, first = config.model_channels, config.model_channels * config.channel_mult[0]
        with building(self, dtype, device):
            self.network = _network(config, [width * m for m in config.channel_mult], config.attention)
            if inner != channels:  # the library has as many channels before its maps to and from the latent as in the latent
                self.network.quant_conv = nn.Conv2d(2 * inner, 2 * channels, 1)
                self.network.post_quant_conv = nn.Conv2d(channels, inner, 1)
            if first != width:  # the library enters the first level in that level's width
                entry, encoder = _network(config, [width, first]).encoder, self.network.encoder
                encoder.conv_in, encoder.down_blocks[0].resnets[0] = entry.conv_in, entry.down_blocks[1].resnets[0]

    def published_key(self, key: str) -> str | None:
        key = key.removeprefix("network.")
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        # Levels count from the highest resolution there, from the first that runs here.
        return re.sub(r"(?<=decoder\.up\.)\d+", lambda level: str(len(self.config.channel_mult) - 1 - int(level[0])), key)

    @property
    def factor(self) -> int:
        """Input positions per latent position, on both axes."""
        return 2 ** (len(self.config.channel_mult) - 1)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.network.encode(x.to(self.dtype)).latent_dist
        return posterior.mean, posterior.logvar  # 2 x (B, C, h, w)

    def _decode(self, z: Tensor) -> Tensor:
        return self.network.decode(z.to(self.dtype)).sample


def sample_posterior(mean: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw from N(mean, exp(logvar)), shaped like mean. The generator may live on another device."""
    device = generator.device if generator is not None else mean.device
    noise = torch.randn(mean.shape, generator=generator, device=device, dtype=torch.float32)
    return mean + torch.exp(0.5 * logvar) * noise.to(mean)

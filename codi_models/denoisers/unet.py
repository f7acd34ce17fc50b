"""The UNet that all modalities share: prompt attention, connectors and environment encoder (paper sections 3.2 and 3.4).

Attribute names are those of the published checkpoint ("connecters" included), so that its keys are ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TextUNetConfig, UNetConfig
from ..errors import CoDiError
from .hooks import PLAIN, Hooks
from .layers import (
    Attention,
    Branch,
    Context,
    FoldedContext,
    ResBlock,
    SpatialTransformer,
    Weighted,
    group_norm,
    scaled_dot_product,
    timestep_embedding,
)
from .temporal import TemporalModule, log_distances


class UNet(nn.Module, ABC):
    """Latent diffusion UNet; `UNet2D` and `TextUNet` say what a feature map, a block and a resampling are.

    Layers come from `operations`. Layers of torch.nn are initialised for training: every residual branch starts at zero, so a
    fresh UNet predicts zero and its connectors change nothing. Other operations expect a state dict to be loaded.
    """

    def __init__(
        self, config: UNetConfig | TextUNetConfig, *,
        operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None, attention: Attention | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self._operations = operations
        self._extra: dict[str, Any] = dict(dtype=dtype, device=device)
        self._attention = attention or scaled_dot_product
        base = config.model_channels
        self.time_embed = nn.ModuleList([
            operations.Linear(base, 4 * base, **self._extra), nn.SiLU(), operations.Linear(4 * base, 4 * base, **self._extra)
        ])  # fmt: skip
        self.connecters_out = self._environment_encoder()
        self._build_path()
        self.out = self._head(base, base, config.in_channels)
        del self._operations, self._extra  # only for building: a network that holds a Python module cannot be copied
        if operations is nn:
            self._initialise()

    # What differs between feature maps of pictures and the flat state of text.

    @abstractmethod
    def _stem(self, channels: int) -> nn.Module:
        """The first layer, to `channels`."""

    @abstractmethod
    def _res(self, channels: int, out_channels: int) -> nn.Module:
        """A block of two convolutions that adds the timestep."""

    @abstractmethod
    def _down(self, channels: int) -> nn.Module:
        """Resampling to the next level."""

    @abstractmethod
    def _up(self, channels: int) -> nn.Module:
        """Resampling to the level before."""

    @abstractmethod
    def _head(self, norm_channels: int, channels: int, out_channels: int) -> nn.ModuleList:
        """Norm, activation and last layer."""

    def _plain(self, layer: nn.Module, h: Tensor) -> Tensor:
        """Run a stem, resampling or last layer."""
        return layer(h)

    @abstractmethod
    def _split(self, x: Tensor) -> tuple[Tensor, int]:
        """Check a latent -> (what the stem takes with frames folded into the batch, frames)."""

    def _environment_encoder(self) -> nn.ModuleList:
        config = self.config
        width = config.model_channels // 2
        blocks = [nn.ModuleList([self._stem(width)])]
        for level, (mult, count) in enumerate(zip(config.connector_mult, config.connector_blocks, strict=True)):
            if level:
                blocks.append(nn.ModuleList([self._down(width)]))
            for _ in range(count):
                blocks.append(nn.ModuleList([self._res(width, config.model_channels * mult)]))
                width = config.model_channels * mult
        blocks.append(self._head(width, width, config.connector_dim))
        return nn.ModuleList(blocks)

    def _transformer(self, channels: int, context_dim: int) -> SpatialTransformer:
        config = self.config
        extra = dict(attention=self._attention, operations=self._operations, **self._extra)
        return SpatialTransformer(channels, context_dim, config.num_heads, config.norm_groups, **extra)

    def _build_path(self) -> None:
        config = self.config
        base, last = config.model_channels, len(config.channel_mult) - 1
        width = base
        self.input_blocks = nn.ModuleList([nn.ModuleList([self._stem(base)])])
        self.input_block_connecters_in = nn.ModuleDict()
        self.output_blocks = nn.ModuleList()
        self.output_block_connecters_in = nn.ModuleDict()
        widths = [base]  # of the skips

        def connect(connectors: nn.ModuleDict, blocks: nn.ModuleList, level: int) -> None:
            if config.with_connector[level]:
                connectors[str(len(blocks) - 1)] = nn.ModuleList([self._transformer(width, config.connector_dim)])

        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_blocks[level]):
                block = nn.ModuleList([self._res(width, base * mult)])
                width = base * mult
                if config.with_attention[level]:
                    block.append(self._transformer(width, config.context_dim))
                self.input_blocks.append(block)
                widths.append(width)
                connect(self.input_block_connecters_in, self.input_blocks, level)
            if level < last:
                self.input_blocks.append(nn.ModuleList([self._down(width)]))
                widths.append(width)
        self.middle_block = nn.ModuleList([self._res(width, width), self._transformer(width, config.context_dim), self._res(width, width)])
        for level in range(last, -1, -1):
            for index in range(config.num_blocks[level] + 1):
                block = nn.ModuleList([self._res(width + widths.pop(), base * config.channel_mult[level])])
                width = base * config.channel_mult[level]
                if config.with_attention[level]:
                    block.append(self._transformer(width, config.context_dim))
                if level and index == config.num_blocks[level]:
                    block.append(self._up(width))
                self.output_blocks.append(block)
                connect(self.output_block_connecters_in, self.output_blocks, level)

    def _initialise(self) -> None:
        """Last layer of every residual branch and of the network to zero, temporal tables random; the rest keeps torch's defaults.

        The norm over frames takes away what is alike in all of them, so a position table must be of the size of what moves."""
        zeroed: list[nn.Module] = [self.out[-1]]
        for module in self.modules():
            if isinstance(module, ResBlock):
                zeroed.append(module.out_layers[-1])
            elif isinstance(module, SpatialTransformer):
                zeroed.append(module.proj_out)
            elif isinstance(module, TemporalModule):
                zeroed += [module.temporal_attn.to_out, module.frameshiftblock.out_layers[-1]]
                for table in (module.temporal_attn.pos_embeds, module.temporal_attn.frame_rate_embeds):
                    nn.init.normal_(table, std=0.3)
        for layer in zeroed:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def prompt_transformers(self) -> list[SpatialTransformer]:
        """The transformers that attend to the prompt, in the order in which they run."""
        blocks = [*self.input_blocks, self.middle_block, *self.output_blocks]
        return [layer for block in blocks for layer in block if isinstance(layer, SpatialTransformer)]  # type: ignore[union-attr]

    def fold_context(self, context: Context) -> Context:
        """Compute every prompt branch of a one-token context, (B, 1, context_dim) or (B, F, 1, context_dim), once for a whole run.

        Exact, because a softmax over one token is 1. Contexts of several tokens, and folded ones, come back as they are.
        Raises CoDiError for a context of another width.
        """
        if isinstance(context, FoldedContext):
            return context
        if context.dim() not in (3, 4) or context.shape[-1] != self.config.context_dim:
            raise CoDiError(
                f"prompt of shape {tuple(context.shape)}: this denoiser takes (batch, tokens, {self.config.context_dim}), embeddings of "
                "its own shared space; of a clip also (batch, frames, tokens, width), one for every frame"
            )
        if context.dim() == 4 and context.shape[1] == 1:
            context = context[:, 0]
        if context.shape[-2] != 1:
            return context
        return FoldedContext(tuple(transformer.fold(context) for transformer in self.prompt_transformers()))

    def _embed_time(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        first, _, second = self.time_embed
        embedding = timestep_embedding(timesteps, self.config.model_channels).to(dtype)
        return F.silu(second(F.silu(first(embedding))))  # (B, 4*model_channels), through the SiLU of every ResBlock

    def _run(
        self, block: nn.Module, h: Tensor, emb: Tensor, frames: int, distances: Tensor | None, contexts: Iterator[Tensor | Branch],
        hooks: Hooks = PLAIN,
    ) -> Tensor:  # fmt: skip
        """One entry of the input, middle or output blocks."""
        for layer in block.children():
            if isinstance(layer, SpatialTransformer):
                h = layer(h, next(contexts), hooks=hooks)
            elif isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, nn.ModuleList):
                h = layer[0](h, emb)
                if distances is not None:
                    h = layer[1](h, frames, distances)
            else:
                h = self._plain(layer, h)
        return h

    def _run_head(self, head: nn.Module, h: Tensor) -> Tensor:
        norm, _, last = head.children()
        return self._plain_head(last, F.silu(group_norm(norm, h)))

    def _plain_head(self, layer: nn.Module, h: Tensor) -> Tensor:
        return layer(h)

    def environment_embedding(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The environment encoder V: a noisy latent in diffusion space, timesteps (B,) -> L2-normalised (B, 1, connector_dim)."""
        h, frames = self._split(x)
        emb = self._embed_time(timesteps, x.dtype)
        distances = log_distances(frames, h) if x.dim() == 5 else None
        for block in self.connecters_out[:-1]:
            h = self._run(block, h, emb, frames, distances, iter(()))
        h = self._run_head(self.connecters_out[-1], h).flatten(2).mean(dim=2)  # (B*F, connector_dim)
        h = h.unflatten(0, (-1, frames)).mean(dim=1, keepdim=True)  # (B, 1, connector_dim)
        return F.normalize(h, dim=-1)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Context, *,
        environment: Tensor | Weighted | None = None, strength: float | Tensor = 1.0, hooks: Hooks = PLAIN,
    ) -> Tensor:  # fmt: skip
        """Predict the noise in `x`, or v, as the network was trained to.

        x: latent in diffusion space; pictures (B, C, H, W), clips (B, C, F, H, W), text (B, D) or (B, D, 1).
        timesteps: (B,), 0..999, integer or fractional. context: prompt (B, n, context_dim), for clips also one a frame
        (B, F, n, context_dim), or folded by `fold_context`.
        environment: environment embeddings of other outputs (B, m, connector_dim); None leaves the connectors out.
        strength: of the connectors, a number or (B,); 0 leaves them out, 1 is the paper. hooks: what is changed on the way.
        Returns a prediction shaped like `x`. Raises CoDiError for sizes that the network cannot take.
        """
        h, frames = self._split(x)
        emb = self._embed_time(timesteps, x.dtype)
        distances = log_distances(frames, h) if x.dim() == 5 else None
        context = context if hooks.unfolded else self.fold_context(context)
        if (own := _frames_of(context)) not in (1, frames):
            raise CoDiError(f"prompts for {own} frames do not go with a latent of {frames}: give one prompt, or one for every frame")
        contexts = iter(context.branches) if isinstance(context, FoldedContext) else repeat(context)
        connect = environment is not None and (isinstance(strength, Tensor) or strength != 0)

        def connector(connectors: nn.ModuleDict, index: int, h: Tensor) -> Tensor:
            if connect and (name := str(index)) in connectors:
                return connectors[name][0](h, environment, strength)  # type: ignore[index]
            return h

        hooks.start(h)
        skips: list[Tensor] = []
        for index, block in enumerate(self.input_blocks):
            hooks.enter("input", index)
            h = self._run(block, h, emb, frames, distances, contexts, hooks)
            h, skip = hooks.after_input(connector(self.input_block_connecters_in, index, h))
            skips.append(skip)
        hooks.enter("middle", 0)
        h = hooks.after_middle(self._run(self.middle_block, h, emb, frames, distances, contexts, hooks))
        skips[-1] = h  # the published network feeds the middle block's result twice; the last input block is no skip
        for index, block in enumerate(self.output_blocks):
            hooks.enter("output", index)
            h = torch.cat(hooks.before_output(h, skips.pop()), dim=1)
            h = self._run(block, h, emb, frames, distances, contexts, hooks)
            h = connector(self.output_block_connecters_in, index, h)
        return self._join(self._run_head(self.out, h), x, frames)

    @abstractmethod
    def _join(self, h: Tensor, x: Tensor, frames: int) -> Tensor:
        """The head's result in the shape of the latent `x`."""


def _frames_of(context: Context) -> int:
    """Frames that a context tells apart; 1 where all share it."""
    if isinstance(context, FoldedContext):
        return context.branches[0].value.shape[1]
    return context.shape[1] if context.dim() == 4 else 1

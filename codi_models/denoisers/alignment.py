"""What latent alignment trains, and where it may start (paper section 3.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import CoDiError
from .layers import SpatialTransformer
from .unet import UNet

ENVIRONMENT_PREFIXES = ("connecters_out.",)
CONNECTOR_PREFIXES = ("input_block_connecters_in.", "output_block_connecters_in.")
ALIGNMENT_PREFIXES = (*ENVIRONMENT_PREFIXES, *CONNECTOR_PREFIXES)
"""State-dict prefixes of the environment encoder, of the connectors, and of both."""


def environment_parameters(net: UNet) -> list[nn.Parameter]:
    """Parameters of the environment encoder."""
    return _parameters(net, ENVIRONMENT_PREFIXES)


def connector_parameters(net: UNet) -> list[nn.Parameter]:
    """Parameters of the connectors."""
    return _parameters(net, CONNECTOR_PREFIXES)


def alignment_parameters(net: UNet) -> list[nn.Parameter]:
    """Parameters of the environment encoder and the connectors: all that latent alignment trains."""
    return _parameters(net, ALIGNMENT_PREFIXES)


def _parameters(net: UNet, prefixes: tuple[str, ...]) -> list[nn.Parameter]:
    return [parameter for name, parameter in net.named_parameters() if name.startswith(prefixes)]


@torch.no_grad()
def copy_prompt_attention_into_connectors(net: UNet) -> None:
    """Let every connector start as a copy of the prompt cross-attention of the block that it follows.

    A copied connector adds `proj_out(to_out(to_v(environment)))` without biases: what the prompt branch of the block's own spatial
    transformer would add for that embedding as its prompt, where nothing depends on the feature map yet. A connector whose block
    has no spatial transformer starts as the identity. It needs environment embeddings in the prompt space: raises CoDiError
    unless connector_dim equals context_dim.
    """
    config = net.config
    if config.connector_dim != config.context_dim:
        raise CoDiError(
            f"connectors take embeddings of width {config.connector_dim} and prompts have {config.context_dim}: "
            "prompt attention can only be copied where both are equal"
        )
    for connectors, blocks in (
        (net.input_block_connecters_in, net.input_blocks),
        (net.output_block_connecters_in, net.output_blocks),
    ):
        for index, holder in connectors.items():
            (connector,) = holder.children()
            assert isinstance(connector, SpatialTransformer)
            prompt = next((layer for layer in blocks[int(index)].children() if isinstance(layer, SpatialTransformer)), None)
            _start_as(connector, prompt)


def _start_as(connector: SpatialTransformer, prompt: SpatialTransformer | None) -> None:
    zeroed: list[nn.Module] = [connector.proj_out]
    if prompt is not None:
        block: Any = connector.transformer_blocks[0]
        source: Any = prompt.transformer_blocks[0]
        block.attn2.to_v.weight.copy_(source.attn2.to_v.weight)
        block.attn2.to_out[0].weight.copy_(source.attn2.to_out[0].weight)
        connector.proj_out.weight.copy_(prompt.proj_out.weight)
        block.attn2.to_out[0].bias.zero_()
        connector.proj_out.bias.zero_()
        zeroed = [connector.proj_in, block.attn1.to_out[0], block.ff.net[2]]
    for layer in zeroed:
        for parameter in layer.parameters():
            parameter.zero_()

"""Synthetic weights that anyone can regenerate from a seed string, and the official network's configuration in our terms.

The published network was evaluated with such weights; our networks, filled the same way, must give the same numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from .config import TextUNetConfig, UNetConfig
from .errors import CoDiError


def parity_weight(seed: str, key: str, shape: Iterable[int]) -> np.ndarray:
    """Weight of state-dict key `key`: normal numbers seeded by seed and key, scaled by what the key names; float32."""
    shape = tuple(int(n) for n in shape)
    stream = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()) & 0xFFFFFFFF)
    w: np.ndarray = np.asarray(stream.standard_normal(shape)).astype(np.float32)
    if key.endswith("running_var"):
        w = 1.0 + 0.1 * np.abs(w)
    elif key.endswith("running_mean"):
        w = 0.1 * w
    elif key.endswith((".g", "gamma")) or (len(shape) == 1 and key.endswith("weight")):
        w = 1.0 + 0.1 * w
    elif len(shape) >= 2:
        w = w / math.sqrt(math.prod(shape[1:]))  # Python scalars keep float32 arithmetic
    else:
        w = 0.1 * w
    return np.asarray(w, dtype=np.float32).reshape(shape)


@torch.no_grad()
def fill(module: nn.Module, seed: str, prefix: str = "", untouched: Iterable[str] = ()) -> nn.Module:
    """Fill every floating-point state-dict entry with its recipe weight, drawn under `prefix + key`; returns the module.

    Keys in `untouched` (with the prefix) and integer buffers keep what they hold.
    """
    skip = set(untouched)
    for key, value in module.state_dict().items():
        if value.is_floating_point() and prefix + key not in skip:
            value.copy_(torch.from_numpy(parity_weight(seed, prefix + key, value.shape)))
    return module


def unet_config(official: Mapping[str, Any], *, norm_groups: int = 32) -> UNetConfig:
    """The arguments of the official 2-D UNet, in the names of its configuration files, as a UNetConfig."""
    return UNetConfig(
        **_common(official, norm_groups),
        temporal=bool(official.get("use_video_architecture", False)),
    )


def text_unet_config(official: Mapping[str, Any], *, norm_groups: int = 32) -> TextUNetConfig:
    """The arguments of the official text UNet as a TextUNetConfig. Raises CoDiError where tokens differ between levels."""
    tokens = {int(n) for name in ("second_dim", "second_dim_connector") for n in official.get(name) or ()} or {4}
    if len(tokens) > 1:
        raise CoDiError(f"second_dim {sorted(tokens)}: every level must have the same number of tokens")
    return TextUNetConfig(**_common(official, norm_groups), tokens=tokens.pop())


def _common(official: Mapping[str, Any], norm_groups: int) -> dict[str, Any]:
    if official.get("output_channels", official["input_channels"]) != official["input_channels"]:
        raise CoDiError(f"output_channels {official['output_channels']} must equal input_channels {official['input_channels']}")
    names = dict(
        input_channels="in_channels", model_channels="model_channels", context_dim="context_dim", channel_mult="channel_mult",
        num_noattn_blocks="num_blocks", with_attn="with_attention", with_connector="with_connector",
        channel_mult_connector="connector_mult", num_noattn_blocks_connector="connector_blocks",
        connector_output_channel="connector_dim", num_heads="num_heads",
    )  # fmt: skip
    values = {ours: official[theirs] for theirs, ours in names.items() if official.get(theirs) is not None}
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()} | {"norm_groups": norm_groups}

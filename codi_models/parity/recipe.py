"""Synthetic weights that anyone can regenerate from a seed string.

The published network was evaluated with such weights; our networks, filled the same way, must give the same numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from ..libraries import stored_state, taken_apart


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
    """Fill every floating-point weight with its recipe weight, drawn under `prefix + key`, key and shape being those in files; returns
    the module.

    Keys in `untouched` (with the prefix) and integer buffers keep what they hold.
    """
    skip, state = set(untouched), module.state_dict()
    drawn = {
        key: torch.from_numpy(parity_weight(seed, prefix + key, value.shape))
        for key, value in stored_state(module).items()
        if value.is_floating_point() and prefix + key not in skip
    }
    for key, weight in taken_apart(module, drawn).items():
        state[key].copy_(weight)
    return module

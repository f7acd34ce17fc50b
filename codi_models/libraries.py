"""Networks that other libraries keep, inside CoDi's components: where they are built, and what their weights are called in files.

Files have the names of the published checkpoint, whichever library and version computes with the weights. A library may name an entry
otherwise, hold one matrix in several parts, or hold a 1x1 convolution as a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def building(module: nn.Module, dtype: torch.dtype | None, device: Any) -> Iterator[None]:
    """Context in which a component makes its networks, which are then cast and moved; None leaves type and device to torch.

    Libraries build on the CPU: not all of them can do without data. Weights on the meta device are never drawn."""
    from .checkpoints import without_random_init

    target = torch.get_default_device() if device is None else torch.device(device)
    with torch.device("cpu"), without_random_init() if target.type == "meta" else nullcontext():
        yield
    module.to(device=target, dtype=dtype)


class Borrowed(nn.Module):
    """A component around a library's network, which is plain torch and is moved and cast as a whole.

    `published_key` says what an entry of the state dict is called in files."""

    matrices_are_convolutions = False
    """Whether files have the library's matrices as 1x1 convolutions."""

    def published_key(self, key: str) -> str | None:
        """Key in files of an entry of this state dict; None for one that follows from the configuration.

        Entries of one key are stacked along its first axis, in the order of the state dict."""
        return key

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.parameters()).dtype


def stored_keys(module: nn.Module) -> dict[str, list[str]]:
    """Key in files -> the entries of the module's state dict that it holds."""
    groups: dict[str, list[str]] = {}
    for key in module.state_dict():
        stored = module.published_key(key) if isinstance(module, Borrowed) else key
        if stored is not None:
            groups.setdefault(stored, []).append(key)
    return groups


def stored_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's weights as files hold them. A borrowed module's entries of more than one part are copies."""
    state, convolves = module.state_dict(), isinstance(module, Borrowed) and module.matrices_are_convolutions
    stored = {}
    for key, parts in stored_keys(module).items():
        value = state[parts[0]] if len(parts) == 1 else torch.cat([state[part] for part in parts])
        stored[key] = value[..., None, None] if convolves and value.ndim == 2 else value
    return stored


def taken_apart(module: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `stored_state`: weights as files hold them -> the module's state dict, views where they can be.

    What follows from the configuration is the module's own."""
    state, names = module.state_dict(), stored_keys(module)
    computed = set(state).difference(*names.values())
    entries = {key: state[key] for key in state if key in computed}
    for key, value in stored.items():
        parts = names.get(key, [key])
        for part, piece in zip(parts, value.chunk(len(parts)) if len(parts) > 1 else [value], strict=True):
            entries[part] = piece.reshape(state[part].shape) if part in state else piece
    return entries

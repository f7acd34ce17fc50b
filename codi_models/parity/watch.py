"""Results of modules by their published paths, and our layouts as the published ones."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..denoisers.convolution import before_delay
from ..libraries import Borrowed, stored_keys

SAMPLED = re.compile(r"_(every|first|last)_?(\d+)(?=_|$)")
"""Names of tensors that hold part of a result: every n-th index, the first n, the last n."""


class Watch:
    """Context in which the results of modules are kept. `paths`: name -> path below `root`, which may say what part is recorded.

    A list of modules that is never called itself has the result of its last child that ran, as if it were called."""

    def __init__(self, root: nn.Module, paths: Mapping[str, str] | Iterable[str]) -> None:
        self.root = root
        self.paths = dict(paths) if isinstance(paths, Mapping) else {path: path for path in paths}
        self._results: dict[str, dict[tuple[int, ...], Tensor]] = {name: {} for name in self.paths}
        self._hooks: list[Any] = []

    def __enter__(self) -> Watch:
        for name, path in self.paths.items():
            try:
                module = self.root.get_submodule(library_path(self.root, SAMPLED.sub("", path)))
            except AttributeError:
                continue
            self._listen(name, module)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def _listen(self, name: str, module: nn.Module) -> None:
        if type(module) in (nn.ModuleList, nn.ModuleDict):
            for child in module.children():
                self._listen(name, child)
            return

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            output = before_delay(module, inputs[0], output) if inputs else output
            results = self._results[name]
            results.pop(tuple(output.shape), None)  # so that the latest stands last
            results[tuple(output.shape)] = output.detach().clone()  # libraries may add to it in place

        self._hooks.append(module.register_forward_hook(keep))

    def result(self, name: str, shape: Sequence[int] | None = None) -> Tensor | None:
        """The latest result that can be laid out as `shape`, else the latest of all; None where nothing ran."""
        results = list(self._results[name].values())
        fitting = [] if shape is None else [value for value in results if fit(value, shape, name) is not None]
        return fitting[-1] if fitting else results[-1] if results else None


def library_path(root: nn.Module, path: str) -> str:
    """Path below `root` of the module that the published network has at `path`: the one that holds the same weights, else the last
    one that holds some of them."""
    if not isinstance(root, Borrowed):
        return path
    pairs = [(own, stored) for stored, parts in stored_keys(root).items() for own in parts]
    below = [(own, stored) for own, stored in pairs if stored.startswith(f"{path}.")]
    if not below:
        return path
    keys = {own for own, _ in below}
    first, stored = below[0]
    as_deep = first.rsplit(".", stored.count(".") - path.count("."))[0]
    common = ".".join(os.path.commonprefix([own.split(".") for own in keys]))
    for candidate in (as_deep, common):
        if {own for own, _ in pairs if own.startswith(f"{candidate}.")} == keys:
            return candidate
    return below[-1][0].rpartition(".")[0]


def fit(value: Tensor, shape: Sequence[int], name: str = "") -> Tensor | None:
    """`value` laid out as `shape`; None where it cannot be.

    Frames folded into the batch are unfolded, (B*F, C, H, W) -> (B, C, F, H, W); maps with channels last are flattened to tokens,
    a branch of one token is spread over all, axes are split or merged in order, and parts are taken as `name` says."""
    shape = tuple(shape)
    for candidate in _layouts(value, shape):
        part = _part(candidate, shape, name)
        if part is not None:
            return part
    return value.reshape(shape) if value.numel() == torch.Size(shape).numel() else None


def _layouts(value: Tensor, shape: tuple[int, ...]) -> Iterable[Tensor]:
    yield value
    if value.ndim == 4 and len(shape) == 5 and shape[0] and value.shape[0] % shape[0] == 0:
        yield value.unflatten(0, (shape[0], -1)).transpose(1, 2)  # (B, C, F, H, W)
    if value.ndim == 5 == len(shape) and value.shape[2] == 1 and shape[0] and value.shape[0] % shape[0] == 0:
        yield value[:, :, 0].unflatten(0, (shape[0], -1)).transpose(1, 2)
    if value.ndim == 4 and len(shape) == 3:
        yield value.flatten(1, 2)  # (B, H*W, C)
    if value.ndim == 3 and len(shape) == 4:
        yield value[:, None]
    if value.ndim == 2 and len(shape) == 3:
        yield value[:, None]
    if value.ndim == 3 == len(shape) and value.shape[1] == 1:
        yield value.expand(-1, shape[1], -1)


def _part(value: Tensor, shape: tuple[int, ...], name: str) -> Tensor | None:
    """`value` where it has the shape, else the part of it that the name speaks of, else None."""
    if tuple(value.shape) == shape:
        return value
    if value.ndim != len(shape):
        return None
    for kind, number in SAMPLED.findall(name):
        n = int(number)
        for axis, size in enumerate(shape):
            have = value.shape[axis]
            if have == size:
                continue
            if kind == "every" and -(-have // n) == size:
                value = value[(slice(None),) * axis + (slice(None, None, n),)]
            elif kind != "every" and size == n < have:
                value = value.narrow(axis, 0 if kind == "first" else have - n, n)
    return value if tuple(value.shape) == shape else None

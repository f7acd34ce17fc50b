"""Fixtures on disk: `<name>.json` says what was run, `<name>.safetensors` beside it holds inputs, intermediates and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import read_weights
from ..errors import CoDiError
from ..files import read_json

INPUT = "in/"
"""Prefix of the tensors that a run starts from; it is held against all others: `out/`, `mid/` and labelled variants."""


@dataclass(frozen=True)
class Fixture:
    """One fixture in memory."""

    name: str
    info: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, tensor: str) -> Tensor:
        if tensor not in self.tensors:
            raise CoDiError(f"{self.name}.safetensors has no tensor {tensor}, which this run needs")
        return self.tensors[tensor]

    def setting(self, name: str) -> Any:
        """A field of the json that the run cannot do without."""
        if name not in self.info:
            raise CoDiError(f"{self.name}.json has no field {name!r}, which this run needs")
        return self.info[name]

    @property
    def seed(self) -> str:
        """Seed of the weight recipe."""
        return str(self.setting("seed"))

    def labels(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Tensors whose names start with `prefix`, by the rest of their names."""
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                yield name.removeprefix(prefix), tensor


def fixture_names(folder: Path) -> list[str]:
    """Names of the fixtures in a folder. Raises CoDiError where it is no folder or has none."""
    if not folder.is_dir():
        raise CoDiError(f"{folder} is not a folder: give one with parity fixtures, <name>.json and <name>.safetensors")
    names = sorted({path.stem for path in folder.iterdir() if path.suffix in (".json", ".safetensors") and path.is_file()})
    if not names:
        raise CoDiError(f"{folder} holds no parity fixtures: they are files <name>.json, most with a <name>.safetensors beside them")
    return names


def read_fixture(folder: Path, name: str) -> Fixture:
    """Read both files. Raises CoDiError naming the file that is missing or damaged."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise CoDiError(f"{name}.safetensors has no {path.name} beside it that says what it is")
    try:
        info = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise CoDiError(f"{path.name} is not whole JSON: {error}") from error
    if not isinstance(info, dict):
        raise CoDiError(f"{path.name} holds a {type(info).__name__} instead of an object")
    weights = folder / f"{name}.safetensors"
    if not weights.is_file():
        if isinstance(info.get("tensors"), dict) and info["tensors"]:
            raise CoDiError(f"{weights.name} is missing; {path.name} lists {len(info['tensors'])} tensors of it")
        return Fixture(name, info)
    return Fixture(
        name, info, {key: _input(tensor) if key.startswith(INPUT) else tensor for key, tensor in read_weights(weights)[0].items()}
    )


def _input(tensor: Tensor) -> Tensor:
    """An input as networks take it: float32 whatever it is stored in, and 64-bit ids."""
    if tensor.is_floating_point():
        return tensor.float()
    return tensor if tensor.dtype == torch.uint8 else tensor.long()

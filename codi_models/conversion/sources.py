"""Checkpoint files opened without running code: tensors stay on disk, memory-mapped, until they are asked for."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CoDiError, out_of_memory
from .pickles import foreign_object

AGAIN = "Download it again (`python -m codi_models download codi`), or give another file"
_UNFINISHED = f"{AGAIN}; if a download of it is still running, wait for its end"
_WRAPPED_IN = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights")
_LFS = b"version https://git-lfs"
_DEEPEST = 20  # mappings inside each other; checkpoints have three at most


@dataclass(eq=False)
class Source:
    """One opened file. `shapes` and `dtypes` by the file's own keys; `read` gives a tensor, memory-mapped where the format allows."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    read: Callable[[str], Tensor]
    notes: list[str] = field(default_factory=list)
    sha256: str = ""
    stamp: tuple[int, int] = (0, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def check_unchanged(self) -> None:
        """Raises CoDiError where the file is not the one that was opened any more: its mapped tensors would be a mixture."""
        if not self.path.is_file() or _stamp(self.path) != self.stamp:
            raise CoDiError(f"{self.path} changed while it was read: wait until nothing writes it, then run the command again")


def open_source(path: str | Path) -> Source:
    """Open a .pth (zip or older format) or .safetensors file.

    Raises CoDiError naming the file where it is missing, truncated, no checkpoint, or holds anything but tensors and containers."""
    path = Path(path)
    try:
        if not path.is_file():
            raise CoDiError(f"{path} is {'a folder' if path.is_dir() else 'missing'}: give the .pth files of the published checkpoint")
        stamp = _stamp(path)
        with path.open("rb") as file:
            head = file.read(64)
        zipped = zipfile.is_zipfile(path)
    except OSError as error:
        raise CoDiError(f"cannot read {path}: {error.strerror or error}. Give a file that can be read") from error
    source = _opened(path, head, stamp[0], zipped=zipped)
    source.stamp = stamp
    return source


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _opened(path: Path, head: bytes, size: int, *, zipped: bool) -> Source:
    if head.startswith(_LFS):
        raise CoDiError(f"{path} is a Git LFS pointer of {size} bytes, not the weights. Fetch the file itself. {AGAIN}")
    if head[8:9] == b"{":
        return _open_safetensors(path)
    if head.startswith(b"PK") and not zipped:
        raise CoDiError(f"{path} is truncated: after {size} bytes its list of contents is missing. {_UNFINISHED}")
    if not zipped and not head.startswith(b"\x80"):
        raise CoDiError(f"{path} is no PyTorch checkpoint: it {f'begins with {head[:12]!r}' if head else 'is empty'}. {_UNFINISHED}")
    return _open_pickle(path, mapped=zipped)


def _open_safetensors(path: Path) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(str(path), framework="pt", device="cpu")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        dtypes = {key: file.get_tensor(key).dtype for key in shapes}
    except (SafetensorError, OSError, KeyError, AttributeError) as error:  # the latter two for types that torch does not have
        raise CoDiError(f"{path} is not a whole safetensors file: it is truncated or damaged ({error}). {_UNFINISHED}") from error
    if not shapes:
        raise CoDiError(f"{path} holds no tensors. {AGAIN}")
    return Source(path, shapes, dtypes, file.get_tensor)


def _open_pickle(path: Path, *, mapped: bool) -> Source:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a refused file more is said below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CoDiError(_refused(path, str(error))) from error
    except Exception as error:  # damaged pickles fail in any way
        if out_of_memory(error):
            raise
        if "TorchScript" in str(error):
            raise CoDiError(f"{path} is a TorchScript archive, expected a state dict that maps names to tensors. {AGAIN}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CoDiError(f"{path} cannot be read as a checkpoint: it is truncated or damaged ({reason}). {_UNFINISHED}") from error
    inner, beside = _unwrapped(content, path)
    tensors: dict[str, Tensor] = {}
    for key, tensor in _flat(inner, path):
        if key in tensors:
            raise CoDiError(f"{path} holds {key} twice, nested in different ways: give a file that has each weight once")
        tensors[key] = tensor
    if not tensors:
        raise CoDiError(f"{path} holds no named tensors: a checkpoint maps names to tensors. {AGAIN}")
    for key, tensor in tensors.items():
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CoDiError(f"{path}: {key} is a sparse, nested or quantised tensor, or one without data, expected plain numbers. {AGAIN}")
    notes = [f"{path}: weights are read from {beside[0]!r}; left out beside it: {', '.join(beside[1:])}"] if len(beside) > 1 else []
    if not mapped:
        notes.append(f"{path} is in the format of PyTorch before 1.6, which cannot be memory-mapped: it was read into memory whole")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return Source(path, shapes, {key: tensor.dtype for key, tensor in tensors.items()}, tensors.__getitem__, notes)


def _unwrapped(content: Any, path: Path) -> tuple[Mapping[Any, Any], list[str]]:
    """The state dict inside what training programs put around it; its name there, and the names of further tensors beside it."""
    beside: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            raise CoDiError(f"{path} holds a {type(content).__name__}, expected a state dict that maps names to tensors. {AGAIN}")
        name = next((n for n in _WRAPPED_IN if isinstance(content.get(n), Mapping) and content[n]), None)
        if name is None:
            return content, beside
        others = [str(key) for key, value in content.items() if key != name and _holds_tensors(value)]
        beside, content = [name, *others], content[name]
    raise CoDiError(_too_deep(path))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _flat(content: Mapping[Any, Any], path: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested mappings by dotted key; numbers and texts beside them are nothing to convert."""
    if depth > _DEEPEST:
        raise CoDiError(_too_deep(path))
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping):
            yield from _flat(value, path, f"{prefix}{key}.", depth + 1)


def _too_deep(path: Path) -> str:
    return f"{path} has more than {_DEEPEST} mappings inside each other, expected a state dict that maps names to tensors. {AGAIN}"


def _refused(path: Path, message: str) -> str:
    """What to say of a pickle that weights-only loading does not accept."""
    named = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"class '?([\w.]+)", message)
    found = foreign_object(path, named[1] if named else None)
    if named is None and found is None:
        return (
            f"{path} cannot be read as a checkpoint: it is truncated, damaged, not from PyTorch, or not of torch.save's usual pickle "
            f"protocol 2. {_UNFINISHED}"
        )
    kind, key = found or (named[1] if named else "", "")
    return (
        f"{path} holds an object of type {kind}{f' (at {key!r})' if key else ''}, expected only tensors, containers, numbers and texts. "
        f"Loading it could run any code that its maker wrote, so it is refused. {AGAIN}, or have its maker save the state_dict alone"
    )

"""Checkpoint files opened without running code: tensors stay on disk, memory-mapped, until they are asked for."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CoDiError

AGAIN = "Download it again (`python -m codi_models download codi`), or give another file"
_WRAPPED_IN = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights")
_LFS = b"version https://git-lfs"


@dataclass
class Source:
    """One opened file. `shapes` and `dtypes` by the file's own keys; `read` gives a tensor, memory-mapped where the format allows."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    read: Callable[[str], Tensor]
    notes: list[str] = field(default_factory=list)
    sha256: str = ""

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)


def open_source(path: str | Path) -> Source:
    """Open a .pth (zip or older format) or .safetensors file.

    Raises CoDiError naming the file where it is missing, truncated, no checkpoint, or holds anything but tensors and containers."""
    path = Path(path)
    if not path.is_file():
        raise CoDiError(f"{path} is {'a folder' if path.is_dir() else 'missing'}: give the .pth files of the published checkpoint")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(_LFS):
        raise CoDiError(f"{path} is a Git LFS pointer of {path.stat().st_size} bytes, not the weights. Fetch the file itself. {AGAIN}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _open_safetensors(path)
    whole = zipfile.is_zipfile(path)
    if head.startswith(b"PK") and not whole:
        raise CoDiError(f"{path} is truncated: after {path.stat().st_size} bytes its list of contents is missing. {AGAIN}")
    if not whole and not head.startswith(b"\x80"):
        raise CoDiError(f"{path} is no PyTorch checkpoint: it begins with {head[:12]!r}. {AGAIN}")
    return _open_pickle(path, mapped=whole)


def _open_safetensors(path: Path) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CoDiError(f"{path} is not a whole safetensors file ({error}). {AGAIN}") from error
    shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    return Source(path, shapes, {key: file.get_tensor(key).dtype for key in shapes}, file.get_tensor)


def _open_pickle(path: Path, *, mapped: bool) -> Source:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CoDiError(_refused(path, str(error))) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CoDiError(f"{path} cannot be read as a checkpoint: it is truncated or damaged ({reason}). {AGAIN}") from error
    tensors = dict(_flat(_unwrapped(content, path)))
    if not tensors:
        raise CoDiError(f"{path} holds no named tensors: a checkpoint maps names to tensors. {AGAIN}")
    if odd := [key for key, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]:
        raise CoDiError(f"{path}: {odd[0]} is a sparse or quantised tensor, expected plain numbers. {AGAIN}")
    notes = (
        [] if mapped else [f"{path} is in the format of PyTorch before 1.6, which cannot be memory-mapped: it was read into memory whole"]
    )
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return Source(path, shapes, {key: tensor.dtype for key, tensor in tensors.items()}, tensors.__getitem__, notes)


def _unwrapped(content: Any, path: Path) -> Mapping[str, Any]:
    """The state dict inside what training programs put around it."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPED_IN if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return content
        content = inner
    raise CoDiError(f"{path} holds a {type(content).__name__}, expected a state dict that maps names to tensors. {AGAIN}")


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested mappings by dotted key; numbers and texts beside them are nothing to convert."""
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def _refused(path: Path, message: str) -> str:
    """What to say of a pickle that weights-only loading does not accept."""
    found = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"class ([\w.]+)", message)
    if found is None:
        return f"{path} cannot be read as a checkpoint: it is truncated, damaged or not from PyTorch. {AGAIN}"
    return (
        f"{path} holds an object of type {found[1]}, expected only tensors, containers, numbers and texts. Loading it could run any code "
        f"that its maker wrote, so it is refused. {AGAIN}, or have its maker save the state_dict alone"
    )

"""PyTorch checkpoints that weights-only loading does not read: pickle protocols other than 2 and 3, and files from before PyTorch 1.6.

Of a pickle nothing is run but the few functions below, which put tensors together from numbers and views of the mapped file."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .pickles import is_zip

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64, "UntypedStorage": torch.uint8,
}  # fmt: skip
_ODD = ("_rebuild_sparse_tensor", "_rebuild_nested_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage")
_MAGIC = 0x1950A86A20F9469CFC6C

Read = Callable[[str, torch.dtype, int], Tensor]
"""Key, type and number of elements of a storage -> all its elements."""


def load(path: Path) -> Any:
    """The containers and tensors of a checkpoint, tensors as views of the mapped file.

    Raises pickle.UnpicklingError that names the first object of another kind as `GLOBAL module.name`, and whatever damage leads to."""
    if is_zip(path):
        return _load_zip(path)
    with path.open("rb") as file:
        return _load_old(file, path)


def _load_zip(path: Path) -> Any:
    mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        folder = name.removesuffix("data.pkl")

        def read(key: str, dtype: torch.dtype, count: int) -> Tensor:
            record = archive.getinfo(f"{folder}data/{key}")
            raw.seek(record.header_offset + 26)  # lengths of name and of what follows it, at the end of a local header of 30 bytes
            lengths = raw.read(4)
            start = record.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            return _elements(mapped, start, dtype, count)

        return _Tensors(io.BytesIO(archive.read(name)), read).load()


def _load_old(file: IO[bytes], path: Path) -> Any:
    """Pickles of a magic number, a version, the machine, the content, the storages' keys; then each storage: its length, its elements."""
    if _Tensors(file).load() != _MAGIC:
        raise pickle.UnpicklingError("it does not begin as PyTorch's files do")
    _Tensors(file).load()
    if not _Tensors(file).load().get("little_endian", True):
        raise pickle.UnpicklingError("its numbers are of a big-endian machine")
    start, kinds = file.tell(), dict[str, tuple[torch.dtype, int]]()

    def note(key: str, dtype: torch.dtype, count: int) -> Tensor:
        kinds[key] = (dtype, count)
        return torch.empty(count, dtype=dtype, device="meta")

    _Tensors(file, note).load()
    keys = _Tensors(file).load()
    place, places = file.tell(), {}
    for key in keys:
        places[key] = place + 8
        place += 8 + kinds[key][1] * kinds[key][0].itemsize
    mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    file.seek(start)
    return _Tensors(file, lambda key, dtype, count: _elements(mapped, places[key], dtype, count)).load()


def _elements(mapped: Any, start: int, dtype: torch.dtype, count: int) -> Tensor:
    end = start + count * dtype.itemsize
    if end > mapped.nbytes():
        raise EOFError(f"it ends before byte {end}")
    if start % dtype.itemsize:  # old files have no gaps to align what follows
        return torch.empty(0, dtype=torch.uint8).set_(mapped[start:end]).clone().view(dtype)  # type: ignore[call-overload]
    return torch.empty(0, dtype=dtype).set_(mapped[start:end])  # type: ignore[call-overload]


class _Tensors(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """The unpickler in Python, whose memory follows the file's length, with a handful of names."""

    def __init__(self, file: IO[bytes], read: Read | None = None) -> None:
        super().__init__(file, encoding="latin-1")
        self._read = read
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """One of the few names that checkpoints need. Raises UnpicklingError for every other."""
        top = module.partition(".")[0]
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if top == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _strided
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _parameter
        if module == "torch._utils" and name in _ODD:
            return _odd
        if module == "torch" and name == "Size":
            return tuple
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """All elements of a storage."""
        if self._read is None or not isinstance(pid, tuple):  # protocol 0 keeps a text, which PyTorch cannot read back either
            raise pickle.UnpicklingError("a storage that is not described as PyTorch does")
        _, dtype, key, _, count, *_ = pid
        if key not in self._storages:
            self._storages[key] = self._read(str(key), dtype, int(count))
        return self._storages[key]


def _strided(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), storage.storage_offset() + offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _odd(*_: Any) -> Tensor:
    return torch.empty(0, device="meta")

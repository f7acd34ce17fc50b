"""Checkpoint files opened without running code: tensors stay on disk, memory-mapped, until they are asked for."""

from __future__ import annotations

import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CoDiError, out_of_memory
from ..files import read_json
from . import legacy
from .pickles import DAMAGE, foreign_object, is_zip

AGAIN = "Download it again (`python codi.py download codi`), or give another file"
_UNFINISHED = f"{AGAIN}; if a download of it is still running, wait for its end"
_SAVED_AGAIN = "Have it saved again with `torch.save` of a PyTorch from 1.6 on, or as safetensors"
_LFS = b"version https://git-lfs"
_TEXT_MAGIC = (b"L119547037146038801333356", b"\x8a\x0a")  # what files from before PyTorch 1.6 begin with where protocol 0 or 1 wrote them
_DEEPEST = 20  # containers inside each other; checkpoints have three at most
_MOST = 1_000_000  # entries of all containers together
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


@dataclass(eq=False)
class Source:
    """One opened file. `shapes` and `dtypes` by the file's own keys; `read` gives a tensor, memory-mapped where the format allows."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    read: Callable[[str], Tensor]
    sha256: str = ""
    stamp: tuple[int, int] = (0, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def check_unchanged(self) -> None:
        """Raises CoDiError where the file is not the one that was opened any more: its mapped tensors would be a mixture."""
        if not self.path.is_file() or _stamp(self.path) != self.stamp:
            raise CoDiError(f"{self.path} changed while it was read: wait until nothing writes it, then run the command again")


@dataclass(frozen=True)
class Found:
    """Where a tensor lies: a file and that file's own key."""

    source: Source
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the file."""
        return self.source.shapes[self.key]

    @property
    def dtype(self) -> torch.dtype:
        """Its type in the file."""
        return self.source.dtypes[self.key]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor."""
        return self.source.read(self.key)


def checkpoint_files(given: Sequence[str | Path]) -> list[Path]:
    """The files that the given paths mean, each once: a folder means the checkpoints in it, an index (.json) the shards it names.

    Raises CoDiError for a folder without checkpoints, an index that is none, and one that names files outside its folder."""
    files: dict[Path, Path] = {}
    for path in map(Path, given):
        if os.path.isdir(path):
            found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
            if not found:
                raise CoDiError(
                    f"{path} is a folder without checkpoints ({', '.join(SUFFIXES)}): give the files of the published checkpoint"
                )
        else:
            found = _shards(path) if path.suffix == ".json" else [path]
        files.update({Path(os.path.realpath(p)): p for p in found})
    return list(files.values())


def _shards(index: Path) -> list[Path]:
    try:
        names = set(read_json(index)["weight_map"].values())
        shards = [index.with_name(name) for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CoDiError(
            f"{index} is no index of a checkpoint in several files (weight_map: key -> file): give the files themselves"
        ) from error
    if outside := next((name for name in names if Path(name).name != name), None):
        raise CoDiError(f"{index} names {outside!r}, which is not a file beside it: give the files themselves")
    return shards


def open_source(path: str | Path) -> Source:
    """Open a .pth (zip or older format) or .safetensors file.

    Raises CoDiError naming the file where it is missing, truncated, no checkpoint, or holds anything but tensors and containers."""
    path = Path(path)
    try:
        if not path.is_file():
            raise CoDiError(f"{path} is {'a folder' if path.is_dir() else 'missing'}: give the .pth files of the published checkpoint")
        stamp = _stamp(path)
        with path.open("rb") as file:
            head = file.read(512)
        zipped = head.startswith(b"PK") and is_zip(path)
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
    if not zipped and not head.startswith(b"\x80") and _is_tar(path):
        raise CoDiError(f"{path} is in the tar format of PyTorch before 0.1.10, which is not read. {_SAVED_AGAIN}")
    if not zipped and not head.startswith((b"\x80", *_TEXT_MAGIC)):
        raise CoDiError(f"{path} is no PyTorch checkpoint: it {f'begins with {head[:12]!r}' if head else 'is empty'}. {_UNFINISHED}")
    return _open_pickle(path, usual=zipped and _is_usual(path))


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, ValueError):
        return False


def _open_safetensors(path: Path) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(str(path), framework="pt", device="cpu")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        dtypes = {key: file.get_tensor(key).dtype for key in shapes}
    except (SafetensorError, OSError, KeyError, AttributeError) as error:  # the latter two for types that torch does not have
        raise CoDiError(f"{path} is not a whole safetensors file: it is truncated or damaged ({error}). {_UNFINISHED}") from error
    if not shapes:
        raise CoDiError(f"{path} holds no tensors: give files of the published checkpoint")
    return Source(path, shapes, dtypes, file.get_tensor)


def _is_usual(path: Path) -> bool:
    """Whether a zip is one that weights-only loading reads. Raises CoDiError for one that is compressed: its tensors cannot be mapped."""
    try:
        with zipfile.ZipFile(path) as archive:
            numbers = [record for record in archive.infolist() if "/data/" in record.filename or record.filename.endswith("/data.pkl")]
            if any(record.compress_type != zipfile.ZIP_STORED for record in numbers):
                raise CoDiError(f"{path} was packed again with compression, which PyTorch does not do. {_SAVED_AGAIN}")
            names = archive.namelist()
            if order := next((name for name in names if name.endswith("/byteorder")), None):
                if archive.read(order) != b"little":
                    raise CoDiError(f"{path} was saved on a big-endian machine, which is not read. {_SAVED_AGAIN}")
            with archive.open(next(name for name in names if name.endswith("data.pkl"))) as file:
                return file.read(2) in (b"\x80\x02", b"\x80\x03")
    except CoDiError:
        raise
    except (StopIteration, *DAMAGE):
        return True  # PyTorch says what is wrong


def _open_pickle(path: Path, *, usual: bool) -> Source:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a refused file more is said below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if usual else legacy.load(path)
    except pickle.UnpicklingError as error:
        raise CoDiError(_refused(path, str(error))) from error
    except Exception as error:  # damaged pickles fail in any way
        if out_of_memory(error):
            raise
        if "TorchScript" in str(error):
            raise CoDiError(f"{path} is a TorchScript archive, expected a state dict that maps names to tensors. {_SAVED_AGAIN}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CoDiError(f"{path} cannot be read as a checkpoint: it is truncated or damaged ({reason}). {_UNFINISHED}") from error
    tensors = _tensors(content, path)
    for key, tensor in tensors.items():
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CoDiError(
                f"{path}: {key} is a sparse, nested or quantised tensor, or one without data, expected plain numbers: it is no published "
                "file. Give one of those"
            )
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return Source(path, shapes, {key: tensor.dtype for key, tensor in tensors.items()}, tensors.__getitem__)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """All tensors of a file by dotted key. Raises CoDiError where there are none, or containers without end."""
    if not isinstance(content, Mapping | list | tuple):
        raise CoDiError(f"{path} holds a {type(content).__name__}, expected a state dict that maps names to tensors")
    tensors: dict[str, Tensor] = {}
    for count, (key, value) in enumerate(_entries(content, path)):
        if count > _MOST:
            raise CoDiError(f"{path} has more than {_MOST} entries in mappings inside each other: it is no checkpoint of CoDi")
        if isinstance(value, Tensor):
            while key in tensors:  # one name nested in two ways: a second copy
                key = f"again.{key}"
            tensors[key] = value.detach()
    if not tensors:
        raise CoDiError(f"{path} holds no named tensors: a checkpoint maps names to tensors")
    return tensors


def _entries(content: Any, path: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings and lists that is not one itself, by dotted key."""
    if depth > _DEEPEST:
        raise CoDiError(f"{path} has more than {_DEEPEST} mappings inside each other, expected a state dict that maps names to tensors")
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        if isinstance(value, Mapping | list | tuple):
            yield from _entries(value, path, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def _refused(path: Path, message: str) -> str:
    """What to say of a pickle that weights-only loading does not accept."""
    named = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"class '?([\w.]+)", message)
    found = foreign_object(path, named[1] if named else None)
    if named is None and found is None:
        return f"{path} cannot be read as a checkpoint: it is truncated, damaged or not from PyTorch. {_UNFINISHED}"
    kind, key = found or (named[1] if named else "", "")
    return (
        f"{path} holds an object of type {kind}{f' (at {key!r})' if key else ''}, expected only tensors, containers, numbers and texts. "
        "Loading it could run any code that its maker wrote, so it is refused. The published files hold no such object: give one of those, "
        "or have its maker save the state_dict alone"
    )

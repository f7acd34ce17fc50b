"""What a pickle asks for, read from its opcodes: nothing of it is run."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_STORES = ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT")
_FETCHES = ("BINGET", "LONG_BINGET", "GET")
_OWN = ("torch", "torch._utils", "torch._tensor", "torch.storage", "torch.serialization", "collections")
_TAGS = ("module", "storage")  # that torch.save puts before what it stores apart
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, LookupError, NotImplementedError, RuntimeError)
"""What opening or reading a damaged zip raises."""

_PARTS = 4  # files from before PyTorch 1.6 are pickles one after another, the fourth holds the tensors


def foreign_object(path: Path, name: str | None = None) -> tuple[str, str] | None:
    """Type of the first object in a checkpoint that is not PyTorch's own, or that is called `name`, and the text before it.

    That text is the key which the object stands under, where it is in a mapping. None where there is no such object."""
    with _pickles(path) as file:
        try:
            for kind, key in (found for _ in range(_PARTS) for found in _globals(file)):
                if kind == name or kind.partition(".")[2] == name or (name is None and kind.rpartition(".")[0] not in _OWN):
                    return kind, key
        except (ValueError, IndexError, KeyError, EOFError, OSError, pickle.UnpicklingError):  # the end, or damage before any object
            pass
    return None


def is_zip(path: Path) -> bool:
    """Whether a file ends as zips do; the library raises for some damaged ends where it should say no."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _pickles(path: Path) -> IO[bytes]:
    """The file itself, or the pickle inside a zip; empty where there is none."""
    if not is_zip(path):
        return path.open("rb")
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            return io.BytesIO(archive.read(name))
    except (StopIteration, *DAMAGE):
        return io.BytesIO()


def _globals(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Dotted names that one pickle imports, with the last text that stands before each."""
    texts: list[str] = []
    memory: dict[int, str] = {}
    stored = 0
    last: str | None = None  # the text that was pushed by the opcode before
    for opcode, argument, _ in pickletools.genops(file):
        pushed = None
        if opcode.name in _TEXTS:
            pushed = str(argument)
        elif opcode.name in _FETCHES:
            pushed = memory.get(int(argument))  # type: ignore[arg-type]
        elif opcode.name in _STORES:
            if last is not None:
                memory[stored if argument is None else int(argument)] = last
            stored += 1
            continue
        elif opcode.name == "GLOBAL":
            yield str(argument).replace(" ", "."), _key(texts)
        elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
            yield ".".join(texts[-2:]), _key(texts[:-2])
        if pushed is not None:
            texts.append(pushed)
        last = pushed


def _key(texts: list[str]) -> str:
    return next((text for text in reversed(texts) if text not in _TAGS), "")

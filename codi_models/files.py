"""Whole files or none: everything is written under a temporary name in the same folder and renamed at the end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from .errors import CoDiError, WriteError

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_STALE_SECONDS = 600  # a file being written changes far more often


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path (same folder, same suffix) that becomes `path` when the block ends without exception.

    An exception, KeyboardInterrupt included, removes the temporary file and leaves an older `path` as it was.
    Raises WriteError where the folder cannot be made or written."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def output_folder(path: str | Path) -> Path:
    """A folder to write to, which need not exist yet: what can be known of it before there is anything to write.

    Raises CoDiError where nothing or a file is named, WriteError where it cannot be made or written."""
    folder = Path(path)
    if not str(path):
        raise CoDiError("the folder to write to has an empty name: give a folder")
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise CoDiError(f"{folder} is a file: give a folder")
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            return folder


def unwritable(path: str | Path, error: OSError) -> WriteError:
    """The error to raise where a path could not be written."""
    reason = error.strerror or next(iter(str(error).splitlines()), type(error).__name__)
    return WriteError(f"cannot write {path}: {reason}. Give a folder that can be written and has room")


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Errors of the disk inside the block become a WriteError that names `path`."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error
    except Exception as error:
        if isinstance(error, CoDiError) or not disk_refuses(error):
            raise
        raise unwritable(path, OSError(str(error))) from error


def disk_refuses(error: BaseException) -> bool:
    """Whether an exception says that a disk is full, over its quota or read-only, or a file too large; some libraries say it in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _REFUSALS
    return any(os.strerror(number) in str(error) for number in _REFUSALS)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as a whole file. Bytes of file names that are no UTF-8 are written as escapes that JSON reads back."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: str | Path) -> Any:
    """What a JSON file holds, with or without the mark that some editors put first. Raises OSError, ValueError, RecursionError."""
    return json.loads(Path(path).read_text(encoding="utf-8-sig"))


PLAIN = "give letters, digits, and - _ . + within, no name that Windows keeps for a device"
_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    "CONIN$",
    "CONOUT$",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789\u00b9\u00b2\u00b3"),
}


def plain_name(name: str, longest: int = 150) -> bool:
    """Whether a file or folder can be called so on any system: letters, digits and - _ . + of at most so many bytes, the first a letter,
    digit or underscore, the last no dot, and no device of Windows, with whatever suffix."""
    good = re.fullmatch(r"\w[\w.+-]*", name) and not name.endswith(".") and len(name.encode("utf-8", "replace")) <= longest
    return bool(good) and name.split(".")[0].upper() not in _DEVICES


def sha256(path: str | Path, progress: Callable[[int], None] | None = None) -> str:
    """Hexadecimal SHA-256 of a file's bytes. `progress` is called with the number of bytes of every block read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def temporary_of(path: Path) -> str:
    """Name of the file that a temporary one of `whole_file` was to become; "" for any other path."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}(\.\w+)", path.name)
    return found[1] + found[2] if found else ""


def remove_leftovers(folder: str | Path, names: Collection[str]) -> None:
    """Delete temporary files of `whole_file` that a killed process left for these file names; a file that still grows is spared."""
    for path in Path(folder).glob(".*.*"):
        with contextlib.suppress(OSError):
            if temporary_of(path) in names and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()

"""One writer to a folder at a time: whoever comes second is told who writes there, instead of both mixing their files.

Not by the package filelock, which training waits for its turn with: it does not tell who holds a file, and leaves it in the folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .errors import CoDiError
from .files import unwritable, writing

LOCK = ".writer"
"""Name of the lock file of a folder; that of one of its parts is `.writer-PART`. It is there only while somebody writes."""

_FAR = 1 << 30  # Windows keeps others from reading the bytes that are locked: this one lies behind the text


def is_lock(path: Path) -> bool:
    """Whether a file is a lock of a folder, and none of its content."""
    return path.name == LOCK or path.name.startswith(f"{LOCK}-")


class Busy(CoDiError):
    """Somebody else writes to the folder."""


@contextlib.contextmanager
def sole_writer(folder: str | Path, part: str = "") -> Iterator[None]:
    """Holds the folder for writing, or a part of it, beside which others may hold other parts; a folder is made where there is none.

    The operating system releases it when the process ends, however it ends. Nothing is held where a file system has no locks.
    Raises Busy, which names the process that holds it, and WriteError where the folder cannot be written."""
    folder = Path(folder)
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        if part:
            with _held(folder, LOCK):  # against who holds all of it
                own = contextlib.ExitStack()
                own.enter_context(_held(folder, f"{LOCK}-{part}"))
            with own:
                yield
        else:
            with _held(folder, LOCK):
                for other in folder.glob(f"{LOCK}-*"):
                    with _held(folder, other.name):
                        pass
                yield
    finally:
        for place in made:  # if nothing was written
            with contextlib.suppress(OSError):
                place.rmdir()


@contextlib.contextmanager
def _held(folder: Path, name: str) -> Iterator[None]:
    path = folder / name
    descriptor = -1
    try:
        while descriptor < 0:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _lock(descriptor):
                raise Busy(f"{_owner(path)} writes to {folder}: wait until it has ended, stop it, or give another folder")
            if not _is(descriptor, path):  # its holder has just removed it
                os.close(descriptor)
                descriptor = -1
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"process": os.getpid(), "machine": socket.gethostname()}).encode())
    except OSError as error:
        if descriptor >= 0:
            _release(descriptor, path)
        raise unwritable(path, error) from error
    except Busy:
        os.close(descriptor)
        raise
    try:
        yield
    finally:
        _release(descriptor, path)


def _release(descriptor: int, path: Path) -> None:
    if os.name == "nt":  # where an open file cannot be removed
        os.close(descriptor)
    with contextlib.suppress(OSError):
        path.unlink()
    if os.name != "nt":
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the file is ours now, or on a file system without locks."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(told['process'])} on {told['machine']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

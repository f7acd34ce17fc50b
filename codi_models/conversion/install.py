"""The published checkpoint into a model folder: each file is fetched, converted and removed before the next, to need little room."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from ..checkpoints import read_metadata
from ..components import COMPONENTS
from ..config import CoDiConfig
from ..errors import CoDiError
from .convert import Result, convert, planned_bytes
from .download import DOWNLOADS, Pins, Progress, Wanted, check_room, fetch
from .hub import Hub
from .layout import published_file


def install(
    wanted: Sequence[Wanted],
    out: Path,
    *,
    dtype: str = "fp16",
    components: Collection[str] = (),
    config: CoDiConfig | None = None,
    hub: Hub | None = None,
    progress: Progress = lambda *_: None,
) -> Result:
    """Fetch and convert the files that `out` does not have yet. An interrupted run goes on where it stopped.

    config: sizes of the checkpoint; None means the official ones. Raises CoDiError before the first byte where the disk does not suffice,
    and in between as `fetch` and `convert` do; what was finished until then stays."""
    result = Result()
    check_room(out, needed_room(wanted, out, dtype=dtype, components=components, config=config))
    hub = hub or Hub()
    for file in wanted:
        parts = _parts(file, components)
        if _is_installed(file, parts, out, dtype):
            result.components |= dict.fromkeys(parts, "kept")
            continue
        path = fetch(file, out, hub, progress)
        digest = _digest(file, out)
        known = {path: digest} if digest else {}
        done = convert([path], out, dtype=dtype, config=config, components=components and parts, known=known, progress=progress)
        result.components |= done.components
        result.notes += done.notes
        if out / DOWNLOADS in path.parents:
            path.unlink()
            with contextlib.suppress(OSError):  # the folders, once they are empty
                path.parent.rmdir()
                (out / DOWNLOADS).rmdir()
    return result


def needed_room(
    wanted: Sequence[Wanted], out: Path, *, dtype: str = "fp16", components: Collection[str] = (), config: CoDiConfig | None = None
) -> int:
    """Bytes that have to be free for `install`: the most that is on the disk at once, less what lies there already."""
    used = most = 0
    for file in wanted:
        parts = _parts(file, components)
        if not _is_installed(file, parts, out, dtype):
            missing, converted = file.missing(), planned_bytes(parts, dtype, config)
            most = max(most, used + missing + converted)
            used += converted - (file.bytes - missing)
    return most


def _parts(file: Wanted, components: Collection[str]) -> list[str]:
    name = file.path.rpartition("/")[2]
    return [c for c in COMPONENTS if published_file(c) == name and (not components or c in components)]


def _digest(file: Wanted, out: Path) -> str | None:
    """Hash of a file as it is stated, or as the folder recorded it."""
    return file.sha256 or Pins.read(out).files.get(file.pin, {}).get("sha256")


def _is_installed(file: Wanted, parts: Collection[str], out: Path, dtype: str) -> bool:
    """Whether all components of a file were made from it in this precision."""
    digest = _digest(file, out)
    for part in parts:
        path = out / f"{part}.safetensors"
        if digest is None or not path.exists():
            return False
        try:
            metadata = read_metadata(path)
            if metadata["dtype"] != dtype or digest not in {source["sha256"] for source in json.loads(metadata["sources"])}:
                return False
        except (CoDiError, KeyError, TypeError, ValueError):
            return False
    return True

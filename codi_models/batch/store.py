"""The folder of a batch: items/ID/ holds one item's files, whole or not at all; failures.jsonl and batch.json tell the rest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import CoDiError
from ..files import output_folder, read_json, unwritable, write_text, writing
from .manifest import Failure, Item

_FLUSH_SECONDS = 10.0
_ABANDONED_SECONDS = 3600.0  # a half-made folder this old is nobody's


class Store:
    """Results of one batch. An item is done when its folder is there: the folder is renamed into place with all its files.

    origin: what all items of a folder share (model, precision, raw). Raises CoDiError where the folder holds results of another
    origin, and WriteError where it cannot be written."""

    def __init__(self, folder: str | Path, origin: Mapping[str, Any]) -> None:
        self.folder = output_folder(folder)
        self.items, self.origin = self.folder / "items", dict(origin)
        self.failures: list[Failure] = []
        self._flushed = 0.0
        self._open()

    def _open(self) -> None:
        before = self._begun_with()
        if before is not None and before != self.origin:
            differs = [f"{k} {before.get(k)!r}, not {v!r}" for k, v in self.origin.items() if before.get(k) != v]
            raise CoDiError(f"{self.folder} holds results of {'; '.join(differs)}: give another --out, or what it was begun with")
        with writing(self.items):
            self.items.mkdir(parents=True, exist_ok=True)
        self.report({"complete": False})
        for folder in self._half_made():
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)

    def _begun_with(self) -> dict[str, Any] | None:
        try:
            return read_json(self.folder / "batch.json").get("origin")
        except (OSError, ValueError, AttributeError):
            return None

    def _half_made(self) -> list[Path]:
        return [Path(entry.path) for entry in os.scandir(self.items) if entry.name.startswith(".")]

    def missing(self, items: list[Item]) -> list[Item]:
        """Items that are not done yet. One that was made from another request under the same id becomes a failure."""
        names = {entry.name for entry in os.scandir(self.items)}
        missing = []
        for item in items:
            if item.id not in names:
                missing.append(item)
            elif self._request(item) != item.request():
                error = f"{self.items / item.id} was made from another request: give another id or --out, or remove that folder"
                self.fail(Failure(item.line, item.id, error))
        return missing

    def _request(self, item: Item) -> Any:
        try:
            made = read_json(self.items / item.id / "item.json")
            return made.get("request")
        except (OSError, ValueError, AttributeError):
            return None

    def put(self, item: Item, files: Mapping[str, bytes]) -> bool:
        """Keep an item's files. False where it is there already: the first that was made stays. Raises WriteError."""
        target = self.items / item.id
        temporary = self.items / f".{item.id}.{uuid.uuid4().hex[:8]}"
        try:
            temporary.mkdir()
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            write_text(temporary / "item.json", json.dumps({"request": item.request(), "files": sorted(files)}, indent=1) + "\n")
            if target.exists():
                return False
            os.rename(temporary, target)
            return True
        except OSError as error:
            if target.is_dir():  # another process was faster between the question and the renaming
                return False
            raise unwritable(target, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def fail(self, failure: Failure) -> None:
        """Note a failure; failures.jsonl follows within seconds, and at `close`."""
        self.failures.append(failure)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        lines = [json.dumps(asdict(failure), ensure_ascii=False) + "\n" for failure in sorted(self.failures, key=lambda f: f.line)]
        write_text(self.folder / "failures.jsonl", "".join(lines))
        self._flushed = time.monotonic()

    def report(self, facts: Mapping[str, Any]) -> None:
        """Write batch.json."""
        write_text(self.folder / "batch.json", json.dumps({"origin": self.origin, **facts}, indent=1, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Write failures.jsonl and remove what killed processes left of items that are done."""
        for folder in self._half_made():
            if (self.items / folder.name[1:].rpartition(".")[0]).is_dir():
                shutil.rmtree(folder, ignore_errors=True)
        self._flush()

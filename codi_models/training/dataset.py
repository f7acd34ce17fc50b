"""What training knows of its data: items with any of text, image, audio and video. Files are one data set, a world made by rule another."""

from __future__ import annotations

import hashlib
import importlib
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ..config import CoDiConfig
from ..errors import CoDiError
from ..latents import fitted
from ..modalities import MODALITIES
from .records import Record, find_records

NAMED = {"bounce-world": "..bounce_world.dataset:BounceWorld"}
"""Data sets that are made by rule, each a class that takes a CoDiConfig. Any other can be named as "module:class"."""

Progress = Callable[[int, int], None]
"""Called with what is done so far and all there is."""


class Dataset(ABC):
    """N items. Which of them have a modality says `has`: modality -> bool (N,); a modality that none has is left out."""

    has: dict[str, Tensor]
    version: str
    """Changes whenever the items do: encodings are kept under it."""

    def __len__(self) -> int:
        return len(next(iter(self.has.values())))

    @abstractmethod
    def media(self, modality: str, rows: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W) or videos (B, 3, F, H, W) in 0..1, or audio (B, N) in -1..1, at the sizes and rates of the model."""

    @abstractmethod
    def texts(self, rows: Sequence[int], rng: random.Random) -> list[str]:
        """The items' text as a model is to write it."""

    def prompts(self, rows: Sequence[int], rng: random.Random) -> list[str]:
        """Texts that ask for the items; more varied than `texts` where people ask in other words than the model writes."""
        return self.texts(rows, rng)

    def corpus(self) -> list[str]:
        """Texts from which vocabularies are built."""
        rows = self.has["text"].nonzero()[:, 0].tolist() if "text" in self.has else []
        return self.texts(rows, random.Random(0))

    def check(self, progress: Progress = lambda *_: None) -> None:
        """Look at everything once. Raises CoDiError where media cannot be used."""
        progress(len(self), len(self))

    def rows(self, kinds: Sequence[str], count: int, generator: torch.Generator) -> Tensor:
        """Random items (count,) that have all these kinds, each once where there are enough. Raises CoDiError where none has."""
        missing = [kind for kind in kinds if kind not in self.has]
        usable = None if missing else torch.stack([self.has[kind] for kind in kinds]).all(0).nonzero()[:, 0]
        if usable is None or not len(usable):
            both = "both " if len(kinds) > 1 else ""
            raise CoDiError(f"no example has {both}{' and '.join(kinds)}; the data have {', '.join(self.has)}")
        if count <= len(usable):
            drawn = torch.randperm(len(usable), generator=generator, device=generator.device)[:count]
        else:
            drawn = torch.randint(len(usable), (count,), generator=generator, device=generator.device)
        return usable[drawn.to(usable.device)]


class FolderDataset(Dataset):
    """A user's media: a folder with manifest.jsonl, with files that share a name, or with webdataset tars; or one tar.

    Files are read when they are needed, several at a time, and kept in memory up to `room` bytes. With `skip_unreadable`, `check` leaves
    out what cannot be read instead of raising CoDiError."""

    def __init__(self, path: str | Path, config: CoDiConfig, *, skip_unreadable: bool = False, room: int = 4 << 30) -> None:
        self.config, self.skip_unreadable, self.room = config, skip_unreadable, room
        self.records = find_records(path)
        kinds = [kind for kind in MODALITIES if any(kind in r.sources for r in self.records)]
        self.has = {kind: torch.tensor([kind in r.sources for r in self.records]) for kind in kinds}
        self.version = hashlib.sha256(repr([list(_state(r)) for r in self.records]).encode()).hexdigest()
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._bytes = 0

    def pairs_only(self) -> None:
        """Raises CoDiError unless some item has two modalities: nothing can be learnt across modalities from others."""
        if not (torch.stack(list(self.has.values())).sum(0) >= 2).any():
            counts = Counter(" + ".join(sorted(r.sources)) or "nothing" for r in self.records)
            held = ", ".join(f"{n} of {what}" for what, n in counts.most_common(5))
            raise CoDiError(
                f"no example shows 2 or more of text, image, audio, video; there are {held}. Media of one example share a name "
                "up to the first dot (dog.png, dog.txt) or stand in one line of the manifest"
            )

    def media(self, modality: str, rows: Sequence[int]) -> Tensor:
        with ThreadPoolExecutor(min(8, max(1, len(rows)))) as pool:
            return torch.stack(list(pool.map(lambda row: self._one(modality, row), rows)))

    def texts(self, rows: Sequence[int], rng: random.Random) -> list[str]:
        return [str(self.records[row].read("text").value) for row in rows]

    def check(self, progress: Progress = lambda *_: None) -> None:
        """Read everything once. Raises CoDiError telling how much cannot be used, and the first of it."""
        media = [(kind, row) for kind, there in self.has.items() for row in there.nonzero()[:, 0].tolist()]
        broken: list[str] = []
        for number, (kind, row) in enumerate(media):
            progress(number, len(media))
            try:
                self.texts([row], random.Random(0)) if kind == "text" else self._one(kind, row)
            except CoDiError as error:
                broken.append(str(error))
                self.has[kind][row] = False
        progress(len(media), len(media))
        self.has = {kind: there for kind, there in self.has.items() if there.any()}
        if broken and (not self.skip_unreadable or not self.has):
            raise CoDiError(
                f"{len(broken)} of {len(media)} media cannot be used; the first: {broken[0]}. "
                "Repair or remove them, or skip unreadable ones"
            )

    def _one(self, modality: str, row: int) -> Tensor:
        key = (modality, row)
        if key not in self._kept:
            value = fitted(self.config, self.records[row].read(modality))
            value = value.transpose(0, 1) if modality == "video" else value  # (3, F, H, W)
            if not bool(torch.isfinite(value).all()):
                raise CoDiError(f"{self.records[row].sources[modality]} holds values that are not finite: look at the file")
            small = (value * 32767).round().to(torch.int16) if modality == "audio" else (value * 255).round().to(torch.uint8)
            if self._bytes + small.nbytes > self.room:
                return _widen(small)
            self._kept[key] = small
            self._bytes += small.nbytes
        return _widen(self._kept[key])


def open_dataset(data: str | Path, config: CoDiConfig, *, skip_unreadable: bool = False) -> Dataset:
    """The data set of that name ("bounce-world", or "module:class") or in that folder or tar. Raises CoDiError for anything else."""
    name = NAMED.get(str(data), str(data))
    if ":" in name and not Path(data).exists():
        module, _, cls = name.partition(":")
        try:
            return getattr(importlib.import_module(module, __package__), cls)(config)
        except (ModuleNotFoundError, AttributeError) as error:
            raise CoDiError(
                f"no data set {str(data)!r} ({error}): give a folder, a tar, {', '.join(NAMED)}, or module:class of a Dataset"
            ) from error
    return FolderDataset(data, config, skip_unreadable=skip_unreadable)


def draw_from(generator: torch.Generator) -> random.Random:
    """Python's random numbers from those of a step."""
    return random.Random(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))


def _widen(small: Tensor) -> Tensor:
    return small.float() / (32767 if small.dtype == torch.int16 else 255)


def _state(record: Record) -> Iterable[object]:
    for kind, source in sorted(record.sources.items()):
        stat = source.path.stat()
        yield (kind, str(source.path.resolve()), source.member, source.text, stat.st_size, stat.st_mtime_ns)

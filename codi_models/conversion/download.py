"""The published checkpoint and the vocabularies of its text autoencoder: which files, at which commit, with which hashes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..autoencoders.tokenizers import BERT_VOCAB, GPT2_MERGES, GPT2_SPECIALS, GPT2_VOCAB
from ..components import COMPONENTS
from ..config import CoDiConfig
from ..errors import CoDiError
from ..files import read_json, sha256, whole_file, write_text, writing
from .hub import Changed, Hub
from .layout import published_file
from .releases import COMMIT, HALF_FOLDER, RELEASES, REPOSITORY

PINS = "download.json"
"""In the model folder: commits, sizes and hashes that overrule those built in, and what was fetched."""

DOWNLOADS = "published"
"""Folder below the model folder for the .pth files."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done since the last call, bytes in all."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch. `path` in the repository at `commit`; size and hash None where nobody states them, `about` bytes then."""

    repository: str
    commit: str
    path: str
    size: int | None
    sha256: str | None
    target: Path
    about: int = 0

    @property
    def bytes(self) -> int:
        """Bytes to reckon with."""
        return self.size or self.about

    @property
    def pin(self) -> str:
        """Its name among the pins."""
        return f"{self.repository}@{self.commit}/{self.path}"

    @property
    def part(self) -> Path:
        """Where its beginning lies until it is whole."""
        return self.target.with_name(f"{self.target.name}.part")

    def missing(self) -> int:
        """Bytes that are still to be fetched."""
        if self.target.exists():
            return 0
        return max(0, self.bytes - (self.part.stat().st_size if self.part.exists() else 0))


_VOCABULARIES = {
    BERT_VOCAB: (
        "google-bert/bert-base-cased", "vocab.txt", 213450, "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02",
    ),
    GPT2_VOCAB: ("openai-community/gpt2", "vocab.json", 1042301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    GPT2_MERGES: ("openai-community/gpt2", "merges.txt", 456318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}  # fmt: skip
"""File in a model folder -> repository, file there, bytes, SHA-256: the vocabularies that Optimus was trained with."""


def wanted_weights(
    out: Path, *, components: Collection[str] = (), precision: str = "fp16", revision: str | None = None, hub: Hub | None = None
) -> list[Wanted]:
    """Published files that hold the components (all without any), the largest first, with sizes and hashes.

    revision: a commit, branch or tag, of which the hub is asked; None means the commit that `out` records, or else the built-in one, for
    which nobody needs to be asked. Raises CoDiError where the hub cannot be asked or its repository does not hold the files."""
    if unknown := sorted(set(components) - set(COMPONENTS)):
        raise CoDiError(f"unknown component {unknown[0]!r}: CoDi has {', '.join(COMPONENTS)}")
    names = list(dict.fromkeys(published_file(name) for name in (components or COMPONENTS)))
    paths = [f"{HALF_FOLDER}{name}" if precision == "fp16" else name for name in names]
    pins = Pins.read(out)
    commit = revision or pins.commits.get(REPOSITORY, COMMIT)
    known: dict[str, dict[str, Any]] = {path: {"size": r.size, "sha256": r.sha256, "about": r.about} for path, r in RELEASES.items()}
    if commit != COMMIT and not all(f"{REPOSITORY}@{commit}/{path}" in pins.files for path in paths):
        commit, known = _asked(hub or Hub(), commit, paths)
    wanted = []
    for path in paths:
        own = known.get(path, {}) | pins.files.get(f"{REPOSITORY}@{commit}/{path}", {})
        target = out / DOWNLOADS / path
        wanted.append(Wanted(REPOSITORY, commit, path, own.get("size"), own.get("sha256"), target, own.get("about") or 0))
    return sorted(wanted, key=lambda w: -w.bytes)  # converted one by one, so the least is needed at the end


def _asked(hub: Hub, revision: str, paths: Sequence[str], repository: str = REPOSITORY) -> tuple[str, dict[str, dict[str, Any]]]:
    """The commit of a revision, and sizes and hashes of its files."""
    listing = hub.listing(repository, revision)
    commit = str(listing["sha"])
    files = {s["rfilename"]: s for s in listing.get("siblings", [])}
    if lacking := [path for path in paths if path not in files]:
        weights = ", ".join(sorted(path for path in files if path.endswith((".pth", ".safetensors"))))
        raise CoDiError(f"{repository} at {commit} has no {lacking[0]}; it has {weights or 'no weights'}. Give another --revision")
    return commit, {path: {"size": s.get("size"), "sha256": (s.get("lfs") or {}).get("sha256")} for path, s in files.items()}


def wanted_vocabularies(out: Path, config: CoDiConfig | None = None) -> list[Wanted]:
    """The three vocabulary files that `out` lacks. Raises CoDiError where `out` holds other vocabularies, or a model of other sizes than
    `config`, which are the official ones where nothing is said."""
    if (out / "config.json").exists():
        text, official = CoDiConfig.load(out / "config.json").text_autoencoder, (config or CoDiConfig.official()).text_autoencoder
        if (text.encoder_vocab, text.decoder_vocab) != (official.encoder_vocab, official.decoder_vocab):
            raise CoDiError(
                f"{out} holds a model with vocabularies of {text.encoder_vocab} and {text.decoder_vocab - len(GPT2_SPECIALS)} entries: "
                "the official ones do not fit it. Give the folder of the official model as --out"
            )
    wanted, pins = [], Pins.read(out)
    for name, (repository, path, size, digest) in _VOCABULARIES.items():
        target = out / name
        commit = pins.commits.get(repository) or "main"
        own = pins.files.get(f"{repository}@{commit}/{path}", {})
        size, digest = own.get("size", size), own.get("sha256", digest)
        if not target.exists():
            wanted.append(Wanted(repository, commit, path, size, digest, target))
        elif target.is_dir():
            raise CoDiError(f"{target} is a folder: move it away, then run the command again")
        elif sha256(target) != digest:
            raise CoDiError(f"{target} is another vocabulary than the official model's: move it away, then run the command again")
    return wanted


def check_room(out: Path, needed: int) -> None:
    """Raises CoDiError where the disk of `out` has fewer bytes free than are needed."""
    place = next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())
    if needed > (free := shutil.disk_usage(place).free):
        raise CoDiError(
            f"{out} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: make room, give --out on another disk, or fewer parts "
            "with --components"
        )


def fetch(wanted: Wanted, out: Path, hub: Hub, progress: Progress = lambda *_: None) -> Path:
    """Download one file, unless it is there or in the cache of the hub's client; check it, record it, and return where it lies.

    What was interrupted goes on. Raises CoDiError where the hub is out of reach, the disk is full, or the file is not the expected one."""
    name = wanted.path.rpartition("/")[2]
    if wanted.target.exists():
        _check(wanted, wanted.target, progress, "Move it away to download it again")
        return wanted.target
    if cached := hub.cached(wanted.repository, wanted.commit, wanted.path):
        _check(wanted, cached, progress, "Remove it from the cache of the hub's client")
        if wanted.target.parent != out:
            return cached
        with whole_file(wanted.target) as temporary:
            shutil.copyfile(cached, temporary)
        return wanted.target
    wanted = wanted if wanted.sha256 else _stated(wanted, hub)
    fresh = not wanted.part.exists()
    while True:
        progress(name, wanted.part.stat().st_size if wanted.part.exists() else 0, wanted.bytes)
        hub.download(wanted.repository, wanted.commit, wanted.path, wanted.part, wanted.size, lambda n: progress(name, n, wanted.bytes))
        try:
            digest = _check(wanted, wanted.part, progress, "It was removed: run the command again, or give another --mirror")
        except Changed:
            wanted.part.unlink()
            if fresh:
                raise
            fresh = True  # the beginning was from before, perhaps from elsewhere: once more, as a whole
            continue
        size = wanted.part.stat().st_size
        with writing(wanted.target):
            wanted.part.replace(wanted.target)
        Pins.read(out).record(wanted, size, digest).write(out)
        return wanted.target


def _stated(wanted: Wanted, hub: Hub) -> Wanted:
    """With size and hash as the hub states them, where it does: mirrors may have the files alone."""
    try:
        _, files = _asked(hub, wanted.commit, [wanted.path], wanted.repository)
    except CoDiError:
        return wanted
    return replace(wanted, size=files[wanted.path]["size"], sha256=files[wanted.path]["sha256"])


def _check(wanted: Wanted, path: Path, progress: Progress, advice: str) -> str:
    """The file's hash. Raises Changed where it is not the stated one."""
    size = path.stat().st_size
    found = sha256(path, lambda n: progress(f"checking {path.name.removesuffix('.part')}", n, size))
    if wanted.sha256 and found != wanted.sha256:
        raise Changed(
            f"{wanted.path} of {wanted.repository} ({path}) has SHA-256 {found}, expected {wanted.sha256}: it is damaged, or another file. "
            f"{advice}"
        )
    return found


@dataclass(frozen=True)
class Pins:
    """What a model folder records: repository -> commit, and `repository@commit/path` -> size and hash as first downloaded."""

    commits: dict[str, str]
    files: dict[str, dict[str, Any]]

    @staticmethod
    def read(out: Path) -> Pins:
        """The record of a folder, empty where there is none. Raises CoDiError for an unreadable one."""
        path = out / PINS
        try:
            data = read_json(path) if path.exists() else {}
            commits = data.get("commits", {k: v for k, v in data.items() if isinstance(v, str)})  # version 0.3 wrote commits alone
            files = {str(k): {"size": v["size"], "sha256": v["sha256"]} for k, v in data.get("files", {}).items()}
            return Pins({str(k): str(v) for k, v in commits.items()}, files)
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise CoDiError(f"{path} is not readable ({error}): delete it to download the built-in commit") from error

    def record(self, wanted: Wanted, size: int, digest: str) -> Pins:
        """With a file that was fetched."""
        commits = {wanted.repository: wanted.commit} if re.fullmatch(r"[0-9a-f]{40}", wanted.commit) else {}
        return replace(self, commits=self.commits | commits, files=self.files | {wanted.pin: {"size": size, "sha256": digest}})

    def write(self, out: Path) -> None:
        """Keep it in a folder."""
        write_text(out / PINS, json.dumps({"commits": self.commits, "files": self.files}, indent=2, sort_keys=True) + "\n")

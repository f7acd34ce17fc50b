"""The published checkpoint and the vocabularies of its text autoencoder from the Hugging Face hub, by a fixed commit and by hash."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..autoencoders.tokenizers import BERT_VOCAB, GPT2_MERGES, GPT2_SPECIALS, GPT2_VOCAB
from ..components import COMPONENTS
from ..config import CoDiConfig
from ..errors import CoDiError
from ..files import sha256, whole_file, write_text
from .layout import published_file

REPOSITORY = "ZinengTang/CoDi"
HALF_FOLDER = "checkpoints_fp16/"  # half-precision files have the names of the full-precision ones, which lie at the top
PINS = "download.json"
"""Records in the model folder which commit each repository was read at; later downloads use the same one."""

DOWNLOADS = "published"
"""Folder below the model folder for the .pth files."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Wanted:
    """A file to fetch. `path` in the repository at `commit`; sha256 None where nobody states it."""

    repository: str
    commit: str
    path: str
    size: int
    sha256: str | None
    target: Path


_VOCABULARIES = {
    BERT_VOCAB: (
        "google-bert/bert-base-cased", "vocab.txt", 213450, "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02",
    ),
    GPT2_VOCAB: ("openai-community/gpt2", "vocab.json", 1042301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    GPT2_MERGES: ("openai-community/gpt2", "merges.txt", 456318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}  # fmt: skip
"""File in a model folder -> repository, file there, bytes, SHA-256: the vocabularies that Optimus was trained with."""


def wanted_weights(out: Path, *, components: Collection[str] = (), precision: str = "fp16", revision: str | None = None) -> list[Wanted]:
    """Published files that hold the components (all without any), with sizes and hashes as the hub states them.

    revision: a commit, branch or tag; None means the commit recorded in `out`, or else the newest.
    Raises CoDiError where the hub cannot be asked or its repository does not hold the files."""
    if unknown := sorted(set(components) - set(COMPONENTS)):
        raise CoDiError(f"unknown component {unknown[0]!r}: CoDi has {', '.join(COMPONENTS)}")
    names = list(dict.fromkeys(published_file(name) for name in (components or COMPONENTS)))
    info = _listing(REPOSITORY, revision or read_pins(out).get(REPOSITORY) or "main")
    there = {sibling.rfilename: sibling for sibling in info.siblings}
    wanted = []
    for name in names:
        path = f"{HALF_FOLDER}{name}" if precision == "fp16" else name
        if path not in there:
            weights = ", ".join(sorted(p for p in there if p.endswith((".pth", ".safetensors"))))
            raise CoDiError(f"{REPOSITORY} at {info.sha} has no {path}; it has {weights or 'no weights'}. Give another --revision")
        stated = there[path].lfs
        wanted.append(
            Wanted(REPOSITORY, info.sha, path, int(there[path].size or 0), stated.sha256 if stated else None, out / DOWNLOADS / path)
        )
    return wanted


def wanted_vocabularies(out: Path) -> list[Wanted]:
    """The three vocabulary files that `out` lacks. Raises CoDiError where `out` holds other vocabularies, or a model of other sizes."""
    if (out / "config.json").exists():
        text, official = CoDiConfig.load(out / "config.json").text_autoencoder, CoDiConfig.official().text_autoencoder
        if (text.encoder_vocab, text.decoder_vocab) != (official.encoder_vocab, official.decoder_vocab):
            raise CoDiError(
                f"{out} holds a model with vocabularies of {text.encoder_vocab} and {text.decoder_vocab - len(GPT2_SPECIALS)} entries: "
                "the official ones do not fit it. Give the folder of the official model as --out"
            )
    wanted = []
    for name, (repository, path, size, digest) in _VOCABULARIES.items():
        target = out / name
        if not target.exists():
            wanted.append(Wanted(repository, read_pins(out).get(repository) or "main", path, size, digest, target))
        elif target.is_dir():
            raise CoDiError(f"{target} is a folder: move it away, then run the command again")
        elif sha256(target) != digest:
            raise CoDiError(f"{target} is another vocabulary than the official model's: move it away, then run the command again")
    return wanted


def fetch(wanted: Sequence[Wanted], out: Path, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Download, check sizes and hashes, record the commits. What was fetched before is kept, what was interrupted goes on.

    Raises CoDiError where the hub cannot be reached, the disk is too small, or a file is not the expected one."""
    needed, free = sum(w.size for w in wanted if not w.target.exists()), shutil.disk_usage(_existing(out)).free
    if needed > free:
        raise CoDiError(f"{out} has {free / 1e9:.1f} GB free, the download needs {needed / 1e9:.1f} GB: make room or give another --out")
    for w in wanted:
        if (out / DOWNLOADS) in w.target.parents:
            _fetch(w, out / DOWNLOADS, say)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = _fetch(w, Path(folder), say)
                with whole_file(w.target) as temporary:
                    shutil.copyfile(path, temporary)
        if _COMMIT.fullmatch(w.commit):
            write_text(out / PINS, json.dumps({**read_pins(out), w.repository: w.commit}, indent=2, sort_keys=True) + "\n")


def _fetch(wanted: Wanted, folder: Path, say: Callable[[str], None]) -> Path:
    """One file into a folder, where the hub's client keeps what it needs to go on after an interruption; checked by hash."""
    path = Path(
        _asked(
            wanted,
            "hf_hub_download",
            repo_id=wanted.repository,
            filename=wanted.path,
            revision=wanted.commit,
            local_dir=str(folder),
        )
    )
    say(f"checking {wanted.path}")
    if (found := sha256(path)) != (wanted.sha256 or found):
        path.unlink()
        raise CoDiError(
            f"{wanted.path} of {wanted.repository} has SHA-256 {found}, expected {wanted.sha256}: it changed or was damaged on the way, "
            "and was removed. Run the command again"
        )
    return path


def read_pins(out: Path) -> dict[str, str]:
    """Repository -> commit that `out` was filled from. Raises CoDiError for an unreadable record."""
    path = out / PINS
    try:
        return {str(k): str(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()} if path.exists() else {}
    except (OSError, ValueError, AttributeError) as error:
        raise CoDiError(f"{path} is not readable ({error}): delete it to download from the newest commit") from error


def _listing(repository: str, revision: str) -> Any:
    """The repository's files at a revision, with sizes and hashes, and its commit."""
    wanted = Wanted(repository, revision, "", 0, None, Path())
    return _asked(wanted, "model_info", repo_id=repository, revision=revision, files_metadata=True)


def _asked(wanted: Wanted, function: str, **arguments: Any) -> Any:
    """A call of huggingface_hub, its many kinds of failure told in one way."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise CoDiError("downloads need the package huggingface_hub: `pip install huggingface_hub`") from error
    try:
        return getattr(huggingface_hub, function)(**arguments)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # huggingface_hub lets through what its HTTP library raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"{wanted.path} of {wanted.repository}" if wanted.path else f"the list of files of {wanted.repository}"
        raise CoDiError(
            f"cannot fetch {what} at {wanted.commit!r} from the Hugging Face hub ({reason}). Check the connection, the revision and "
            f"HF_HUB_OFFLINE; or fetch it elsewhere and {_by_hand(wanted)}"
        ) from error


def _by_hand(wanted: Wanted) -> str:
    if wanted.target.name in _VOCABULARIES:
        return f"save it as {wanted.target}"
    return "give the files to `python -m codi_models convert`"


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(p for p in (folder, *folder.parents) if p.exists())

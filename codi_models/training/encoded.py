"""A user's pairs as the frozen encoders see them, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import read_weights, save_weights
from ..encoders.shared_space import SHARED_SPACE_FILE
from ..errors import CoDiError
from ..files import sha256
from ..latents import ENCODERS, encode_media
from ..model import CoDi
from ..prompts import Prompt, encode_prompt
from .records import Record

Progress = Callable[[int, int], None]
"""Called with the media encoded so far and all of them."""


class Encoded:
    """Embeddings and latents of records by kind; rows of records that lack a kind are zeros, and `has` says which do not."""

    def __init__(self, embeddings: dict[str, Tensor], latents: dict[str, Tensor], has: dict[str, Tensor]) -> None:
        self.embeddings = embeddings  # kind -> (N, D), aligned in the shared space
        self.latents = latents  # kind -> (N, ...), in diffusion space
        self.has = has  # kind -> bool (N,)

    def to(self, device: torch.device) -> Encoded:
        """Everything on a device."""
        return Encoded(*({k: v.to(device) for k, v in part.items()} for part in (self.embeddings, self.latents, self.has)))


Make = Callable[[CoDi, Prompt], dict[str, Tensor]]
"""What is kept of one medium."""


def kept_media(
    model: CoDi, records: Sequence[Record], kinds: Sequence[str], cache: Path, make: Make, tag: str, components: Sequence[str], *,
    skip_unreadable: bool = False, progress: Progress = lambda *_: None,
) -> dict[tuple[int, str], dict[str, Tensor]]:  # fmt: skip
    """(row, kind) -> what `make` makes of that medium; what is in the folder `cache` already is read from there.

    After a change of a file, of `tag` or of the weights of `components` it is made again. May be interrupted between two media. Raises
    CoDiError for media that cannot be read, naming the first, or, with `skip_unreadable`, only where none can."""
    media = [(row, kind) for kind in kinds for row, record in enumerate(records) if kind in record.sources]
    paths = [*(model.path(name) for name in components), model.folder / SHARED_SPACE_FILE, model.folder / "config.json"]
    version = ":".join([tag, *(sha256(path) for path in paths if path.exists())])
    found: dict[tuple[int, str], dict[str, Tensor]] = {}
    broken: list[str] = []
    for number, (row, kind) in enumerate(media):
        progress(number, len(media))
        path = cache / f"{_key(records[row], kind, version)}.safetensors"
        if path.is_file():
            found[row, kind] = read_weights(path)[0]
            continue
        try:
            one = make(model, records[row].read(kind, model.config.sampling.frames))
            if not all(bool(torch.isfinite(t).all()) for t in one.values()):
                raise CoDiError(f"{records[row].sources[kind]} is encoded to values that are not finite: look at the file")
        except CoDiError as error:
            broken.append(str(error))
            continue
        found[row, kind] = {name: tensor.cpu() for name, tensor in one.items()}
        save_weights(found[row, kind], path)
    progress(len(media), len(media))
    if broken and (not skip_unreadable or not found):
        raise CoDiError(
            f"{len(broken)} of {len(media)} media cannot be used; the first: {broken[0]}. Repair or remove them, or skip unreadable ones"
        )
    return found


def encode_records(
    model: CoDi, records: Sequence[Record], kinds: Sequence[str], cache: Path, *,
    latents: Sequence[str] = (), skip_unreadable: bool = False, progress: Progress = lambda *_: None,
) -> Encoded:  # fmt: skip
    """Embed the media of these kinds, and make latents of those in `latents`; cache and errors as for `kept_media`."""

    def make(model: CoDi, prompt: Prompt) -> dict[str, Tensor]:
        one = {"embedding": encode_prompt(model, prompt)[0, 0]}
        return {**one, "latent": encode_media(model, prompt)} if prompt.kind in latents else one

    used = {"clap" if kind == "audio" else "clip" for kind in kinds} | {ENCODERS[kind] for kind in latents}
    found = kept_media(model, records, kinds, cache, make, f"latents {sorted(latents)}", sorted(used),
                       skip_unreadable=skip_unreadable, progress=progress)  # fmt: skip
    return _stacked(found, len(records), kinds, latents)


def _stacked(found: dict[tuple[int, str], dict[str, Tensor]], count: int, kinds: Sequence[str], latents: Sequence[str]) -> Encoded:
    embeddings: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    has: dict[str, Tensor] = {}
    for kind in kinds:
        rows = {row: one for (row, k), one in found.items() if k == kind}
        if not rows:
            continue
        has[kind] = torch.tensor([row in rows for row in range(count)])
        for name, target in (("embedding", embeddings), ("latent", made)):
            if name == "embedding" or kind in latents:
                blank = torch.zeros_like(next(iter(rows.values()))[name])
                target[kind] = torch.stack([rows[row][name] if row in rows else blank for row in range(count)]).float()
    return Encoded(embeddings, made, has)


def _key(record: Record, kind: str, version: str) -> str:
    source = record.sources[kind]
    stat = os.stat(source.path)
    words = [kind, str(source.path.resolve()), source.member, source.text or "", stat.st_size, stat.st_mtime_ns, version]
    return hashlib.sha256(repr(words).encode()).hexdigest()[:32]

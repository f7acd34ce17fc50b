"""Published files into a model folder, component by component; what is there already is left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import read_metadata
from ..components import COMPONENTS
from ..config import CoDiConfig
from ..errors import CoDiError
from ..files import output_folder, remove_leftovers, sha256, unwritable, whole_file
from ..model import DTYPES
from .layout import TIED, Layout, layout, published_file
from .matching import LISTED, Found, Match, match
from .precision import converted, equal, half_in_full, openly_half
from .sources import Source, open_source
from .writer import Planned, stream_weights

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done since the last call, bytes in all."""


@dataclass
class Result:
    """What a conversion did: component -> "written" or "kept", and what the user should know besides."""

    components: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    dtype: str = "fp16",
    config: CoDiConfig | None = None,
    components: Collection[str] = (),
    allow_unexpected: bool = False,
    allow_half: bool = False,
    listed: int = LISTED,
    progress: Progress = lambda *_: None,
) -> Result:
    """Write `out`/config.json and one safetensors file for each component that the files hold (or for `components` only).

    dtype: fp16, bf16 or fp32, of floating-point weights. config: sizes of the checkpoint; None means the official ones.
    Raises CoDiError before anything is written where the files or the folder are not usable, and in between for numbers that
    cannot be converted; components finished until then stay."""
    if dtype not in DTYPES:
        raise CoDiError(f"unknown dtype {dtype!r}: give one of {', '.join(DTYPES)}")
    if not files:
        raise CoDiError("no files were given: give one or more files of the published checkpoint")
    config, out = config or CoDiConfig.official(), Path(out)
    sources = [open_source(path) for path in {Path(f).resolve(): Path(f) for f in files}.values()]
    found = match(sources, layout(config), components=components, allow_unexpected=allow_unexpected, listed=listed)
    result = Result(notes=[note for source in sources for note in source.notes])
    if found.unexpected:
        result.notes.append(f"{len(found.unexpected)} unexpected keys left out: {', '.join(found.unexpected[:listed])}")
    if not components:
        result.notes += [f"no weight of {name} is in the files given, though {published_file(name)} has it" for name in found.absent()]
    _check_folder(out, config)
    _check_precision(found, dtype, allow_half, result)
    _check_copies(found, layout(config))
    _hash(_used(found), progress)
    metadata = {name: _metadata(name, places, config, dtype) for name, places in found.weights.items()}
    todo = [name for name in found.weights if not _is_done(out / f"{name}.safetensors", metadata[name])]
    result.components = {name: "kept" for name in found.weights if name not in todo}
    remove_leftovers(out, [f"{name}.safetensors" for name in COMPONENTS])
    plans = {name: _plan(name, layout(config), DTYPES[dtype]) for name in todo}
    _check_room(out, sum(tensor.nbytes for plan in plans.values() for tensor in plan))
    if not (out / "config.json").exists():
        with whole_file(out / "config.json") as temporary:
            config.save(temporary)
    for name in todo:
        _write(out / f"{name}.safetensors", plans[name], found.weights[name], metadata[name], progress)
        result.components[name] = "written"
    return result


def _write(path: Path, plan: list[Planned], places: dict[str, Found], metadata: dict[str, str], progress: Progress) -> None:
    total = sum(tensor.nbytes for tensor in plan)

    def pieces(tensor: Planned) -> Iterator[Tensor]:
        for piece in converted(places[tensor.name], tensor.dtype):
            yield piece
            progress(path.stem, piece.nbytes, total)
        places[tensor.name].source.check_unchanged()

    stream_weights(path, plan, pieces, metadata)


def _plan(name: str, layout: Layout, dtype: torch.dtype) -> list[Planned]:
    return [Planned(e.key, dtype if e.floating else torch.int64, e.shape) for e in layout.of(name).values()]


def _metadata(name: str, places: dict[str, Found], config: CoDiConfig, dtype: str) -> dict[str, str]:
    """Header of a component's file, with the hashes of all files that it was made from."""
    parts = {part: dataclasses.asdict(getattr(config, part)) for part in COMPONENTS[name].configs}
    sources = {f.source.sha256: f.source.path.name for f in places.values()}
    made_from = [{"file": file, "sha256": digest} for digest, file in sorted(sources.items())]
    return {"component": name, "model": config.name, "config": json.dumps(parts), "dtype": dtype, "sources": json.dumps(made_from)}


def _is_done(path: Path, metadata: dict[str, str]) -> bool:
    """Whether `path` is this component from the same sources and in the same dtype. Raises CoDiError where it is no conversion at all."""
    if not path.exists():
        return False
    there = None
    with contextlib.suppress(CoDiError, KeyError, TypeError, ValueError):
        there = _identity(read_metadata(path))
    if there is None:
        raise CoDiError(
            f"{path} was not made by this command and would be overwritten: give another --out folder, or move the file away first"
        )
    return there == _identity(metadata)


def _identity(metadata: dict[str, str]) -> tuple[object, ...]:
    """What a conversion is the same by. Raises KeyError, TypeError or ValueError for metadata of other makers."""
    digests = {source["sha256"] for source in json.loads(metadata["sources"])}
    return metadata["component"], metadata["dtype"], metadata["config"], frozenset(digests)


def _check_folder(out: Path, config: CoDiConfig) -> None:
    """The folder can be written and holds this model or none."""
    output_folder(out)
    if (out / "config.json").exists():
        other = None
        with contextlib.suppress(CoDiError):
            other = CoDiConfig.load(out / "config.json")
        if other != config:
            kind = f"the model {other.name!r}" if other else "another kind of model"
            raise CoDiError(f"{out} holds {kind} (config.json): expected a new folder, or one with {config.name!r}. Give another --out")
    elif foreign := [p for p in [out / "model_index.json", *(out / f"{name}.safetensors" for name in COMPONENTS)] if p.exists()]:
        raise CoDiError(f"{out} holds files of another model ({foreign[0].name}, without config.json): give another --out folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise CoDiError(
            f"{out} has {free / 1e6:.1f} MB free, {needed / 1e6:.1f} MB are needed: make room, give an --out folder on another disk, "
            "or convert fewer parts with --components"
        )


def _check_precision(found: Match, dtype: str, allow_half: bool, result: Result) -> None:
    for name, places in found.weights.items():
        if (half := openly_half(places)) is not None and half != DTYPES[dtype]:
            kept = f"the {dtype} file is no more exact than that" if dtype == "fp32" else f"{dtype} keeps not all of its bits"
            result.notes.append(f"{name} is given in {str(half).removeprefix('torch.')}: {kept}")
        if dtype == "fp32" and (sign := half_in_full(places)) is not None:
            place, what = sign
            same = "bf16" if what.startswith("bfloat16") else "fp16"
            message = f"{place.source.path}: {place.key} is {what}, expected full precision, as --dtype fp32 asks"
            if not allow_half:
                raise CoDiError(
                    f"{message}. Give the full-precision file of {name} (the half-precision ones have the same names), or convert with "
                    f"--dtype {same}, which loses nothing of it; --allow-half writes fp32 all the same"
                )
            result.notes.append(message)


def _check_copies(found: Match, layout: Layout) -> None:
    """Second copies of tied weights are copies indeed."""
    for key, copy in found.copies.items():
        entry = layout.entries[TIED[key]]
        kept = found.weights.get(entry.component, {}).get(entry.key)
        if kept is not None and not equal(copy, kept):
            raise CoDiError(f"{copy.source.path}: {copy.key} differs from {kept.key}, expected the same numbers: this is another model")


def _used(found: Match) -> list[Source]:
    return list({id(f.source): f.source for places in found.weights.values() for f in places.values()}.values())


def _hash(sources: list[Source], progress: Progress) -> None:
    total = sum(source.path.stat().st_size for source in sources)
    for source in sources:
        source.sha256 = sha256(source.path, lambda n: progress("checksums", n, total))
        source.check_unchanged()

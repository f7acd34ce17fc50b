"""Published files into a model folder, component by component; what is there already is left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import read_metadata
from ..components import COMPONENTS
from ..config import CoDiConfig
from ..errors import CoDiError
from ..files import output_folder, remove_leftovers, sha256, writing
from ..model import DTYPES
from .layout import Entry, Layout, layout
from .matching import LISTED, Filled, Match, match
from .precision import converted, equal, half_in_full, openly_half, whole_numbers
from .releases import recognised
from .sources import Found, Source, checkpoint_files, open_source
from .writer import PIECE, Planned, flat_pieces, stream_weights

PRECISIONS = {**DTYPES, "fp8": torch.float8_e4m3fn}
Place = Found | Filled

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
    strict: bool = False,
    allow_half: bool = False,
    listed: int = LISTED,
    known: Mapping[Path, str] | None = None,
    progress: Progress = lambda *_: None,
) -> Result:
    """Write `out`/config.json and one safetensors file for each component that the files hold (or for `components` only).

    files: checkpoints, folders of them, or indices of shards. dtype: fp16, bf16 or fp32, of floating-point weights; fp8 for the matrices
    of the denoisers and fp16 for the rest. config: sizes of the checkpoint; None means the official ones. strict: refuse files with tensors
    that the published layout does not have, instead of leaving those out with a note. known: SHA-256 of files that were just
    checked, which are not read for it again.
    Raises CoDiError before anything is written where the files or the folder are not usable, and in between for numbers that
    cannot be converted; components finished until then stay."""
    if dtype not in PRECISIONS:
        raise CoDiError(f"unknown dtype {dtype!r}: give one of {', '.join(PRECISIONS)}")
    if not files:
        raise CoDiError("no files were given: give one or more files of the published checkpoint")
    config, out = config or CoDiConfig.official(), Path(out)
    sources = [open_source(path) for path in checkpoint_files(files)]
    found = match(sources, layout(config), components=components, strict=strict, listed=listed)
    result = Result(notes=found.notes)
    _check_folder(out, config)
    _settle_numbers(found, layout(config), result)
    _settle_copies(found, layout(config), result)
    _check_precision(found, dtype, allow_half, result)
    _hash(_used(found), known or {}, progress, result)
    metadata = {name: _metadata(name, places, config, dtype) for name, places in found.weights.items()}
    todo = [name for name in found.weights if not _is_done(out / f"{name}.safetensors", metadata[name])]
    result.components = {name: "kept" for name in found.weights if name not in todo}
    remove_leftovers(out, [f"{name}.safetensors" for name in COMPONENTS])
    plans = {name: _plan(name, layout(config), dtype) for name in todo}
    _check_room(out, sum(tensor.nbytes for plan in plans.values() for tensor in plan))
    if not (out / "config.json").exists():
        config.save(out / "config.json")
    for name in todo:
        _write(out / f"{name}.safetensors", plans[name], found.weights[name], metadata[name], progress)
        result.components[name] = "written"
    return result


def _write(path: Path, plan: list[Planned], places: dict[str, Place], metadata: dict[str, str], progress: Progress) -> None:
    total = sum(tensor.nbytes for tensor in plan)

    def pieces(tensor: Planned) -> Iterator[Tensor]:
        for piece in _pieces(places[tensor.name], tensor):
            yield piece
            progress(path.stem, piece.nbytes, total)
        if isinstance(place := places[tensor.name], Found):
            place.source.check_unchanged()

    stream_weights(path, plan, pieces, metadata)


def _pieces(place: Place, tensor: Planned) -> Iterator[Tensor]:
    """A weight's elements in order, in the planned dtype."""
    if isinstance(place, Filled):
        count = math.prod(tensor.shape)
        for start in range(0, count, PIECE):
            yield torch.full((min(PIECE, count - start),), place.value, dtype=tensor.dtype)
    elif tensor.dtype.is_floating_point:
        yield from converted(place, tensor.dtype)
    else:
        numbers = whole_numbers(place)
        yield from () if numbers is None else flat_pieces(numbers)


def planned_bytes(components: Collection[str], dtype: str, config: CoDiConfig | None = None) -> int:
    """Bytes of the weights of components once they are converted. Builds networks without data, which takes a second."""
    sizes = layout(config or CoDiConfig.official())
    return sum(tensor.nbytes for name in components for tensor in _plan(name, sizes, dtype))


def _plan(name: str, layout: Layout, dtype: str) -> list[Planned]:
    return [Planned(e.key, _precision(e, dtype) if e.floating else torch.int64, e.shape) for e in layout.of(name).values()]


def _precision(entry: Entry, dtype: str) -> torch.dtype:
    """Type of a floating-point weight. Eight bits are for the matrices of the denoisers alone: the rest is small, or needs the digits."""
    if dtype != "fp8":
        return PRECISIONS[dtype]
    matrix = entry.component.endswith("_denoiser") and entry.key.endswith(".weight") and len(entry.shape) >= 2
    return torch.float8_e4m3fn if matrix else torch.float16


def _metadata(name: str, places: dict[str, Place], config: CoDiConfig, dtype: str) -> dict[str, str]:
    """Header of a component's file, with the hashes of all files that it was made from."""
    parts = {part: dataclasses.asdict(getattr(config, part)) for part in COMPONENTS[name].configs}
    sources = {f.source.sha256: f.source.path.name for f in places.values() if isinstance(f, Found)}
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
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise CoDiError(
            f"{out} has {free / 1e6:.1f} MB free, {needed / 1e6:.1f} MB are needed: make room, give an --out folder on another disk, "
            "or convert fewer parts with --components"
        )


def _check_precision(match: Match, dtype: str, allow_half: bool, result: Result) -> None:
    if dtype == "fp8":
        return
    for name, weights in match.weights.items():
        places = {key: place for key, place in weights.items() if isinstance(place, Found)}
        if (half := openly_half(places)) is not None and half != PRECISIONS[dtype]:
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


def _settle_numbers(match: Match, layout: Layout, result: Result) -> None:
    """Whole numbers may be stored as any type that holds them; counters of training that none holds any more are zero."""
    for entry in layout.entries.values():
        place = match.weights.get(entry.component, {}).get(entry.key)
        if entry.floating or not isinstance(place, Found) or whole_numbers(place) is not None:
            continue
        if not entry.key.endswith("num_batches_tracked"):
            raise CoDiError(f"{place.source.path}: {place.key} holds other than whole numbers: it is another model")
        match.weights[entry.component][entry.key] = Filled(0)
        result.notes.append(f"{place.source.path.name}: {place.key} counts batches of training and did not fit its type: zero")


def _settle_copies(match: Match, layout: Layout, result: Result) -> None:
    """Compare what the files hold twice. Raises CoDiError where two files hold one component with different numbers."""
    for kept, head in match.heads.items():
        entry = layout.entries[kept]
        place = match.weights.get(entry.component, {}).get(entry.key)
        if isinstance(place, Found) and not equal(head, place):
            match.weights[entry.component][entry.key] = head
            result.notes.append(
                f"{head.source.path.name}: {head.key} and {place.key} are one parameter with two values: the first is taken, which the "
                "published code loads last"
            )
    for second in match.seconds:
        same, how = second.compared()
        if second.alike and not same:
            files = f"{second.pairs[0][0].source.path} and {second.known}"
            raise CoDiError(f"{files} both hold these weights, {how} ({len(second.pairs)} tensors). Give each weight once")
        result.notes.append(f"{second.described()}, {how}: left out")


def _used(match: Match) -> list[Source]:
    places = [place for weights in match.weights.values() for place in weights.values()]
    return list({id(place.source): place.source for place in places if isinstance(place, Found)}.values())


def _hash(sources: list[Source], known: Mapping[Path, str], progress: Progress, result: Result) -> None:
    total = sum(source.path.stat().st_size for source in sources if source.path not in known)
    for source in sources:
        source.sha256 = known.get(source.path) or sha256(source.path, lambda n: progress("checksums", n, total))
        source.check_unchanged()
        if note := recognised(source.path.name, source.stamp[0], source.sha256):
            result.notes.append(note)

"""Which tensor of which file is which weight: every key and every shape, both ways."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ..components import COMPONENTS
from ..errors import CoDiError
from .layout import PREFIXES, TIED, Layout, published_file
from .sources import AGAIN, Source

LISTED = 20  # keys of each kind that a message lists
_FAMILIES = {
    "Stable Diffusion": ("cond_stage_model.", "first_stage_model.", "model.diffusion_model.input_blocks.", "conditioner."),
    "diffusers": ("down_blocks.", "up_blocks.", "mid_block.", "transformer_blocks."),
    "transformers": ("text_model.", "vision_model.", "encoder.layer.", "h.0.", "transformer.h."),
}


@dataclass(frozen=True)
class Found:
    """Where a weight lies: a file and that file's own key."""

    source: Source
    key: str


@dataclass
class Match:
    """Weights found, component -> component's key -> place; copies of tied weights by published key; what was not used."""

    weights: dict[str, dict[str, Found]]
    copies: dict[str, Found]
    left_out: int
    unexpected: list[str]

    def absent(self) -> list[str]:
        """Components of which the files hold nothing, though they hold others of the same published file."""
        given = {published_file(name) for name in self.weights}
        return [name for name in COMPONENTS if name not in self.weights and published_file(name) in given]


def match(
    sources: Sequence[Source], layout: Layout, *, components: Collection[str] = (), allow_unexpected: bool = False, listed: int = LISTED
) -> Match:
    """Assign the tensors of all files. Without `components`, all that the files hold any weight of.

    Raises CoDiError that lists, by file, foreign files and keys that are missing, unexpected, of another shape or given twice."""
    if unknown := sorted(set(components) - set(COMPONENTS)):
        raise CoDiError(f"unknown component {unknown[0]!r}: CoDi has {', '.join(COMPONENTS)}")
    found: dict[str, Found] = {}
    problems: list[str] = []
    unexpected: list[str] = []
    twice: dict[tuple[Source, Source], list[str]] = {}
    for source in sources:
        keys = {key: layout.published_key(key) for key in source}
        if not any(published in layout.entries for published in keys.values()):
            problems.append(_foreign(source))
            continue
        stray = [key for key, published in keys.items() if published is None]
        unexpected += [f"{source.path.name}: {key} {source.shapes[key]}" for key in stray]
        for key, published in keys.items():
            before = found.setdefault(published, Found(source, key)) if published is not None else None
            if before is not None and published in layout.entries and (before.source is not source or before.key != key):
                twice.setdefault((before.source, source), []).append(f"{before.key} and {key}" if before.key != key else key)
    for (first, second), lines in twice.items():
        where = f"in {first.path} and in {second.path}" if first is not second else f"twice in {first.path}"
        problems.append(f"{len(lines)} keys are {where}: {_list(lines, listed)}. Give each weight once")
    held = {layout.entries[key].component for key in found if key in layout.entries}
    wanted = [c for c in COMPONENTS if c in (components or held)]
    weights: dict[str, dict[str, Found]] = {}
    for component in wanted:
        weights[component], more = _component(component, found, layout, unexpected, sources, listed)
        problems += more
    if unexpected and not allow_unexpected:
        problems.append(
            f"{len(unexpected)} unexpected keys, which the published checkpoint does not have: {_list(unexpected, listed)}. "
            "If they are meant to be there, leave them out with --allow-unexpected"
        )
    if problems:
        raise CoDiError("\n".join(problems))
    copies = {key: found[key] for key in TIED if key in found}
    return Match(weights, copies, sum(key not in layout.entries for key in found), unexpected)


def _component(
    name: str, found: dict[str, Found], layout: Layout, unexpected: list[str], sources: Sequence[Source], listed: int
) -> tuple[dict[str, Found], list[str]]:
    """One component's weights, and what is wrong with them."""
    entries = layout.of(name)
    there = {key: found[key] for key in entries if key in found}
    problems = []
    given = ", ".join(str(s.path) for s in sources)
    if not there:
        problems.append(f"{name} is in none of the files given ({given}): the published release has it in {published_file(name)}; add it")
    elif missing := [f"{key} {entries[key].shape}" for key in entries if key not in found]:
        files = ", ".join(sorted({str(f.source.path) for f in there.values()}))
        problems.append(
            f"{name}: {len(missing)} of {len(entries)} keys are missing in {files}: {_list(missing, listed)}"
            f"{_renamed(missing, unexpected)}. If another file holds them, give it too, else: {AGAIN.lower()}"
        )
    wrong = {key: f for key, f in there.items() if f.source.shapes[f.key] != entries[key].shape}
    if wrong:
        lines = [f"{f.source.path.name}: {key} is {f.source.shapes[f.key]}, expected {entries[key].shape}" for key, f in wrong.items()]
        problems.append(f"{name}: {len(wrong)} keys have another shape: {_list(lines, listed)}{_mixed_up(name, wrong, layout)}. {AGAIN}")
    kinds = [f"{f.source.path.name}: {k} is {f.source.dtypes[f.key]}" for k, f in there.items() if not _is_kind(f, entries[k].floating)]
    if kinds:
        problems.append(f"{name}: {len(kinds)} keys hold another kind of numbers than the published ones: {_list(kinds, listed)}. {AGAIN}")
    return {entries[key].key: f for key, f in there.items()}, problems


_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _is_kind(place: Found, floating: bool) -> bool:
    return place.source.dtypes[place.key] in (_FLOATS if floating else _WHOLE_NUMBERS)


def _foreign(source: Source) -> str:
    first = ", ".join(list(source)[:3])
    family = next((name for name, begins in _FAMILIES.items() if any(key.startswith(begins) for key in source)), None)
    looks = f"; it looks like a file of {family}" if family else ""
    return (
        f"{source.path} belongs to another model: none of its {len(source.shapes)} keys ({first}, ...) is a weight of CoDi's{looks}. "
        f"Expected keys that begin with {', '.join(PREFIXES.values())}. Give files of the published CoDi checkpoint"
    )


def _mixed_up(name: str, wrong: dict[str, Found], layout: Layout) -> str:
    for other in COMPONENTS:
        places = [(layout.entries.get(PREFIXES[other] + key.removeprefix(PREFIXES[name])), f) for key, f in wrong.items()]
        if other != name and all(entry is not None and entry.shape == f.source.shapes[f.key] for entry, f in places):
            return f"; these are the shapes of {other}: the two were mixed up"
    return ""


def _renamed(missing: list[str], unexpected: list[str]) -> str:
    """A likely pair of old and new name, where keys of the same shape are unexpected."""
    shaped = [u for u in unexpected if u.partition(" ")[2].partition(" ")[2] == missing[0].partition(" ")[2]]
    close = difflib.get_close_matches(missing[0], shaped, n=1, cutoff=0.5) if shaped else []
    return f"; the unexpected {close[0]} may be the first of them, renamed" if close else ""


def _list(lines: Sequence[str], listed: int) -> str:
    return ", ".join(lines[:listed]) + (f", ... ({len(lines) - listed} more)" if len(lines) > listed else "")

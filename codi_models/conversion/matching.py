"""Which tensor of which file is which weight, and what becomes of the rest."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from ..components import COMPONENTS
from ..errors import CoDiError
from .branches import absent_branches
from .extras import SecondSet, groups, second_sets, size_of
from .kinds import earlier, full_precision_release, lacks_alignment, looks_like
from .layout import AVERAGE, DEFAULTS, PREFIXES, TIED, Layout, Name, published_file
from .sources import Found, Source

LISTED = 20  # keys of each kind that a message lists


@dataclass(frozen=True)
class Filled:
    """A weight that no file holds and that needs none: every element has this value."""

    value: float


@dataclass
class Match:
    """Weights, component -> component's own key -> where they come from; copies of them to be compared; what the user should know."""

    weights: dict[str, dict[str, Found | Filled]] = field(default_factory=dict)
    seconds: list[SecondSet] = field(default_factory=list)
    heads: dict[str, Found] = field(default_factory=dict)  # published key -> the copy that decides where it differs
    notes: list[str] = field(default_factory=list)


def match(
    sources: Sequence[Source], layout: Layout, *, components: Collection[str] = (), strict: bool = False, listed: int = LISTED
) -> Match:
    """Assign the tensors of all files. Without `components`, all that the files hold whole, or most of.

    strict: nothing may be left over that the layout does not know. Raises CoDiError that lists, by file, foreign files and weights that are
    missing, of another shape or of another kind of numbers."""
    if unknown := sorted(set(components) - set(COMPONENTS)):
        raise CoDiError(f"unknown component {unknown[0]!r}: CoDi has {', '.join(COMPONENTS)}")
    names = {source: {key: layout.name(key) for key in source} for source in sources}
    problems = [_foreign(s) for s in sources if not any(n and n.published in layout.entries for n in names[s].values())]
    result = Match()
    found = _chosen(names, layout, result)
    strays = [Found(source, key) for source, known in names.items() for key, name in known.items() if name is None]
    _left_over(strays, found, layout, result, strict=strict, listed=listed, problems=problems)
    for later, kept in TIED.items():
        if later in found and kept not in found:
            found[kept] = found[later]
            result.notes.append(f"{kept} is taken from {later}, which is tied to it")
        elif later in found and found[later].shape == found[kept].shape:
            result.heads[kept] = found[later]
    held = Counter(layout.entries[key].component for key in found if key in layout.entries)
    parts: dict[str, tuple[dict[str, Found | Filled], list[str]]] = {}
    for component in COMPONENTS:
        if component in components or (not components and held[component]):
            parts[component] = _component(component, found, layout, strays, sources, listed, result)
    whole = [component for component, (_, wrong) in parts.items() if not wrong]
    for component, (weights, wrong) in parts.items():
        few = held[component] < len(layout.of(component)) / 2
        if wrong and whole and few and not components:  # files may hold pieces of other components
            result.notes.append(
                f"{component}: {held[component]} of {len(layout.of(component))} weights are there, which is no use: left out"
            )
            continue
        problems += wrong
        result.weights[component] = weights
    if problems:
        raise CoDiError("\n".join(problems))
    if not components:
        given = {published_file(name) for name in result.weights}
        result.notes += [
            f"no weight of {name} is in the files given, though {published_file(name)} has it"
            for name in COMPONENTS
            if not held[name] and published_file(name) in given
        ]
    return result


def _chosen(names: dict[Source, dict[str, Name | None]], layout: Layout, result: Match) -> dict[str, Found]:
    """Published key -> the tensor to use, of all that a file or several hold for it. The rest is noted, or to be compared."""
    candidates: dict[str, list[tuple[Found, Name]]] = defaultdict(list)
    sets: Counter[tuple[Source, str, str]] = Counter()  # file, component, lead -> keys
    own: set[str] = set()  # components of which there is more than averages
    for source, known in names.items():
        for key, name in known.items():
            if name is None:
                continue
            part = _part(name.published, layout)
            candidates[name.published].append((Found(source, key), name))
            sets[source, part, name.lead] += name.copy == ""
            if not name.copy:
                own.add(part)
    found: dict[str, Found] = {}
    rest: dict[tuple[Source, str, str], list[tuple[Found, Name]]] = defaultdict(list)
    for published, places in candidates.items():
        part = _part(published, layout)
        usable = [(f, n) for f, n in places if not n.copy or (n.copy == AVERAGE and part not in own)]
        usable.sort(key=lambda place: (-sets[place[0].source, part, place[1].lead], place[1].lead.count(".")))
        if usable:
            found[published] = usable[0][0]
        for place, name in places:
            if not usable or place is not usable[0][0]:
                rest[place.source, name.lead, name.copy].append((place, name))
            elif name.copy:
                note = f"{place.source.path.name}: {part} is taken from the {name.copy} below {name.lead!r}, because there is no other"
                result.notes += [] if note in result.notes else [note]
    for (source, lead, copy), places in rest.items():
        if copy:
            size = size_of(sum(place.nbytes for place, _ in places))
            result.notes.append(f"{source.path.name}: {len(places)} tensors ({size}) below {lead!r} are a {copy}: left out")
        else:
            result.seconds += _repeated(source, lead, places, found, layout)
    return found


def _repeated(source: Source, lead: str, places: list[tuple[Found, Name]], found: dict[str, Found], layout: Layout) -> list[SecondSet]:
    """Weights that a file has a second time, or that another file has too: one set for each component and file of the first ones."""
    sets: dict[tuple[Source, str], SecondSet] = {}
    for place, name in places:
        first, part = found.get(name.published), _part(name.published, layout)
        if part and first is not None and first.shape == place.shape:
            known = part if first.source is source else f"{part} in {first.source.path.name}"
            sets.setdefault((first.source, part), SecondSet(lead, known, [])).pairs.append((place, first))
    for (other, part), second in sets.items():
        second.alike = other is not source and 2 * len(second.pairs) >= len(layout.of(part))  # not just pieces beside another component
    return list(sets.values())


def _part(published: str, layout: Layout) -> str:
    entry = layout.entries.get(published)
    return entry.component if entry else ""


def _left_over(
    strays: list[Found], found: dict[str, Found], layout: Layout, result: Match, *, strict: bool, listed: int, problems: list[str]
) -> None:
    """What the layout does not know: refused where `strict`, else noted by group, second sets of known weights apart."""
    if strict and strays:
        problems.append(f"{len(strays)} tensors are not of the published layout: {_list(groups(strays), listed)}")
        return
    seconds, rest = second_sets(strays, layout, found)
    result.seconds += seconds
    if rest:
        size = size_of(sum(stray.nbytes for stray in rest))
        result.notes.append(f"{len(rest)} tensors ({size}) are not of the published layout and left out: {_list(groups(rest), listed)}")
    for source in {stray.source: None for stray in strays}:
        extra = sum(stray.nbytes for stray in strays if stray.source is source)
        if full_precision_release(source, extra):
            result.notes.append(f"{source.path.name} looks like the full-precision release, which holds more than is used")


def _component(
    name: str, found: dict[str, Found], layout: Layout, strays: list[Found], sources: Sequence[Source], listed: int, result: Match
) -> tuple[dict[str, Found | Filled], list[str]]:
    """One component's weights, and what is wrong with them."""
    entries = layout.of(name)
    there = {key: found[key] for key in entries if key in found}
    given = ", ".join(str(s.path) for s in sources)
    if not there:
        return {}, [f"{name} is in none of the files given ({given}): the published release has it in {published_file(name)}; add it"]
    weights: dict[str, Found | Filled] = {entries[key].key: place for key, place in there.items()}
    files = ", ".join(sorted({str(f.source.path) for f in there.values()}))
    problems = []
    absent = [key for key in entries if key not in found]
    filled = {key: Filled(DEFAULTS.get(key, 0)) for key in absent if key in DEFAULTS or not entries[key].floating}
    branches = absent_branches(absent, layout.entries)
    filled |= {key: Filled(0) for keys in branches.values() for key in keys}
    if missing := [f"{key} {entries[key].shape}" for key in absent if key not in filled]:
        reason = (
            f". It looks like a file of June 2023, before latent alignment{earlier(sources)}: give today's file of that name"
            if lacks_alignment(absent, name, layout)
            else f"{_renamed(missing, strays)}. They cannot be made up: if another file holds them, give it too, else give another revision"
        )
        problems.append(f"{name}: {len(missing)} of {len(entries)} keys are missing in {files}: {_list(missing, listed)}{reason}")
    wrong = {key: f for key, f in there.items() if f.shape != entries[key].shape}
    if wrong:
        lines = [f"{f.source.path.name}: {key} is {f.shape}, expected {entries[key].shape}" for key, f in wrong.items()]
        problems.append(
            f"{name}: {len(wrong)} keys have another shape: {_list(lines, listed)}{_mixed_up(name, wrong, layout)}. "
            "It is another model, or one of other sizes (--config)"
        )
    kinds = [f"{f.source.path.name}: {k} is {f.dtype}" for k, f in there.items() if not _is_kind(f, entries[k].floating)]
    if kinds:
        problems.append(f"{name}: {len(kinds)} keys hold another kind of numbers than the published ones: {_list(kinds, listed)}")
    if not problems:
        if branches:
            result.notes.append(
                f"{name}: {len(branches)} absent branches begin as the identity; their {sum(map(len, branches.values()))} weights are zero "
                f"as in the published code: {_list(sorted(branches), listed)}"
            )
        if rest := [key for key in filled if not any(key in keys for keys in branches.values())]:
            result.notes.append(f"{name}: not given and not needed to make outputs: {_list(rest, listed)}")
        weights |= {entries[key].key: value for key, value in filled.items()}
    return weights, problems


_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _is_kind(place: Found, floating: bool) -> bool:
    return place.dtype in _FLOATS or (not floating and place.dtype in _WHOLE_NUMBERS)


def _foreign(source: Source) -> str:
    first = ", ".join(list(source)[:3])
    return (
        f"{source.path} belongs to another model: none of its {len(source.shapes)} keys ({first}, ...) is a weight of CoDi's"
        f"{looks_like(source)}. Expected keys that begin with {', '.join(PREFIXES.values())}. Give files of the published CoDi checkpoint"
    )


def _mixed_up(name: str, wrong: dict[str, Found], layout: Layout) -> str:
    for other in COMPONENTS:
        places = [(layout.entries.get(PREFIXES[other] + key.removeprefix(PREFIXES[name])), f) for key, f in wrong.items()]
        if other != name and all(entry is not None and entry.shape == f.shape for entry, f in places):
            return f"; these are the shapes of {other}: the two were mixed up"
    return ""


def _renamed(missing: list[str], strays: list[Found]) -> str:
    """A likely pair of old and new name, where tensors of the same shape are unknown."""
    shaped = [f"{s.source.path.name}: {s.key}" for s in strays if missing[0].partition(" ")[2] == str(s.shape)]
    close = difflib.get_close_matches(missing[0], shaped, n=1, cutoff=0.5) if shaped else []
    return f"; the unknown {close[0]} may be the first of them, renamed" if close else ""


def _list(lines: Sequence[str], listed: int) -> str:
    return ", ".join(lines[:listed]) + (f", ... ({len(lines) - listed} more)" if len(lines) > listed else "")

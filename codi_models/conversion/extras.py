"""Tensors that the layout does not have: those that are a second set of known ones, and the rest by group."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .layout import Layout
from .precision import difference
from .sources import Found

_MANY = 400  # known keys with one ending: such an ending tells nothing
_PARTS_OF_A_GROUP = 4


@dataclass
class SecondSet:
    """Tensors with the names and shapes of known ones, under another name: in `pairs`, each with the one that is used, if that is given."""

    label: str
    known: str
    pairs: list[tuple[Found, Found | None]]
    alike: bool = False  # they have to hold the same numbers, because both could be meant

    def described(self) -> str:
        """How many tensors of which file, and what they repeat."""
        file, size = self.pairs[0][0].source.path.name, sum(second.nbytes for second, _ in self.pairs)
        return f"{file}: {len(self.pairs)} tensors ({size_of(size)}) below {self.label!r} repeat names and shapes of {self.known!r}"

    def compared(self) -> tuple[bool, str]:
        """Whether the sets are equal, and half a sentence on how far they are apart. Reads both."""
        most = apart = size = 0.0
        both = [(second, first) for second, first in self.pairs if first is not None]
        for second, first in both:
            here = difference(second, first)
            most, apart, size = max(most, here[0]), apart + here[1], size + here[2]
        if not both:
            return False, "which are not in the files given"
        if most == 0:
            return True, "with the same numbers"
        relative = f", in all by {100 * (apart / size) ** 0.5:.3g} % of their norm" if size > 0 else ""
        return False, f"with other numbers, apart by at most {most:.3g}{relative}"


def second_sets(strays: Sequence[Found], layout: Layout, found: dict[str, Found]) -> tuple[list[SecondSet], list[Found]]:
    """Strays that repeat a part of the layout under another name, by pair of names, and what is left of them.

    Two keys belong together where they end alike and have one shape; of several readings the one that explains most keys wins."""
    endings: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for key, entry in layout.entries.items():
        for start in _ends(key):
            endings[key[start:], entry.shape].append(key)
    votes: dict[tuple[str, str], list[tuple[Found, str]]] = defaultdict(list)
    for stray in strays:
        for start in _ends(stray.key):
            ending = stray.key[start:]
            known = endings.get((ending, stray.shape), [])
            for key in known if len(known) <= _MANY else []:
                votes[stray.key[:start], key[: len(key) - len(ending)]].append((stray, key))
    sets: list[SecondSet] = []
    used: set[Found] = set()
    while votes:
        names = max(votes, key=lambda pair: (len(votes[pair]), len(os.path.commonprefix(pair)), len(pair[0])))
        pairs = votes.pop(names)
        if len(pairs) < 2:
            break
        used.update(stray for stray, _ in pairs)
        sets.append(SecondSet(*names, [(stray, found.get(key)) for stray, key in pairs]))
        votes = {pair: rest for pair, matches in votes.items() if (rest := [match for match in matches if match[0] not in used])}
    return sets, [stray for stray in strays if stray not in used]


def groups(strays: Sequence[Found]) -> list[str]:
    """One line a group of tensors whose names begin alike: file, name, count, bytes; largest first."""
    members: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for stray in strays:
        parts = stray.key.split(".")
        members[stray.source.path.name, ".".join(parts[: min(_PARTS_OF_A_GROUP, max(1, len(parts) - 2))])].append(stray)
    sizes = Counter({name: sum(stray.nbytes for stray in found) for name, found in members.items()})
    return [
        f"{file}: {group} ({len(members[file, group])} tensor{'s' if len(members[file, group]) > 1 else ''}, {size_of(size)})"
        for (file, group), size in sizes.most_common()
    ]


def size_of(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count} bytes"


def _ends(key: str) -> Iterator[int]:
    """Where a key's endings begin that have two parts or more, and the key itself."""
    start = 0
    while start >= 0 and key.count(".", start) >= 1:
        yield start
        start = key.find(".", start) + 1 or -1

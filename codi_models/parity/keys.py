"""State-dict layouts, compared both ways: what a fixture lists against what our network has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..conversion.layout import left_out
from ..errors import CoDiError
from ..libraries import stored_state
from .check import Check

Layout = dict[str, tuple[int, ...]]


def layout_of(module: nn.Module, prefix: str = "") -> Layout:
    """Keys in files, with the prefix, and shapes of a module's weights."""
    return {prefix + key: tuple(value.shape) for key, value in stored_state(module).items()}


def listed(info: Mapping[str, Any]) -> Layout | None:
    """Keys and shapes that a fixture lists; None where it lists none. Raises CoDiError for a list of something else."""
    keys = info.get("keys")
    if not isinstance(keys, list):
        return None
    try:
        return {str(key): tuple(int(n) for n in shape) for key, shape in keys}
    except (TypeError, ValueError) as error:
        raise CoDiError(f"`keys` is no list of [key, shape]: {error}") from error


def stem(info: Mapping[str, Any], ours: Iterable[str]) -> str:
    """What a fixture's list puts before our keys: nothing, or what the full checkpoint does (`optimus.`); weights are drawn by it."""
    published, ours = listed(info) or {}, list(ours)
    if not ours or any(key in published for key in ours):
        return ""
    found = (key.removesuffix(ours[0]) for key in published if key.endswith(f".{ours[0]}"))
    return next((prefix for prefix in found if all(prefix + key in published for key in ours)), "")


def unlisted_keys(info: Mapping[str, Any]) -> str:
    """What a fixture says instead of listing keys. The numbers then speak for them: weights are drawn by key."""
    return f"the json says {info['keys']!r}" if isinstance(info.get("keys"), str) else "the json lists none"


def problems(ours: Layout, published: Layout, prefix: str = "") -> list[str]:
    """Differences of two layouts in words; entries that are left out with a reason may be absent from ours.

    prefix: what stands before these keys in the full checkpoint, where the reasons are given."""
    missing = [key for key in published if key not in ours and left_out(prefix + key) is None]
    unknown = [key for key in ours if key not in published]
    shapes = [f"{key} is {ours[key]} instead of {published[key]}" for key in ours if key in published and ours[key] != published[key]]
    named = (("missing from ours", missing), ("ours alone", unknown), ("of another shape", shapes))
    return [f"{len(keys)} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}" for what, keys in named if keys]


def check_keys(check: Check, ours: Layout, prefix: str = "") -> None:
    """One row `keys`: the layout against the one that the fixture lists, untouched entries included; prefix as in `problems`."""
    published = listed(check.fixture.info)
    if listed_with := stem(check.fixture.info, ours):
        ours, prefix = {listed_with + key: shape for key, shape in ours.items()}, ""
    if published is None:
        check.fact("keys", True, f"{len(ours)} ours; {unlisted_keys(check.fixture.info)}")
        return
    untouched = [str(key) for key in check.fixture.info.get("untouched_keys") or ()]
    unlisted = {key for key in untouched if key not in published}  # what no weight is drawn for may be named here alone
    wrong = problems({key: shape for key, shape in ours.items() if key not in unlisted}, published, prefix)
    if lost := [key for key in untouched if key not in ours and left_out(prefix + key) is None]:
        wrong.append(f"{len(lost)} untouched ones without a counterpart: {', '.join(lost[:3])}")
    absent = [key for key in dict.fromkeys([*published, *untouched]) if key not in ours]
    why = f"{len(published)} listed, {len(ours)} ours"
    if absent:
        why += f", {len(absent)} left out: " + "; ".join(dict.fromkeys(reason for key in absent if (reason := left_out(prefix + key))))
    check.fact("keys", not wrong, "; ".join(wrong) or why)

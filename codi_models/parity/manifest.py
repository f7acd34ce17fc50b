"""The manifest of the full-size network: every key and shape, parameter counts, schedule samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..config import CoDiConfig
from ..conversion.layout import PREFIXES, layout, left_out
from .check import Check
from .derived import derived_shape
from .networks import Networks
from .schedules import TOLERANCE, sample_error, schedule_tables


def check_manifest(check: Check, networks: Networks) -> None:
    """One row a component and one a left-out entry, the counts, and the schedule tables."""
    info, config = check.fixture.info, CoDiConfig.official()
    ours = {key: entry.shape for key, entry in layout(config).entries.items()}
    keys = info["keys"]
    published = {key: tuple(entry["shape"]) for key, entry in keys.items()}
    for component, prefix in PREFIXES.items():
        inner = [other for other in PREFIXES.values() if other.startswith(prefix) and other != prefix]
        theirs = {key for key in published if key.startswith(prefix) and not key.startswith(tuple(inner)) and left_out(key) is None}
        mine = {key for key in ours if key.startswith(prefix) and not key.startswith(tuple(inner))}
        wrong = sorted(theirs ^ mine) + [key for key in sorted(theirs & mine) if ours[key] != published[key]]
        why = f"{len(wrong)} keys differ: {', '.join(wrong[:3])}" if wrong else f"{len(theirs)} keys and shapes under {prefix}"
        check.fact(component, not wrong, why)
    for key in published:
        if key not in ours:
            _explain(check, key, published[key], config)
    left = sum(key not in ours for key in published)
    check.fact("keys", set(ours) <= set(published), f"{len(published)} entries: {len(published) - left} ours, {left} left out")
    _counts(check, info, keys, ours)
    tables = schedule_tables()
    for name, at in (info.get("schedule_samples") or {}).items():
        if name in tables:
            error = sample_error(name, tables[name], at)
            check.measured(f"schedule_samples/{name}", error, TOLERANCE)
        else:
            check.skip(f"schedule_samples/{name}", "a table that is not known")


def _explain(check: Check, key: str, shape: tuple[int, ...], config: CoDiConfig) -> None:
    """Row of an entry that our networks do not have."""
    reason, expected = left_out(key), derived_shape(key, config)
    if reason is None:
        check.fact(key, False, "nothing of ours corresponds to it")
    elif expected is not None and expected != shape:
        check.fact(key, False, f"shape {shape}; {expected} follows from the configuration")
    else:
        check.fact(key, True, f"left out: {reason}")


def _counts(check: Check, info: Mapping[str, Any], keys: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Parameter counts of our layout against the published ones."""
    ours = {key: math.prod(shape) for key, shape in shapes.items() if keys.get(key, {}).get("kind") == "param"}
    tied = [key for pair in info.get("tied_parameters") or () for key in pair[1:]]
    if "total_params_unique" in info:
        total = sum(ours.values())
        check.fact("total_params_unique", total == info["total_params_unique"], f"{total} ours, {info['total_params_unique']} published")
    groups: Counter[str] = Counter()
    for key, entry in keys.items():
        if entry["kind"] == "param":
            groups[_group(key, info["parameter_counts"])] += ours.get(key, math.prod(entry["shape"]) if key in tied else 0)
    for name, count in (info.get("parameter_counts") or {}).items():
        check.fact(
            f"parameter_counts/{name}", groups[name] == count["param_elems"], f"{groups[name]} ours, {count['param_elems']} published"
        )
    elements = {key: ours[key] if key in ours else math.prod(entry["shape"]) for key, entry in keys.items()}
    for name, count in (info.get("parameter_subcounts") or {}).items():
        mine = sum(elements[key] for key in keys if _in_subcount(key, name))
        check.fact(f"parameter_subcounts/{name}", mine == count, f"{mine} ours, {count} published")


def _group(key: str, groups: Mapping[str, Any]) -> str:
    """Group of `parameter_counts` that a key belongs to: the longest one that its path starts with."""
    path = key.removeprefix("model.diffusion_model.").replace("clip.model.", "clip.", 1).replace("clap.model.", "clap.", 1)
    found = [name for name in groups if path.startswith(f"{name}.") or path == name]
    return max(found, key=len, default="schedule")


def _in_subcount(key: str, name: str) -> bool:
    """Whether a parameter belongs to a sub-count such as `unet_image.main_path.temporal_layers`."""
    part, _, rest = name.partition(".")
    path = key.removeprefix("model.diffusion_model.").replace("clip.model.", "clip.", 1)
    if part == "clip":
        temporal = ".temporal_self_attn." in path
        return path.startswith("clip.vision_model.") and temporal == rest.endswith("temporal_layers")
    if not path.startswith(f"{part}."):
        return False
    path = path.removeprefix(f"{part}.")
    kind = (
        "environment_encoder" if path.startswith("connecters_out.") else "connector_attention" if "connecters_in." in path else "main_path"
    )
    temporal = ".temporal_attn." in path or ".temporal_rel_pos_bias." in path or ".frameshiftblock." in path or ".ff.proj_" in path
    return rest == (f"{kind}.temporal_layers" if temporal else kind)

"""Residual branches that start as the identity: where the last layer is absent, zeros are what the published code computes with.

The published code sets these last layers to zero when it builds its networks and loads files without asking for all keys, so a branch
that no training stage has changed need not be in a file. Every other layer starts at random: without it a file is of no use."""

from __future__ import annotations

import re
from collections.abc import Collection

_BRANCHES = (
    (r"(.+\.frameshiftblock)\.out_layers\..+", "out_layers.2"),
    (r"(.+)\.temporal_(?:attn|rel_pos_bias)\..+", "temporal_attn.to_out"),
    (r"(.+)\.ff\.proj_(?:in|out)\..+", "ff.proj_out.1"),
    (r"(.+)\.(?:in_layers|emb_layers|out_layers)\..+", "out_layers.3"),
    (r"(.+)\.(?:norm|proj_in|transformer_blocks|proj_out)\..+", "proj_out"),
)
"""Members of a branch, and its last layer, below the part in brackets: frame shift, temporal attention, temporal feed-forward,
residual block, cross-attention block (those of latent alignment too)."""

_WITH_BRANCHES = re.compile(r"(model\.diffusion_model\.|clip\.model\.vision_model\.)")
_NAMES = ("frame shift", "temporal attention", "temporal feed-forward", "residual block", "attention block")


def branch(key: str, known: Collection[str]) -> tuple[str, str] | None:
    """Name of the branch that a published key belongs to, and the key of the last layer's weight; None where it belongs to none.

    known: all published keys of the configuration."""
    if _WITH_BRANCHES.match(key):
        for (pattern, last), name in zip(_BRANCHES, _NAMES, strict=True):
            if (found := re.fullmatch(pattern, key)) and (weight := f"{found[1]}.{last}.weight") in known:
                return f"{name} {found[1]}", weight
    return None


def absent_branches(missing: Collection[str], known: Collection[str]) -> dict[str, list[str]]:
    """Branches without their last layer -> their missing keys, all of which may be zero. Keys of no such branch are not in it."""
    lacking = set(missing)
    branches: dict[str, list[str]] = {}
    for key in missing:
        found = branch(key, known)
        if found and found[1] in lacking:
            branches.setdefault(found[0], []).append(key)
    return branches

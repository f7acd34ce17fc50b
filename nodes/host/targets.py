"""Which modalities a pass is to predict, told through the host's transformer options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGETS = "codi_targets"
"""Key of transformer_options for the modalities that a pass is to predict; absent: all."""


def with_options(model_options: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Model options with other transformer options; the host's own dictionaries stay as they are."""
    return {**model_options, "transformer_options": {**(model_options.get("transformer_options") or {}), **changes}}

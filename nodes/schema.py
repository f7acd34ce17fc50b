"""What all node schemas share: categories, our own types, fields that only newer hosts know."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

CATEGORY = "CoDi"

CodiModel = io.Custom("CODI_MODEL")
"""An opened model folder (nodes.host.handle.CoDiHandle)."""


CODI_TIP = "The opened model, from Load CoDi or Load CoDi (joint)."


def schema(**fields: Any) -> io.Schema:
    """io.Schema without the fields that an older host does not know."""
    fields.setdefault("category", CATEGORY)
    return io.Schema(**{k: v for k, v in fields.items() if k in io.Schema.__dataclass_fields__})


ADVANCED = {"advanced": True}
"""extra_dict of inputs that newer hosts fold away."""

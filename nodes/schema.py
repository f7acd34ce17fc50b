"""What all nodes share: categories, our own types, fields that only newer hosts know, checks of what they are given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from .host.checks import admitted

PROMPTS, SAMPLING, LATENTS, MEDIA, MODELS, TOOLS = (
    f"CoDi/{name}" for name in ("prompts", "sampling", "latents", "media", "models", "tools")
)
"""Categories of the node menu."""

CodiModel = io.Custom("CODI_MODEL")
"""An opened model folder (nodes.host.handle.CoDiHandle)."""


CODI_TIP = "The opened model, from Load CoDi or Load CoDi (joint)."


MODELS_OWN = "model's own"
"""Choice in a list of names for what the model's configuration recommends; for numbers it is UNSET."""

UNSET = -1


def own(value: Any, default: Any) -> Any:
    """What a widget was set to, or the model's default where it was left at MODELS_OWN or UNSET."""
    return default if value in (MODELS_OWN, UNSET) else value


def schema(**fields: Any) -> io.Schema:
    """io.Schema without the fields that an older host does not know."""
    return io.Schema(**{k: v for k, v in fields.items() if k in io.Schema.__dataclass_fields__})


ADVANCED = {"advanced": True}
"""extra_dict of inputs that newer hosts fold away."""


class Node(io.ComfyNode):
    """A node whose `execute` sees only what its schema takes: anything else is refused with a CoDiError that names the input."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        own = cls.__dict__.get("execute")
        # The host copies node classes, attributes and all: what is checked already stays as it is.
        if isinstance(own, classmethod) and not hasattr(own.__func__, "checked"):
            cls.execute = classmethod(_checked(own.__func__))  # type: ignore[method-assign,assignment]


def _checked(execute: Callable[..., Any]) -> Callable[..., Any]:
    names = [*inspect.signature(execute).parameters][1:]

    @functools.wraps(execute)
    def run(cls: Any, *first: Any, **inputs: Any) -> Any:
        declared = cls.define_schema()
        inputs |= dict(zip(names, first, strict=False))
        return execute(cls, **admitted(declared.inputs, inputs, lists=declared.is_input_list))

    run.checked = True  # type: ignore[attr-defined]
    return run

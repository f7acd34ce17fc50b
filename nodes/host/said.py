"""Words to the user while a graph runs: a line in the log, once a run, and the same on the node that runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import torch
from comfy_execution.utils import get_executing_context

from ...codi_models.errors import CoDiError

_said: set[tuple[str, str]] = set()


def say(words: str) -> None:
    """One warning in the log and on the node; each only once in a run of a node."""
    context = get_executing_context()
    run = (context.prompt_id, context.node_id) if context else ("", "")
    if (str(run), words) in _said:
        return
    _said.add((str(run), words))
    logging.warning("CoDi: %s", words)
    if context is not None:
        _show(words, context.node_id)


def forget() -> None:
    """A run begins: what was said may be said again."""
    _said.clear()


def _show(words: str, node: str) -> None:
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and server.client_id is not None:
        server.send_progress_text(words, node, server.client_id)


OURS = (mm.InterruptProcessingException, torch.cuda.OutOfMemoryError, CoDiError)
"""What is no fault of a patch and goes on to the host as it is."""


def run_patch(patch: Callable[..., Any], *args: Any, results: int = 0) -> Any:
    """What a patch makes; `results`: how many values it must give. Raises CoDiError naming the patch where it fails."""
    try:
        made = patch(*args)
        if results and len(made) != results:
            raise ValueError(f"it gives {len(made)} values instead of {results}")
        return made
    except OURS:
        raise
    except Exception as error:
        raise CoDiError(
            f"the model patch {name_of(patch)} cannot be used with this MODEL: {error}. Take the node that adds it out"
        ) from error


def name_of(patch: Any) -> str:
    """Where a patch comes from: the file and the class of its node."""
    module = str(getattr(patch, "__module__", "")).replace("\\", "/").rpartition("/")[2]
    return f"{getattr(patch, '__qualname__', type(patch).__name__).partition('.')[0]} ({module})"

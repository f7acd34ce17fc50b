"""Where model folders lie: those shipped with the pack, and those in the host's models/codi."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...codi_models.errors import CoDiError
from ...codi_models.model import SHIPPED

KEY = "codi"
"""Name of the folder type, usable in extra_model_paths.yaml."""


def register() -> None:
    """Announce models/codi to the host. Calling it again changes nothing."""
    folder_paths.add_model_folder_path(KEY, os.path.join(folder_paths.models_dir, KEY), is_default=True)


def model_names() -> list[str]:
    """Model folders that can be loaded; the user's own come first where a name is taken twice."""
    return list(_found()) or ["codi-mini"]


def model_folder(name: str) -> Path:
    """Folder of a name from `model_names`. Raises CoDiError naming the folders that were searched."""
    found = _found()
    if name not in found:
        raise CoDiError(
            f"no CoDi model named {name!r}: a model is a folder with a config.json in {', '.join(str(r) for r in _roots())}; "
            f"found there: {', '.join(found) or 'none'}"
        )
    return found[name]


def _roots() -> list[Path]:
    return [Path(p) for p in folder_paths.get_folder_paths(KEY)] + [SHIPPED]


def _found() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in _roots():
        for file in sorted(root.glob("*/config.json")):
            found.setdefault(file.parent.name, file.parent)
    return found

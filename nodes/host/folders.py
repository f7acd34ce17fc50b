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
            f"found there: {', '.join(found) or 'none'}{_unconverted()}"
        )
    return found[name]


def inside(path: str | Path, root: str | Path) -> bool:
    """Whether a path lies in a folder of the host, links followed. False for what is no path at all: NUL, a name that is too long."""
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        return False  # by its name alone: to look at a path may mean to ask another machine
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        return False
    return Path(path).resolve().is_relative_to(Path(root).resolve())


def _roots() -> list[Path]:
    return [Path(p) for p in folder_paths.get_folder_paths(KEY)] + [SHIPPED]


def _found() -> dict[str, Path]:
    """Folders with a config.json: below a root (also one level deeper, as `folder/name`), and a root that is a model itself."""
    found: dict[str, Path] = {}
    for root in _roots():
        files = [*root.glob("config.json"), *sorted(root.glob("*/config.json")), *sorted(root.glob("*/*/config.json"))]
        for folder in (file.parent for file in files):
            name = folder.relative_to(root).as_posix() if folder != root else root.name
            found.setdefault(name, folder)
    return found


def _unconverted() -> str:
    """Advice where checkpoint files lie in the folders as they were published."""
    files = [str(path) for root in _roots() for depth in ("*.pth", "*/*.pth") for path in sorted(root.glob(depth))]
    if not files:
        return ""
    return f". {files[0]} has to be converted first: python -m codi_models convert {' '.join(files)} --out {Path(files[0]).parent / 'codi'}"

"""Where model folders lie: those shipped with the pack, and those in the host's models/codi."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...codi_models.components import COMPONENTS, component_path
from ...codi_models.errors import CoDiError
from ...codi_models.model import SHIPPED

KEY = "codi"
"""Name of the folder type, usable in extra_model_paths.yaml."""


def register() -> None:
    """Announce models/codi to the host. Calling it again changes nothing."""
    folder_paths.add_model_folder_path(KEY, os.path.join(folder_paths.models_dir, KEY), is_default=True)


OFFICIAL = "codi"
"""Name of the folder that the official model is installed in."""

_NOT_INSTALLED = "CoDi (official, not installed: "
_SIZE = "11.5 GB"


def model_names() -> list[str]:
    """Model folders that can be loaded, the user's own first where a name is taken twice; last the official one, where it is not whole."""
    return (list(_found()) or ["codi-mini"]) + ([f"{_NOT_INSTALLED}{_SIZE})"] if missing_parts() else [])


def official_folder() -> Path:
    """Where the official model is, or is going to be: below the first place of models/codi."""
    found = _found().get(OFFICIAL)
    return found if found is not None else Path(folder_paths.get_folder_paths(KEY)[0]) / OFFICIAL


def missing_parts() -> list[str]:
    """Components of the official model that are not there."""
    folder = official_folder()
    return [name for name in COMPONENTS if not component_path(folder, name).is_file()]


def model_folder(name: str) -> Path:
    """Folder of a name from `model_names`, or from when the official model was not installed. Raises CoDiError naming the folders that
    were searched."""
    found = _found()
    if name == OFFICIAL or name.startswith(_NOT_INSTALLED):
        if OFFICIAL in found:
            return found[OFFICIAL]
        raise CoDiError(
            f"CoDi's official model is not installed. Press the button on the loader to fetch it ({_SIZE}), or call "
            f"`python codi.py download codi --convert --out {official_folder()}` in the pack's folder{_unconverted()}"
        )
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


def unconverted() -> list[Path]:
    """Files with the names of published ones in the places of models/codi, each name once: the first that is found."""
    names = {entry.published_file for entry in COMPONENTS.values()}
    found: dict[str, Path] = {}
    for root in (Path(p) for p in folder_paths.get_folder_paths(KEY)):
        for depth in ("*.pth", "*/*.pth", "*/*/*.pth", "*/*/*/*.pth"):
            for path in sorted(root.glob(depth)):
                if path.name in names and path.is_file():
                    found.setdefault(path.name, path)
    return list(found.values())


def _unconverted() -> str:
    """Advice where checkpoint files lie in the folders as they were published."""
    files = " ".join(map(str, unconverted()))
    return f". Files lie there that can be converted: `python codi.py convert {files} --out {official_folder()}`" if files else ""

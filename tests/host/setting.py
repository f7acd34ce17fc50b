"""Where the pack and the host are, and a base directory for the host.

A host is looked for in this order: COMFYUI_PATH, the ComfyUI that the pack lies in, ~/comfy/ComfyUI."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


def import_pack() -> None:
    """Import the pack as package `codi`, once, without a host in reach."""
    if "codi" in sys.modules:
        return
    # The root of the pack has a folder `nodes`, and so has the host: `import nodes` must find the host's.
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != PACK and not (Path(p or ".") / "comfy_execution").is_dir()]
    spec = importlib.util.spec_from_file_location("codi", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["codi"] = module
    spec.loader.exec_module(module)


def find_host() -> Path | None:
    """Folder of the ComfyUI to test in, or None."""
    if given := os.environ.get("COMFYUI_PATH"):
        return Path(given).expanduser().resolve()
    for folder in (*PACK.parents, Path.home() / "comfy" / "ComfyUI"):
        if (folder / "comfy_execution").is_dir() and (folder / "main.py").is_file():
            return folder
    return None


HOST = find_host()


def find_front_end() -> Path | None:
    """Root of the front end to test with, or None for the host's own. CODI_FRONTEND is a folder that `pip install --no-deps --target` put
    comfyui-frontend-package into, or the root itself. Raises ValueError for a folder that holds none."""
    given = os.environ.get("CODI_FRONTEND")
    if not given:
        return None
    folder = Path(given).expanduser().resolve()
    for root in (folder / "comfyui_frontend_package" / "static", folder):
        if (root / "index.html").is_file():
            return root
    raise ValueError(
        f"CODI_FRONTEND={given} holds no front end: run "
        f"`pip install --no-deps --target {given} comfyui-frontend-package==1.58.1`, or unset it"
    )


def host_version(folder: Path) -> str:
    """Version that a ComfyUI folder states."""
    file = folder / "comfyui_version.py"
    return file.read_text(encoding="utf-8").split('"')[-2] if file.is_file() else "unknown version"


def make_base(folder: Path, *, official: bool = False) -> Path:
    """Makes `folder` a ComfyUI base directory with the models `tiny` and `tiny-shifted`, random weights, and the host's example image.

    official: `tiny` is there under the official model's name too, so that its templates run."""
    from host.tiny import create_shifted, create_tiny

    models = folder / "models" / "codi"
    create_tiny(models / "tiny")
    create_shifted(models / "tiny", models / "tiny-shifted")
    if official:
        (models / "codi").symlink_to(models / "tiny", target_is_directory=True)
    if HOST is not None and (example := HOST / "input" / "example.png").is_file():
        (folder / "input").mkdir(exist_ok=True)
        shutil.copy(example, folder / "input")
    if not (PACK / "weights" / "codi-mini" / "config.json").is_file():
        (models / "codi-mini").symlink_to(models / "tiny", target_is_directory=True)
    return folder

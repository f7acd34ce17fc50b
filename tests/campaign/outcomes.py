"""What tries raise beside the pack's own errors."""

from __future__ import annotations

from pathlib import Path


class Obscure(Exception):
    """An answer that is neither sound nor a clear error."""


class Stopped(Exception):
    """Work that was long, and ended when the user's interrupt was asked for."""


class HalfFile(Exception):
    """Something is left that is no whole file."""


def whole_files(folder: Path) -> None:
    """Raises HalfFile for a file below `folder` that its own format cannot read to the end. Files that say that they are partial count as
    none: `.part`, `.partial`, and hidden ones."""
    import json

    import numpy as np
    from PIL import Image
    from safetensors import safe_open

    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name.startswith(".") or path.suffix in (".part", ".partial", ".tmp", ".lock"):
            continue
        try:
            if path.suffix == ".safetensors":
                with safe_open(str(path), "pt") as file:
                    for key in file.keys():
                        file.get_tensor(key)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".jsonl":
                for line in path.read_text(encoding="utf-8").splitlines():
                    json.loads(line)
            elif path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
            elif path.suffix == ".npz":
                with np.load(path) as arrays:
                    for name in arrays:
                        arrays[name]
            elif path.suffix == ".pt":
                import torch

                torch.load(path, weights_only=True)
        except Exception as error:
            raise HalfFile(f"{path.relative_to(folder)}: {type(error).__name__}: {str(error)[:100]}") from error

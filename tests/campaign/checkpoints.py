"""Published checkpoints, drawn and damaged: converted whole, or refused, with nothing left behind."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from outcomes import Obscure, whole_files


def tries(seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """One file of four, damaged in its bytes."""
    import published
    from codi.codi_models.conversion.convert import convert
    from host.tiny import tiny_config
    from mutated_media import mutate

    dice, folder, config = random.Random(seed), Path(tempfile.mkdtemp()), tiny_config()
    whole = list(published.write(folder / "whole", config).values())
    while True:
        path = dice.choice(whole)
        content, name = mutate(path.read_bytes(), dice), path.name

        def attempt(content: bytes = content, name: str = name) -> None:
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            (folder / name).write_bytes(content)
            try:
                convert([folder / name], out, config=config)
            finally:
                (folder / name).unlink()
                if out.exists():
                    whole_files(out)
            if not list(out.glob("*.safetensors")):
                raise Obscure("converted to nothing")

        yield f"checkpoint {name}, {len(content)} bytes", attempt

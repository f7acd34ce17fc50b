"""Commands that are killed at any moment, and disks that fill up: what is left is whole, and the same command goes on."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from outcomes import Obscure, whole_files

_LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
del sys.argv[1]
runpy.run_module("codi_models", run_name="__main__", alter_sys=True)
"""
"""A command with a limit to the size of its files: writing fails in the middle of one, as on a full disk."""


def tries(seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """train, generate, batch and convert of a tiny model, each with one kill or one limit of file sizes."""
    import published
    from host.setting import PACK
    from host.tiny import create_tiny, tiny_config

    dice, folder = random.Random(seed), Path(tempfile.mkdtemp())
    create_tiny(folder / "model")
    published.write(folder / "published", tiny_config())
    tiny_config().save(folder / "sizes.json")
    pairs = folder / "pairs"
    pairs.mkdir()
    for number in range(4):
        (pairs / f"{number}.txt").write_text(f"a {number}")
        shutil.copy(PACK / "docs" / "images" / next(p.name for p in (PACK / "docs" / "images").glob("*.png")), pairs / f"{number}.png")
    items = [{"id": f"i{n}", "prompts": ["a red star"], "outputs": ["image", "text"], "settings": {"steps": 2}} for n in range(6)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, items)))
    out = folder / "out"
    model = ["--model", folder / "model"]
    made = ["--text", "a star", "--outputs", "image,audio,text", "--steps", "2", "--count", "3"]
    where = ["--out", out / "model", "--runs", out / "runs"]
    commands: dict[str, list[Any]] = {
        "generate": ["generate", *model, *made, "--out", out],
        "batch": ["batch", folder / "manifest.jsonl", *model, "--out", out, "--raw"],
        "convert": ["convert", folder / "published", "--config", folder / "sizes.json", "--out", out],
        "train": ["train", "--base", folder / "model", "--data", pairs, "--steps", "6", "--batch", "2", *where,
                  "--stage", "denoiser", "--modality", "image"],
    }  # fmt: skip

    def run(command: list[Any], limit: int | None = None, kill: float | None = None) -> tuple[int, str]:
        start = ["-c", _LIMITED, str(limit)] if limit else ["-m", "codi_models"]
        process = subprocess.Popen(
            [sys.executable, *start, *map(str, command)], cwd=PACK, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if kill is not None:
            time.sleep(kill)
            process.kill()
        said = process.communicate(timeout=200)
        return process.returncode, said[1]

    while True:
        name = dice.choice(list(commands))
        kill, limit = (dice.uniform(2.0, 12.0), None) if dice.random() < 0.6 else (None, dice.choice((1, 100, 5000, 60_000, 400_000)))

        def attempt(name: str = name, kill: float | None = kill, limit: int | None = limit) -> None:
            shutil.rmtree(out, ignore_errors=True)
            code, said = run(commands[name], limit, kill)
            if limit and code not in (0, 1, 2) or "Traceback" in said:
                raise Obscure(f"exit {code}: {said[-250:]}")
            if out.exists():
                whole_files(out)
            code, said = run(commands[name])
            if code != 0:
                raise Obscure(f"run again: exit {code}: {said[-250:]}")
            whole_files(out)
            if left := [p.name for p in out.rglob("*") if ".partial" in p.name or p.suffix == ".tmp"]:
                raise Obscure(f"leftovers of the run before: {left[:3]}")

        yield f"{name}, {f'killed after {kill:.1f} s' if kill else f'files of at most {limit} bytes'}", attempt

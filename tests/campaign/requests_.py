"""Requests: settings, recipes of texts, batch items and options of the command line, with values of any kind and size."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from outcomes import Obscure

NUMBERS = [0, 1, -1, 2, 3, 7, 64, 100, 0.5, 1e-9, -1e-9, 1e9, 1e18, 2**63, 2**64 - 1, 2**64, 10**30, float("nan"), float("inf")]
WORDS = [
    "", "image", "cross", "self", "off", "sum", "linear", "euler", "normal", "together", "video, audio+text", "image=5,text=2",
    "3,image=5", "video<audio=0.5", "a" * 100_000, "image," * 20_000, "=,=", "é", "\0", "../..", "image=nan", "[", "{}", "null", "1e400",
]  # fmt: skip


_OPTIONS = (
    "outputs size frames steps cfg seed count sampler scheduler wiring mix alignment alignment-guidance schedule image audio video text "
    "out keep start length batch-size dtype device"
)


def value(dice: random.Random, depth: int = 0) -> Any:
    """Anything that JSON holds."""
    kind = dice.randrange(7 if depth < 3 else 5)
    if kind < 2:
        return dice.choice(NUMBERS)
    if kind < 4:
        return dice.choice(WORDS)
    if kind == 4:
        return dice.choice([None, True, False])
    if kind == 5:
        return [value(dice, depth + 1) for _ in range(dice.randrange(4))]
    names = ["image", "text", "kind", "value", "path", "weight", "", "x"]
    return {dice.choice(names): value(dice, depth + 1) for _ in range(dice.randrange(4))}


def tries(seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Requests for a tiny model, resolved and not run."""
    from codi.codi_models import __main__ as command
    from codi.codi_models.alignment import parse_directions
    from codi.codi_models.batch.manifest import read_manifest
    from codi.codi_models.keyframes import Curve
    from codi.codi_models.settings import OVERRIDES, Settings
    from codi.codi_models.stages import parse_schedule
    from host.tiny import create_tiny

    dice, folder = random.Random(seed), Path(tempfile.mkdtemp())
    create_tiny(folder / "model")
    place = folder / "a" / "b" / "c"  # for paths that lead out of it
    place.mkdir(parents=True)
    os.chdir(place)
    from codi.codi_models.config import CoDiConfig

    config = CoDiConfig.load(folder / "model" / "config.json")
    outputs = ["image", "video", "audio", "text"]

    def settings() -> tuple[str, Callable[[], Any]]:
        asked = {name: value(dice) for name in dice.sample(sorted(OVERRIDES), dice.randrange(1, 4))}
        asked |= {name: dice.choice(NUMBERS) for name in ("seed", "count", "batch_size") if dice.random() < 0.2}
        wanted = dice.choice([outputs, ["image"], value(dice), dice.sample(outputs, 2)])
        return f"settings {wanted!r:.80} {asked!r:.200}", lambda: Settings.resolve(config, wanted, **asked).to_dict()

    def text() -> tuple[str, Callable[[], Any]]:
        parse = dice.choice([parse_directions, Curve.parse, lambda t: parse_schedule(t, outputs)])
        given = dice.choice(
            [*WORDS, ",".join(dice.choice(["0:1", "1:0", "image", "x<y=1", "video<text=2", "audio+text"]) for _ in range(6))]
        )
        return f"text {given!r:.200}", lambda: parse(given)

    def item() -> tuple[str, Callable[[], Any]]:
        line = {"id": "a", "outputs": ["text"], "prompts": ["a red star"], "seed": 1, "settings": {}}
        for name in dice.sample(["id", "outputs", "prompts", "seed", "settings", "keep", "start", "length", "other"], dice.randrange(1, 4)):
            line[name] = value(dice)
        content = json.dumps(line) if dice.random() < 0.8 else json.dumps(line)[: dice.randrange(1, 80)]

        def attempt() -> None:
            path = folder / "manifest.jsonl"
            path.write_text(content + "\n", encoding="utf-8", errors="surrogatepass")
            list(read_manifest(path, config))

        return f"item {content[:250]}", attempt

    def options() -> tuple[str, Callable[[], Any]]:
        known = [f"--{name}" for name in _OPTIONS.split()]
        given = ["generate", "--model", str(folder / "model")]
        for name in dice.sample(known, dice.randrange(1, 5)):
            given += [name, str(dice.choice([*WORDS[:-1], *NUMBERS, "text", "1", "/nowhere/at/all", str(folder)]))[:3000].replace("\0", "")]
        given += ["--steps", str(dice.choice([0, 1, -1, 10**9]))] + (["--out", str(folder / "out")] if "--out" not in given else [])

        def attempt() -> None:
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                try:
                    code = command.main(given)
                except SystemExit as end:
                    code = end.code
            if code not in (0, 2) or (code == 2 and len(said.getvalue()) < 20):
                raise Obscure(f"exit {code}: {said.getvalue()[-200:]}")

        return f"options {given[3:]!r:.280}", attempt

    while True:
        yield dice.choice([settings, settings, text, item, item, options])()

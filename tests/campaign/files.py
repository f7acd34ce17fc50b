"""Files that are read as text or as data sets: a model's config.json, recipes, vocabularies, folders and tars of a user's pairs."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from requests_ import NUMBERS, value


def tries(seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Whole files with something in them replaced, cut off or doubled."""
    from codi.codi_models.components import COMPONENTS, build_component
    from codi.codi_models.config import CoDiConfig
    from codi.codi_models.model import CoDi
    from codi.codi_models.training.dataset import open_dataset
    from codi.codi_models.training.recipe import Recipe
    from host.setting import PACK
    from host.tiny import create_tiny
    from mutated_media import mutate

    dice, folder = random.Random(seed), Path(tempfile.mkdtemp())
    create_tiny(folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    recipe = json.loads((PACK / "recipes" / "codi-mini.json").read_text())
    pixels = _picture()

    def changed(content: Any) -> Any:
        """A copy with one to three of its values replaced."""
        copy = json.loads(json.dumps(content))
        for _ in range(dice.choice((1, 1, 3))):
            place = copy
            while True:
                key = (
                    dice.choice(list(place))
                    if isinstance(place, dict) and place
                    else dice.randrange(len(place))
                    if isinstance(place, list) and place
                    else None
                )
                if key is None:
                    break
                if isinstance(place[key], dict | list) and dice.random() < 0.8:
                    place = place[key]
                    continue
                old = place[key]
                numeric = isinstance(old, int | float) and not isinstance(old, bool)
                place[key] = dice.choice(NUMBERS) if numeric and dice.random() < 0.7 else value(dice)
                break
        return copy

    def model() -> tuple[str, Callable[[], Any]]:
        other = changed(config)

        def attempt() -> None:
            path = folder / "config.json"
            path.write_text(json.dumps(other), encoding="utf-8", errors="surrogatepass")
            found = CoDiConfig.load(path)
            for name in COMPONENTS:
                build_component(name, found, device="meta")

        return f"config {_difference(config, other)}", attempt

    def training() -> tuple[str, Callable[[], Any]]:
        other = changed(recipe)

        def attempt() -> None:
            path = folder / "recipe.json"
            path.write_text(json.dumps(other), encoding="utf-8", errors="surrogatepass")
            Recipe.load(path)

        return f"recipe {_difference(recipe, other)}", attempt

    def vocabulary() -> tuple[str, Callable[[], Any]]:
        name = dice.choice(["bert_vocab.txt", "gpt2_vocab.json", "gpt2_merges.txt", "clip_bpe.txt.gz"])
        content = mutate((folder / "model" / name).read_bytes(), dice)

        def attempt() -> None:
            place = folder / "words"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for path in (folder / "model").iterdir():
                (place / path.name).symlink_to(path)
            (place / name).unlink()
            (place / name).write_bytes(content)
            opened = CoDi.from_pretrained(place, device="cpu")
            opened.clip_tokenizer(["a red star", "é😀"])
            opened.text_tokenizers.decode([opened.text_tokenizers.encode_target(["a red star"])[0].tolist()])

        return f"vocabulary {name}", attempt

    def pairs() -> tuple[str, Callable[[], Any]]:
        names = [
            dice.choice(["a.png", "a.txt", "b.png", "b.txt", "b.json", "c.wav", ".png", "d.b.txt", "../e.txt", "/f.png"]) for _ in range(4)
        ]
        contents = {
            n: pixels if n.endswith("png") else dice.choice([b"a star", b"\xff\xfe", b"", b'{"caption": 3}', b"{", b"x" * 2_000_000])
            for n in names
        }
        manifest = dice.random() < 0.4
        lines = [json.dumps({"text": value(dice), "image": dice.choice(["a.png", value(dice)])}) for _ in range(3)]
        packed = dice.random() < 0.5
        damaged = dice.random() < 0.3

        def attempt() -> None:
            place = folder / "pairs"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            if packed and not manifest:
                buffer = io.BytesIO()
                with tarfile.open(fileobj=buffer, mode="w") as tar:
                    for name, content in contents.items():
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                (place / "0.tar").write_bytes(mutate(buffer.getvalue(), dice) if damaged else buffer.getvalue())
            else:
                for name, content in contents.items():
                    (place / Path(name).name).write_bytes(content)
                if manifest:
                    (place / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
            data = open_dataset(place, CoDiConfig.load(folder / "model" / "config.json"))
            data.check()
            data.corpus()

        return f"pairs {'manifest' if manifest else 'tar' if packed else 'files'} {names}", attempt

    while True:
        yield dice.choice([model, model, training, vocabulary, pairs])()


def _picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (20, 12), (200, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def _difference(before: Any, after: Any, where: str = "") -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        return " ".join(filter(None, (_difference(before[k], after.get(k), f"{where}.{k}") for k in before)))
    return "" if json.dumps(before) == json.dumps(after) else f"{where}={str(after)[:60]!r}"

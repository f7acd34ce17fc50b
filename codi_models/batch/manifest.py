"""The manifest: one JSON object a line, each an item to make; lines that cannot be used become failures, not errors.

{"id": "star-7", "prompts": [{"kind": "text", "value": "a blue star"}, {"kind": "audio", "path": "knock.wav", "weight": 0.5}],
 "outputs": ["image", "audio"], "seed": 7, "settings": {"steps": 25, "cfg": 3.0}}

id and outputs are needed. A prompt may be a plain string, which is a text. Paths are relative to the manifest. Without a seed, the id
makes one. keep: outputs that are given, {"video": "clip.mp4", "text": "a blue star"}: files, and the text itself. start, length: the part
of a video or audio file in seconds, of a prompt, or in the item itself of the files of `keep`. settings: any of
settings.OVERRIDES; what is left out is the model's default."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import version_0_3
from ..conditioning import PROMPT_KINDS, Prompt, fractions
from ..config import CoDiConfig
from ..errors import CoDiError
from ..files import PLAIN, plain_name
from ..settings import OVERRIDES, Settings, typed

_FIELDS = ("id", "prompts", "keep", "start", "length", "outputs", "seed", "settings")
_SPAN = ("start", "length")


@dataclass(frozen=True)
class Item:
    """One thing to make: what it shows, and the settings of its run, of count 1."""

    id: str
    line: int
    prompts: tuple[Prompt, ...]
    settings: Settings
    given: tuple[Prompt, ...] = ()

    @property
    def group(self) -> tuple[Settings, bool]:
        """Equal for items that can be made in one batch."""
        return replace(self.settings, seed=0), bool(self.prompts)

    def request(self) -> dict[str, Any]:
        """All that decides the result, beside the model; neither batch nor place in the manifest."""
        settings = {k: v for k, v in self.settings.to_dict().items() if k not in ("count", "batch_size")}
        prompts = [{"kind": p.kind, "value": str(p.value), "weight": p.weight, **_span_of(p)} for p in self.prompts]
        given = {"keep": {p.kind: str(p.value) for p in self.given}, **_span_of(self.given[0])} if self.given else {}
        return {"id": self.id, "prompts": prompts, **settings, **given}


@dataclass(frozen=True)
class Failure:
    """An item, or a line of the manifest, that nothing could be made of."""

    line: int
    id: str | None
    error: str


def read_manifest(path: str | Path, config: CoDiConfig) -> tuple[list[Item], list[Failure]]:
    """Items in the manifest's order, and what is wrong with the other lines. Raises CoDiError where the file itself cannot be read."""
    path = Path(path)
    items: list[Item] = []
    failures: list[Failure] = []
    lines_of: dict[str, int] = {}
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                name: str | None = None
                try:
                    entry = _entry(line.removeprefix(b"\xef\xbb\xbf"))
                    if entry is None:
                        continue
                    name = str(entry["id"]) if isinstance(entry.get("id"), (str, int)) else None
                    item = _item(entry, number, path.parent, config)
                    # Names that differ in case only are one name to some file systems.
                    if (first := lines_of.setdefault(item.id.casefold(), number)) != number:
                        raise CoDiError(f"id {item.id!r} was given in line {first} already: ids must differ")
                    items.append(item)
                except CoDiError as error:
                    failures.append(Failure(number, name, str(error)))
    except OSError as error:
        raise CoDiError(f"the manifest {path} cannot be read ({error.strerror}): give a file with one JSON object a line") from error
    return items, failures


def _entry(line: bytes) -> dict[str, Any] | None:
    """The object of a line, or None for a blank one."""
    if not line.strip():
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CoDiError(f"this line is no JSON ({error}): give one object a line") from error
    if not isinstance(entry, dict):
        raise CoDiError(f"this line holds {type(entry).__name__}, not an object with {', '.join(_FIELDS)}")
    return entry


def _item(entry: Mapping[str, Any], line: int, folder: Path, config: CoDiConfig) -> Item:
    if unknown := sorted(set(entry) - set(_FIELDS)):
        raise CoDiError(f"unknown field {unknown[0]!r}: an item has {', '.join(_FIELDS)}")
    name = _name(entry.get("id"))
    given = entry.get("prompts")
    if not isinstance(given := [] if given is None else given, list):
        raise CoDiError(f"prompts must be a list of objects with kind, value or path, and weight; got {type(given).__name__}")
    prompts = tuple(_prompt(prompt, folder) for prompt in given)
    if prompts:
        fractions([prompt.weight for prompt in prompts], len(prompts))
    outputs = entry.get("outputs")
    if not isinstance(outputs, (str, list)) or not all(isinstance(output, str) for output in outputs):
        raise CoDiError('outputs must be a list such as ["image", "audio"]')
    outputs = [output.strip() for output in outputs.split(",")] if isinstance(outputs, str) else outputs
    seed = entry.get("seed")
    if seed is None:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    media = _given(entry.get("keep"), folder, _span(entry))
    kinds = [prompt.kind for prompt in media]
    settings = Settings.resolve(config, outputs, seed=typed("seed", seed, int), given=kinds, **_overrides(entry.get("settings")))
    return Item(name, line, prompts, settings, media)


def _name(name: Any) -> str:
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if not isinstance(name, str) or not plain_name(name):
        raise CoDiError(f"id {str(name)[:200]!r} cannot name a folder: {PLAIN}, up to 150 bytes, the first a letter or digit")
    return name


def _prompt(given: Any, folder: Path) -> Prompt:
    if isinstance(given, str):
        return Prompt("text", given)
    if not isinstance(given, dict):
        raise CoDiError(f"a prompt is a text or an object with kind, value or path, and weight; got {type(given).__name__}")
    if unknown := sorted(set(given) - {"kind", "value", "path", "weight", *_SPAN}):
        raise CoDiError(f"unknown field {unknown[0]!r} of a prompt: it has kind, value or path, weight, start and length")
    kind = given.get("kind")
    if kind not in PROMPT_KINDS:
        raise CoDiError(f"unknown kind of prompt {kind!r}: give one of {', '.join(PROMPT_KINDS)}")
    values = [given[key] for key in ("value", "path") if given.get(key) is not None]
    if len(values) != 1 or not isinstance(values[0], str) or (kind == "text" and "value" not in given):
        wanted = "the text as value" if kind == "text" else f"the {kind} file as path"
        raise CoDiError(f"a prompt of kind {kind} needs {wanted}, a string")
    weight = typed("weight", given.get("weight", 1.0), float)
    return Prompt(kind, values[0] if kind == "text" else folder / values[0], weight, **_span(given))


def _given(given: Any, folder: Path, span: Mapping[str, float]) -> tuple[Prompt, ...]:
    given = {} if given is None else given
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise CoDiError('keep must be an object of outputs that are given, such as {"video": "clip.mp4"}; a text is given as it is')
    return tuple(Prompt(kind, value if kind == "text" else folder / value, **span) for kind, value in given.items())


def _span(given: Mapping[str, Any]) -> dict[str, float]:
    """start and length of a prompt or an item, as far as they are given."""
    return {name: typed(name, given[name], float) for name in _SPAN if given.get(name) is not None}


def _span_of(prompt: Prompt) -> dict[str, float]:
    """start and length as a request tells them: nothing where all is meant."""
    return {name: value for name, value in (("start", prompt.start), ("length", prompt.length)) if value}


def _overrides(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise CoDiError(f"settings must be an object with any of {', '.join(OVERRIDES)}; got {type(given).__name__}")
    given = version_0_3.settings(given)
    if unknown := sorted(set(given) - set(OVERRIDES)):
        raise CoDiError(f"unknown setting {unknown[0]!r}: an item may set {', '.join(OVERRIDES)}")
    return {name: value for name, value in given.items() if value is not None}

"""Cells of the evaluation: what is generated for each, what the judge read in it, and when a stored reading may be used again."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints import read_weights
from ...components import COMPONENTS
from ...decoding import DECODERS
from ...encoders.shared_space import SHARED_SPACE_FILE
from ...facets import FACETS_FILE
from ...files import sha256, write_text
from ...model import CoDi
from ...settings import Settings, denoisers_of
from ..world import ATTRIBUTES
from .asking import Recipe

CODE = ("asking.py", "cells.py", "quality.py")
NUMERICS = ("autoencoders", "denoisers", "encoders", "worlds", "conditioning.py", "coupling.py", "decoding.py", "diffusion.py", "facets.py",
            "joint.py", "latents.py", "order.py", "pipeline.py", "prompts.py")  # fmt: skip
"""Code that the numbers come from, beside this package's own."""


@dataclass(frozen=True)
class Cell:
    """One run: prompts, outputs, settings that differ from the run's, and outputs that are kept from the scene instead of made."""

    recipe: Recipe
    outputs: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    keep: tuple[str, ...] = ()

    def __str__(self) -> str:
        changed = "".join(f", {name} {value}" for name, value in self.settings)
        return f"{self.recipe} to {'+'.join(self.outputs)}{' keeping ' + '+'.join(self.keep) if self.keep else ''}{changed}"

    @property
    def made(self) -> tuple[str, ...]:
        """Outputs that are generated."""
        return tuple(o for o in self.outputs if o not in self.keep)


@dataclass
class Readings:
    """What the judge read in the n samples of a cell."""

    scenes: dict[str, Tensor]  # scene name -> (n, 3)
    said: Tensor  # (n, 3), -1 = left open by the prompt
    outputs: dict[str, dict[str, Tensor]]  # output -> attribute (n,), "times" (n, k) s, nuisance (n,)
    captions: list[str] = field(default_factory=list)
    seconds: float = 0.0  # wall clock of the run

    def scene(self, name: str = "a") -> dict[str, Tensor]:
        """Attributes of a scene, (n,) each."""
        return dict(zip(ATTRIBUTES, self.scenes[name].unbind(1), strict=True))

    def dump(self) -> dict[str, Any]:
        """As JSON: attributes as strings of digits with "-" for unreadable, times and nuisance as numbers with None for NaN."""
        scenes = {name: ["".join(map(_digit, row)) for row in rows.tolist()] for name, rows in self.scenes.items()}
        outputs = {o: {k: _compact(v) for k, v in read.items()} for o, read in self.outputs.items()}
        said = ["".join(map(_digit, row)) for row in self.said.tolist()]
        return {"scenes": scenes, "said": said, "outputs": outputs, "captions": self.captions, "seconds": round(self.seconds, 2)}

    @staticmethod
    def load(data: Mapping[str, Any]) -> Readings:
        """Inverse of `dump`."""
        outputs = {o: {k: _expand(v) for k, v in read.items()} for o, read in data["outputs"].items()}
        scenes = {name: torch.stack([_expand(row) for row in rows]) for name, rows in data["scenes"].items()}
        said = torch.stack([_expand(row) for row in data["said"]])
        return Readings(scenes, said, outputs, list(data["captions"]), float(data["seconds"]))


def _digit(value: int) -> str:
    return "-" if value < 0 else str(value)


def _compact(value: Tensor) -> Any:
    if not value.is_floating_point():
        return "".join(map(_digit, value.tolist()))
    rounded = [[round(x, 4) if x == x else None for x in row] for row in value.reshape(len(value), -1).tolist()]
    return rounded if value.ndim > 1 else [row[0] for row in rounded]


def _expand(value: Any) -> Tensor:
    if isinstance(value, str):
        return torch.tensor([-1 if c == "-" else int(c) for c in value])
    rows = [[torch.nan if x is None else x for x in row] if isinstance(row, list) else (torch.nan if row is None else row) for row in value]
    return torch.tensor(rows, dtype=torch.float32)


def settled(config: Any, cell: Cell, overrides: Mapping[str, Any]) -> Settings:
    """All settings of a cell's run."""
    return Settings.settled(config, cell.outputs, **{**overrides, **dict(cell.settings)})


def effective(config: Any, cell: Cell, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that decide what a cell generates; those without influence are left out."""
    settings = settled(config, cell, overrides)
    idle = ["seed", "count", "batch_size", "mix", "outputs"]
    if not settings.listening:
        idle += ["wiring", "alignment", "alignment_guidance", "alignment_pairs", "alignment_start", "alignment_end", "order"]
    if not cell.recipe.parts:
        idle += ["cfg", "cfg_each", "cfg_rescale", "composition"]
    return {name: value for name, value in settings.told().items() if name not in idle}


class Fingerprints:
    """Names of everything that a cell's numbers depend on: weights by component, code."""

    def __init__(self, model: CoDi) -> None:
        self.model = model
        self._known: dict[tuple[str, bool], str] = {}

    def weights(self, cell: Cell, overrides: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Hash by component. A run whose outputs do not listen to each other does not depend on its denoisers' connectors."""
        kinds = {part.kind for part in cell.recipe.parts} | {"text"}  # the empty text is always embedded
        names = {"clap" if kind == "audio" else "clip" for kind in kinds}
        names |= {component for output in cell.outputs for component in DECODERS[output]}
        used = {name: self._component(name, True) for name in names}
        run = settled(self.model.config, cell, overrides or {})
        used |= {name: self._component(name, run.listening) for name in denoisers_of(run.working)}
        shared = self.model.folder / SHARED_SPACE_FILE
        used["shared_space"] = sha256(shared)[:16] if shared.exists() else ""
        if cell.recipe.parts and run.composition != "plain":
            used["facets"] = sha256(self.model.folder / FACETS_FILE)[:16]
        used["config"] = hashlib.sha256(repr(_networks(self.model.config)).encode()).hexdigest()[:16]
        return dict(sorted(used.items()))

    def whole(self, cell: Cell, overrides: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Hash of every component that a cell uses, connectors included."""
        return {name: self._component(name, True) if name in COMPONENTS else value for name, value in self.weights(cell, overrides).items()}

    def _component(self, name: str, connectors: bool) -> str:
        if (name, connectors) not in self._known:
            tensors, _ = read_weights(self.model.path(name))
            digest = hashlib.sha256()
            for key in sorted(tensors):
                if connectors or "connecter" not in key:
                    digest.update(f"{key} {tuple(tensors[key].shape)} {tensors[key].dtype}".encode())
                    digest.update(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            self._known[name, connectors] = digest.hexdigest()[:16]
        return self._known[name, connectors]


def _networks(config: Any) -> Any:
    """The configuration without its defaults of sampling, which a cell's own settings cover."""
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, sampler="", steps=0, cfg=0.0, wiring="", alignment=0.0,
                                                                    alignment_guidance=0.0, cfg_each="", composition=""))  # fmt: skip


@lru_cache
def code_version() -> str:
    """Hash of the code that the numbers come from; comments, docstrings and layout do not matter."""
    here = Path(__file__).parent
    paths = [here / name for name in CODE]
    for name in NUMERICS:
        path = here.parent / name
        paths += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(here.parent).as_posix()}\n{_bare(path)}\n".encode())
    return digest.hexdigest()[:16]


def _bare(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            bare = [
                s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str))
            ]
            node.body = bare or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


class Store:
    """Readings on disk, one file a cell, whole or not at all."""

    def __init__(self, folder: Path, *, any_code: bool = False) -> None:
        self.folder, self.any_code = folder, any_code

    def path(self, cell: Cell, key: Mapping[str, Any]) -> Path:
        """File of a cell: another number of samples or another seed stands beside it, another model or code takes its place."""
        words = "".join(c if c.isalnum() or c in "+-" else "_" for c in str(cell))[:80]
        name = hashlib.sha256(json.dumps([str(cell), key["settings"], key["samples"], key["seed"]], sort_keys=True).encode())
        return self.folder / f"{words}-{name.hexdigest()[:8]}.json"

    def get(self, cell: Cell, key: Mapping[str, Any]) -> Readings | None:
        """A stored reading of the same key, or None. A damaged file counts as none."""
        try:
            data = json.loads(self.path(cell, key).read_text(encoding="utf-8"))
            same = all(data["key"][name] == value for name, value in key.items() if not (self.any_code and name == "code"))
            return Readings.load(data["readings"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, cell: Cell, key: Mapping[str, Any], readings: Readings) -> None:
        """Raises CoDiError where the folder cannot be written."""
        write_text(self.path(cell, key), json.dumps({"key": key, "readings": readings.dump()}) + "\n")


def stacked(readings: Sequence[Readings]) -> Readings:
    """Samples of several cells with the same outputs as one."""
    first = readings[0]
    outputs = {o: {k: torch.cat([r.outputs[o][k] for r in readings]) for k in read} for o, read in first.outputs.items()}
    scenes = {name: torch.cat([r.scenes[name] for r in readings]) for name in first.scenes if all(name in r.scenes for r in readings)}
    said = torch.cat([r.said for r in readings])
    return Readings(scenes, said, outputs, [c for r in readings for c in r.captions], sum(r.seconds for r in readings))

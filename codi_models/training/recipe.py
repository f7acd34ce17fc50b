"""A recipe: the networks of a model and the runs that train them, as a file of numbers."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import CoDiConfig, _build
from ..errors import CoDiError
from ..files import PLAIN, plain_name, read_json

KINDS = {
    "autoencoder": (".autoencoding", "Autoencoding"),
    "vocoder": (".autoencoding", "Vocoding"),
    "bridging": (".bridging", "Bridging"),
    "denoiser": (".denoising", "Denoising"),
    "environment": (".alignment", "EnvironmentEncoding"),
    "alignment": (".alignment", "LatentAlignment"),
}
"""Kind of a run -> module and class of its objective, whose `Options` are the run's own fields."""

OPTIMIZERS = ("adamw", "muon")
"""Names of the optimisers that a run can take."""
STEPS, EXAMPLES, SEED = 10_000_000, 65_536, 2**64 - 1
"""The most steps of a run, examples of a batch (and batches of a step), and the largest seed."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One schedule of training: the learning rate rises for `warmup` steps, then falls to zero along a cosine."""

    name: str
    kind: str  # one of KINDS
    steps: int
    learning_rate: float = 1e-3
    optimizer: str = "adamw"  # or muon, see `muon.Muon`
    warmup: int = 100
    ema: float = 0.999  # decay of the averaged weights, which are what a run leaves
    seed: int = 0
    bf16: bool = False  # compute in bfloat16; what learns stays in float32
    channels_last: bool = False
    checkpointing: bool = False  # recompute activations in the backward pass
    batches: int | None = None
    """Batches of a step, drawn from streams of their own and averaged; None for one a process. What a step learns from depends on
    this number alone, not on how many processes share the work."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the objective's own, such as batch sizes; in a file they stand beside the others."""

    def check(self) -> None:
        """Raises CoDiError for numbers that cannot be used."""
        batch = self.options.get("batch", 1)
        examples = list(batch.values()) if isinstance(batch, dict) else [batch]
        for good, message in (
            (self.kind in KINDS, f"unknown kind {self.kind!r}: give one of {', '.join(KINDS)}"),
            (self.optimizer in OPTIMIZERS, f"unknown optimizer {self.optimizer!r}: give {' or '.join(OPTIMIZERS)}"),
            (plain_name(self.name), f"its name becomes a folder's: {PLAIN}"),
            (1 <= self.steps <= STEPS, f"steps {self.steps} must be 1 to {STEPS}"),
            (0 <= self.seed <= SEED, f"seed {self.seed} must be 0 or more and below 2**64"),
            (self.warmup >= 1, f"warmup {self.warmup} must be 1 or more"),
            (1 <= (1 if self.batches is None else self.batches) <= EXAMPLES, f"batches {self.batches} must be 1 to {EXAMPLES}"),
            (all(1 <= n <= EXAMPLES for n in examples if isinstance(n, int)), f"batch {batch} must be 1 to {EXAMPLES}"),
            (0 < self.learning_rate < 1, f"learning rate {self.learning_rate} must lie between 0 and 1"),
            (0 <= self.ema < 1, f"ema {self.ema} must lie in 0..1, 1 excluded"),
        ):
            if not good:
                raise CoDiError(f"run {self.name[:100]!r}: {message}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Runs in the order in which they are trained."""

    networks: CoDiConfig
    runs: tuple[Run, ...]
    data: str = ""  # data set that the recipe is made for

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """Read a JSON file with the fields `networks` (as in a model's config.json), `runs` and `data`.

        Raises CoDiError naming the file and the field where it is not such a file."""
        try:
            data = read_json(path)
        except (OSError, ValueError, RecursionError) as error:
            raise CoDiError(f"{path} is not a readable recipe: {error}") from error
        if not isinstance(data, dict) or not isinstance(data.get("runs"), list) or set(data) - {"networks", "runs", "data", "about"}:
            raise CoDiError(f"{path} is no recipe: it is an object with the fields networks, runs, and if you like data and about")
        runs = tuple(_run(one, f"{path}: run {number}") for number, one in enumerate(data["runs"], start=1))
        names = [run.name for run in runs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CoDiError(f"{path}: two runs are called {twice[0]!r}: their states would overwrite each other")
        return Recipe(networks=_build(CoDiConfig, data.get("networks"), f"{path}: networks"), runs=runs, data=str(data.get("data", "")))


def _run(data: Any, where: str) -> Run:
    if not isinstance(data, dict):
        raise CoDiError(f"{where}: expected an object, got {type(data).__name__}")
    own = {f.name for f in dataclasses.fields(Run)} - {"options"}
    run = build(Run, {k: v for k, v in data.items() if k in own}, where)
    run = dataclasses.replace(run, options={k: v for k, v in data.items() if k not in own})
    run.check()
    return run


def build(cls: type, data: dict[str, Any], where: str) -> Any:
    """An options dataclass from parsed JSON. Raises CoDiError for unknown, missing and mistyped fields."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise CoDiError(f"{where}: unknown fields {unknown}; it takes {', '.join(sorted(fields))}")
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in data]:
        raise CoDiError(f"{where}: missing fields {missing}")
    for name, value in data.items():
        if not _fits(value, hints[name]):
            raise CoDiError(f"{where}: {name} cannot be {value!r}; it takes {getattr(hints[name], '__name__', hints[name])}")
    return cls(**{name: _frozen(value) for name, value in data.items()})


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if origin is tuple:
        kinds = inner if inner[-1] is not Ellipsis else (inner[0],) * len(value) if isinstance(value, list | tuple) else ()
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value

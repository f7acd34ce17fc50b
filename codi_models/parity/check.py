"""Comparisons of one fixture: which tolerance a tensor has, how its error is measured, what is still to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from .fixture import INPUT, Fixture
from .report import FAIL, OK, SKIPPED, Report, Row
from .watch import SAMPLED, Watch, fit

RELATIVE = 1e-4
"""Tolerance where neither the fixture nor its family says another."""

MEL_ABSOLUTE = 1e-3
"""Tolerance of front ends, in natural logarithms or decibels."""

STATED = ("tolerances", "tolerance", "rel_tolerance", "suggested_tolerance", "suggested_rel_tolerance")
"""Fields of a json in which tolerances may be stated: a number, or numbers by the names of tensors or their groups."""


class Check:
    """Adds a row to the report for every tensor that is compared, and remembers which are not yet."""

    def __init__(self, fixture: Fixture, report: Report, *, tolerance: float = RELATIVE) -> None:
        self.fixture, self.report, self.tolerance = fixture, report, tolerance
        self._open = dict.fromkeys(name for name in fixture.tensors if not name.startswith(INPUT))
        self._rows = len(report.rows)
        for name, facts in (fixture.info.get("tensors") or {}).items():
            if name not in fixture.tensors:
                self.fact(name, False, "listed in the json, missing in the safetensors file")
            elif isinstance(facts, Mapping) and list(facts.get("shape", fixture.tensors[name].shape)) != list(fixture.tensors[name].shape):
                shape = tuple(fixture.tensors[name].shape)
                self.fact(name, False, f"the file holds shape {shape}, the json says {tuple(facts['shape'])}")

    def open(self, prefix: str = "") -> list[str]:
        """Names of tensors with this prefix that were not compared yet."""
        return [name for name in self._open if name.startswith(prefix)]

    def tensor(
        self, name: str, ours: Tensor | Callable[[], Tensor], *,
        tolerance: float | None = None, absolute: bool = False,
    ) -> None:  # fmt: skip
        """Hold `ours`, in its own layout, against tensor `name` and against recorded parts of it (`name_every4`).

        Nothing happens where the fixture has neither, or they were compared."""
        names = [other for other in self._open if other == name or SAMPLED.sub("", other) == name]
        if not names:
            return
        ours = ours if isinstance(ours, Tensor) else ours()
        for name in names:
            published = self.fixture.tensors[name]
            value = fit(ours, published.shape, name)
            if value is None:
                self.fact(name, False, f"shape {tuple(ours.shape)} instead of {tuple(published.shape)}")
                continue
            error = difference(value, published, absolute=absolute)
            allowed = self._allowed(name, self.tolerance if tolerance is None else tolerance)
            why = "absolute error" if absolute else ""
            if published.dtype in (torch.float16, torch.bfloat16) and not absolute:
                stored = torch.finfo(published.dtype).eps / 2
                allowed, why = allowed + stored, f"stored in {str(published.dtype).removeprefix('torch.')}"
            self._add(name, error, allowed, error <= allowed, why)

    def watched(self, watch: Watch) -> None:
        """Hold what modules gave against the intermediates that `watch` is named for, where it has the shape of them."""
        for name in watch.paths:
            if name in self._open:
                shape = self.fixture.tensors[name].shape
                result = watch.result(name, shape)
                if result is not None and fit(result, shape, name) is not None:
                    self.tensor(name, result)

    def exact(self, name: str, ours: Tensor) -> None:
        """Hold integers against tensor `name`; the error is the number of places that differ."""
        if name not in self._open:
            return
        published = self.fixture.tensors[name]
        if ours.shape != published.shape:
            self.fact(name, False, f"shape {tuple(ours.shape)} instead of {tuple(published.shape)}")
        else:
            wrong = int((ours != published).sum())
            self._add(name, wrong, 0.0, wrong == 0, "exact")

    def pixels(self, name: str, ours: Tensor, *, step: float, share: float = 5e-3, tolerance: float = 1e-5) -> None:
        """Hold pixels that went through 8 bits against tensor `name`: a share of them may be one 8-bit `step` off.

        The error shown is that of the others, absolute."""
        if name not in self._open:
            return
        published = self.fixture.tensors[name]
        if ours.shape != published.shape:
            self.fact(name, False, f"shape {tuple(ours.shape)} instead of {tuple(published.shape)}")
            return
        allowed = self._allowed(name, tolerance)
        error = (ours.double() - published.double()).abs()
        stepped = (error > allowed) & (error <= 1.01 * step)
        few = float(stepped.double().mean()) <= share
        rest = float(error.masked_fill(stepped, 0.0).max() if few else error.max())
        why = (
            f"absolute error; {int(stepped.sum())} of {stepped.numel()} pixels are one 8-bit step off"
            if stepped.any()
            else "absolute error"
        )
        self._add(name, rest, allowed, few and rest <= allowed, why)

    def number(self, name: str, ours: Tensor, published: Tensor, tolerance: float) -> None:
        """Hold `ours` against numbers of the json."""
        if ours.shape != published.shape:
            self.fact(name, False, f"shape {tuple(ours.shape)} instead of {tuple(published.shape)}")
        else:
            self.measured(name, difference(ours, published), tolerance)

    def measured(self, name: str, error: float, tolerance: float) -> None:
        """A row for an error measured elsewhere."""
        allowed = self._allowed(name, tolerance)
        self._add(name, error, allowed, error <= allowed, "")

    def fact(self, name: str, ok: bool, why: str) -> None:
        """A finding that is no difference of numbers."""
        self._add(name, 0.0 if ok else None, 0.0 if ok else None, ok, why)

    def skip(self, name: str, why: str) -> None:
        """Say that a tensor cannot be compared."""
        self._open.pop(name, None)
        self.report.add(Row(self.fixture.name, name, None, None, SKIPPED, why))

    def finish(self) -> None:
        """Say of every tensor that was not compared that it was not."""
        for name in self.open():
            self.skip(name, "nothing in this network corresponds to it")
        if len(self.report.rows) == self._rows:
            self.fact("*", False, "there is nothing to compare")

    def _add(self, name: str, error: float | None, tolerance: float | None, ok: bool, why: str) -> None:
        self._open.pop(name, None)
        self.report.add(Row(self.fixture.name, name, error, tolerance, OK if ok else FAIL, why))

    def _allowed(self, name: str, default: float) -> float:
        for field in STATED:
            stated = self.fixture.info.get(field)
            for key in (name, name.partition("/")[2], name.partition("/")[0], "default"):
                if isinstance(stated, Mapping) and _is_number(number := stated.get(key)):
                    return float(number)
            if _is_number(stated):
                return float(stated)
        return default


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def difference(ours: Tensor, published: Tensor, *, absolute: bool = False) -> float:
    """max|ours - published|, divided by max|published| unless `absolute` (or nothing was published but zeros); NaN counts as inf."""
    if not published.numel():
        return 0.0
    a, b = ours.detach().double().cpu(), published.double()
    error, size = (a - b).abs().max(), b.abs().max()
    result = float(error if absolute or size == 0 else error / size)
    return result if result == result else float("inf")


def tensor_of(values: Any) -> Tensor:
    """Numbers of a json as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)

"""Plans batches, has them made by an engine, keeps what comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from .manifest import Item
from .store import Store
from .worker import Report, Worker

Say = Callable[[str], None]


class Engine(Protocol):
    """Whatever makes batches: every batch is answered by reports that together account for each of its items once."""

    workers: int

    def reports(self, batches: Sequence[Sequence[Item]]) -> Iterator[Report]:
        """Reports in the order in which they are ready."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


class LocalEngine:
    """One worker in this process."""

    workers = 1

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def reports(self, batches: Sequence[Sequence[Item]]) -> Iterator[Report]:
        """Batch after batch."""
        return (self.worker.make(batch) for batch in batches)

    def close(self) -> None:
        """Nothing is held."""


def plan(items: Iterable[Item], *, batch_size: int | None = None, workers: int = 1) -> list[list[Item]]:
    """Batches of items with equal settings, as large as the sizes allow (or `batch_size`), but not so large that a worker gets none."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    batches = []
    for group in groups.values():
        most = max(1, min(batch_size or group[0].settings.batch_size, math.ceil(len(group) / workers)))
        batches += [group[i : i + most] for i in range(0, len(group), most)]
    return batches


def run(
    items: Sequence[Item], store: Store, engine: Engine, *, batch_size: int | None = None, say: Say, tick: Callable[[int], Any]
) -> dict[str, Any]:
    """Make items and keep them. `say` gets messages, `tick` the number of items dealt with since the last call.

    Returns how many were made, and seconds per stage summed over workers. Raises WriteError where the store is full or cannot
    be written; what was kept until then stays."""
    made, seconds = 0, dict[str, float]()
    for report in engine.reports(plan(items, batch_size=batch_size, workers=engine.workers)):
        for note in report.notes:
            say(note)
        for item, files in report.made:
            made += store.put(item, files)
        for failure in report.failures:
            store.fail(failure)
            say(f"{failure.id}: {failure.error}")
        for stage, value in report.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
        tick(len(report.made) + len(report.failures))
    return {"made": made, "workers": engine.workers, "seconds": {stage: round(value, 3) for stage, value in seconds.items()}}

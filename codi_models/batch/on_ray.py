"""Batches on a Ray cluster: one worker an actor, replaced where it dies; its batch is made by another."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CoDiError
from .manifest import Failure, Item
from .worker import Report, Worker

PACK = Path(__file__).resolve().parents[2]
_TRIES = 3  # workers that may die over one and the same item
_DEATHS_IN_A_ROW = 4  # beyond the number of workers: then it is not chance


@dataclass
class _Job:
    """A batch and how many workers died while they made it."""

    items: Sequence[Item]
    deaths: int = 0


class RayEngine:
    """Workers on a Ray cluster.

    address: "" joins the cluster of RAY_ADDRESS or starts one on this machine; "auto" or HOST:PORT joins one. workers: None for
    one on every GPU of the cluster, or without GPUs one for every `cpus` CPUs. gpus: per worker, may be a fraction.
    The pack, models and prompt files must lie at the same path on every host; results come back through Ray.
    Raises CoDiError where Ray is not installed or the cluster cannot be reached."""

    def __init__(
        self, model: str | Path, *, address: str = "", workers: int | None = None, cpus: int = 1, gpus: float | None = None, **worker: Any
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise CoDiError('--ray needs Ray: pip install "ray>=2.9" (or leave --ray out to use this machine alone)') from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unasked
        self.ray = ray
        try:
            ray.init(
                address=address or None, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False,
                runtime_env={"env_vars": {"PYTHONPATH": str(PACK)}},
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise CoDiError(
                f"no Ray cluster at {address or 'this machine'} ({_short(error)}): start one with `ray start --head`"
            ) from error
        there = ray.cluster_resources()
        gpus = gpus if gpus is not None else float(there.get("GPU", 0) >= 1)
        fitting = there.get("GPU", 0) / gpus if gpus else there.get("CPU", 1) / cpus
        self.workers = workers or max(1, int(fitting))
        resources: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        self._actor: Any = ray.remote(**resources)(_Actor)
        self._arguments = (str(model), worker)

    def reports(self, batches: Sequence[Sequence[Item]]) -> Iterator[Report]:
        """Reports as workers finish. Raises CoDiError where workers die again and again whatever they are given."""
        ray, queue = self.ray, deque(_Job(batch) for batch in batches)
        idle: list[Any] = []
        running: dict[Any, tuple[Any, _Job | None]] = {}  # None: the worker is still starting
        deaths = 0
        for _ in range(min(self.workers, len(queue))):
            self._start(running)
        while queue or any(job for _, job in running.values()):
            while queue and idle:
                actor, job = idle.pop(), queue.popleft()
                running[actor.make.remote(job.items)] = (actor, job)
            for done in ray.wait(list(running), num_returns=1)[0]:
                actor, finished = running.pop(done)
                try:
                    report = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause
                    raise cause if isinstance(cause, CoDiError) else CoDiError(f"a worker failed: {_short(error)}") from error
                except ray.exceptions.RayError as error:
                    deaths += 1
                    if deaths > self.workers + _DEATHS_IN_A_ROW:
                        raise CoDiError(f"workers keep dying, the last one of: {_short(error)}") from error
                    self._start(running)
                    if finished:
                        yield self._again(finished, queue)
                    continue
                idle.append(actor)
                if finished:
                    deaths = 0
                    yield report

    def _start(self, running: dict[Any, tuple[Any, _Job | None]]) -> None:
        actor = self._actor.remote(*self._arguments)
        running[actor.ready.remote()] = (actor, None)

    def _again(self, job: _Job, queue: deque[_Job]) -> Report:
        """Queue a dead worker's batch once more; a batch that kills workers is halved until the item that does it is alone."""
        job.deaths += 1
        if len(job.items) > 1 and job.deaths > 1:
            half = len(job.items) // 2
            queue += [_Job(job.items[:half], 1), _Job(job.items[half:], 1)]
            return Report(notes=[f"a worker died again: its {len(job.items)} items are made in halves"])
        if job.deaths >= _TRIES:
            error = f"{job.deaths} workers died while they made this item: it may need more memory than there is"
            return Report(failures=[Failure(item.line, item.id, error) for item in job.items])
        queue.append(job)
        return Report(notes=[f"a worker died: its {len(job.items)} items are made by another"])

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self.ray.shutdown()


class _Actor:
    """A Worker in a process of its own."""

    def __init__(self, model: str, arguments: dict[str, Any]) -> None:
        self.worker = Worker(model, **arguments)

    def ready(self) -> None:
        """Answers once the worker has started."""

    def make(self, items: Sequence[Item]) -> Report:
        """As `Worker.make`."""
        return self.worker.make(items)


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]

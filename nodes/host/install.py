"""The official model from inside the graph: what is missing, what lies there unconverted, and the one job that fetches and converts.

A button on the loader calls the routes; queueing a graph never does. What is fetched is fixed: no address, no path comes from outside."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...codi_models.components import COMPONENTS
from ...codi_models.config import CoDiConfig
from ...codi_models.conversion.convert import convert, planned_bytes
from ...codi_models.conversion.download import Progress, check_room, fetch, wanted_vocabularies, wanted_weights
from ...codi_models.conversion.hub import Hub
from ...codi_models.conversion.install import install, needed_room
from ...codi_models.errors import CoDiError, out_of_memory
from ...codi_models.locks import sole_writer
from .folders import missing_parts, official_folder, unconverted

EVENT = "codi.install"
ROUTE = "/codi/install"
_MEMORY = 1_000_000_000  # bytes of RAM that fetching and converting take at most
_EVENTS_PER_SECOND = 2


class Stopped(CoDiError):
    """The user has asked to stop; what is done so far stays."""


class Job:
    """Fetching and converting, in a thread of its own; one at a time."""

    def __init__(self, tell: Callable[[dict[str, Any]], None] = lambda state: None) -> None:
        self.tell = tell
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._state: dict[str, Any] = {}
        self._become("idle")

    def start(self, source: str) -> None:
        """source: "download" for all that is missing, "found" for the files that lie there. Raises CoDiError where that cannot begin."""
        work = {"download": _download, "found": _convert_found}.get(source)
        if work is None:
            raise CoDiError(f"unknown source {source!r}: it is download or found")
        with self._lock:
            if self._state["state"] == "running":
                raise CoDiError("the official model is being fetched already")
            self._stop.clear()
            self._become("running", stage="begin", done=0, total=0, left=None)
            threading.Thread(target=self._run, args=(work,), name="codi-install", daemon=True).start()

    def stop(self) -> None:
        """Ask it to stop; it does so within a block of bytes."""
        self._stop.set()

    def state(self) -> dict[str, Any]:
        """What the node shows: the job's state, and what there is to do where none runs."""
        state = self._state
        if state["state"] == "running":
            return state
        found = survey()
        return {**state, **found, **({"state": "idle"} if state["state"] == "done" and found["missing"] else {})}

    def _become(self, name: str, **state: Any) -> None:
        """at: seconds since 1970, later with every change even where the clock is set back. Events and answers overtake each other on their
        way to a page, which keeps the latest."""
        at = max(time.time(), self._state["at"] + 1e-3) if self._state else time.time()
        self._state = {"state": name, "at": at, **state}

    def _run(self, work: Callable[[Path, CoDiConfig, Progress], None]) -> None:
        out = official_folder()
        try:
            progress = _Meter(self)
            with sole_writer(out):
                work(out, _config(out), progress)
            self._become("done")
        except Stopped:
            self._become("stopped")
        except CoDiError as error:
            self._become("failed", error=str(error))
        except Exception as error:  # the node has to say something, whatever it is
            logging.exception("CoDi: fetching the official model failed")
            text = "out of memory: close other programs, then go on" if out_of_memory(error) else f"{type(error).__name__}: {error}"
            self._become("failed", error=text)
        self.tell(self.state())

    def report(self, **state: Any) -> None:
        """Keep and tell how far it is. Raises Stopped where the user has asked for it."""
        if self._stop.is_set():
            raise Stopped("stopped")
        self._become("running", **state)
        self.tell(self._state)


class _Meter:
    """Progress of a job as `install` reports it: bytes of the present stage, and the time that is left for it."""

    def __init__(self, job: Job) -> None:
        self.job, self.stage, self.done, self.began, self.told = job, "", 0, 0.0, 0.0

    def __call__(self, stage: str, count: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.done, self.began, self.first, self.told = stage, 0, now, count, 0.0
        self.done += count
        if self.job._stop.is_set() or now - self.told > 1 / _EVENTS_PER_SECOND or self.done >= total:
            self.told = now
            new, seconds = self.done - self.first, now - self.began
            left = (total - self.done) * seconds / new if new > 0 and seconds > 1 else None
            self.job.report(stage=stage, done=self.done, total=total, left=left)


def survey() -> dict[str, Any]:
    """What is missing, what it takes to get it, and what lies there unconverted; in bytes."""
    out = official_folder()
    found: dict[str, Any] = {"folder": str(out), "missing": missing_parts(), "memory": _MEMORY}
    try:
        config = _config(out)
        files = wanted_weights(out)
        lacking = found["missing"]
        needed = [w for w in files if any(COMPONENTS[c].published_file == w.path.rpartition("/")[2] for c in lacking)]
        words = wanted_vocabularies(out, config)
        found["download"] = sum(w.missing() for w in [*needed, *words])
        found["disk"] = needed_room(needed, out, config=config) + sum(w.missing() for w in words)
        there = [p for p in unconverted() if any(COMPONENTS[c].published_file == p.name for c in lacking)]
        found["found"] = [{"file": str(path), "size": path.stat().st_size} for path in there]
        found["found_disk"] = planned_bytes(lacking, "fp16", config) if there else 0
    except (CoDiError, OSError) as error:
        found["problem"] = str(error)
    return found


def _config(out: Path) -> CoDiConfig:
    """Sizes of the model: those of the folder, where it has some already."""
    return CoDiConfig.load(out / "config.json") if (out / "config.json").exists() else CoDiConfig.official()


def _download(out: Path, config: CoDiConfig, progress: Progress) -> None:
    hub, words = Hub(), wanted_vocabularies(out, config)
    weights = wanted_weights(out, hub=hub)
    check_room(out, needed_room(weights, out, config=config) + sum(w.missing() for w in words))
    for word in words:
        fetch(word, out, hub, progress)
    install(weights, out, config=config, hub=hub, progress=progress)


def _convert_found(out: Path, config: CoDiConfig, progress: Progress) -> None:
    convert(unconverted(), out, config=config, progress=progress)
    hub = Hub()
    for word in wanted_vocabularies(out, config):
        fetch(word, out, hub, progress)


def register() -> None:
    """Add the routes to the host's server, if it has one. Calling it again changes nothing."""
    try:
        from aiohttp import web
        from server import PromptServer
    except ImportError:
        return
    server = getattr(PromptServer, "instance", None)
    if server is None or getattr(server, "codi_install", None) is not None:
        return
    job = server.codi_install = Job(lambda state: server.send_sync(EVENT, state))

    @server.routes.get(ROUTE)
    async def show(request: Any) -> Any:
        return web.json_response(await server.loop.run_in_executor(None, job.state))

    @server.routes.post(ROUTE)
    async def act(request: Any) -> Any:
        if (refusal := _refused(request)) is not None:
            return web.json_response({"error": refusal}, status=403)
        try:
            asked = await request.json()
            action = asked["action"]
            if action == "stop":
                job.stop()
            elif action == "start":
                job.start(str(asked.get("source", "download")))
            else:
                raise CoDiError(f"unknown action {action!r}: it is start or stop")
        except CoDiError as error:
            return web.json_response({"error": str(error)}, status=409)
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": "expected {action: start or stop, source: download or found}"}, status=400)
        return web.json_response(await server.loop.run_in_executor(None, job.state))


def _refused(request: Any) -> str | None:
    """Why a request may not change anything, beyond what the host's own checks of Origin and Host refuse: pages of other sites can send
    forms, but neither JSON nor this header without being asked first."""
    if request.content_type != "application/json":
        return "expected JSON"
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return "the request comes from another site"
    return None

"""Makes the pack importable as package `codi`, and finds a ComfyUI for the tests named test_host_*.

The host is put on sys.path by the first test that needs it, so that headless tests run as on a machine without ComfyUI."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

# Tests use networks of a few layers: more threads do not speed them up, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs deaf to interrupts, which their children inherit; tests interrupt children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

TESTS = Path(__file__).resolve().parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from host.setting import HOST, PACK, find_front_end, host_version, import_pack, make_base  # noqa: E402

import_pack()
_skipped: list[str] = []


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of codi-mini's configuration with random weights; only to be read."""
    from random_model import random_model

    return random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def pipe(folder: Path) -> Any:
    """The pipeline of that folder."""
    from codi.codi_models.pipeline import CoDiPipeline

    return CoDiPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="session")
def host() -> Path:
    """The ComfyUI folder; skips the test where there is none."""
    if HOST is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to its folder")
    if not (HOST / "main.py").is_file():
        pytest.fail(f"COMFYUI_PATH={HOST} is not a ComfyUI folder: it has no main.py")
    if lacking := [m for m in ("aiohttp", "torchsde", "comfyui_frontend_package") if importlib.util.find_spec(m) is None]:
        pytest.skip(f"the requirements of {HOST} are not installed here: no {', '.join(lacking)}")
    return HOST


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base directory of the in-process host."""
    return make_base(tmp_path_factory.mktemp("comfy"))


@pytest.fixture(scope="session")
def session(host: Path, base: Path):
    """The host, started in this process with the pack in it (host.session.Session)."""
    from host.session import Session

    return Session(host, base, PACK)


@pytest.fixture
def interrupt_at(session, monkeypatch: pytest.MonkeyPatch):
    """Makes the host's interrupt come when it is asked about for the nth time; returns a list that grows with every question."""
    import comfy.model_management as mm

    def prepare(nth: int) -> list[int]:
        asked: list[int] = []

        def ask() -> None:
            asked.append(1)
            if len(asked) == nth:
                raise mm.InterruptProcessingException

        monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", ask)
        return asked

    return prepare


@pytest.fixture(scope="session")
def rig(session):
    """Every node with inputs that suit it (host.rig.Rig)."""
    from host.rig import Rig

    return Rig(session)


@pytest.fixture(scope="session")
def server(host: Path, tmp_path_factory: pytest.TempPathFactory):
    """The host in a process of its own (host.server.Server)."""
    from host.server import Server

    running = Server(host, make_base(tmp_path_factory.mktemp("server"), official=True), PACK)
    yield running
    running.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by file name, for the subsets of CONTRIBUTING.md."""
    for item in items:
        for prefix, mark in (("test_host_", "host"), ("test_host_browser", "browser")):
            if item.path.name.startswith(prefix):
                item.add_marker(mark)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "test_host_" in report.nodeid:
        _skipped.append(f"{report.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    version = "none found, host tests skipped (set COMFYUI_PATH)"
    if HOST is not None:
        version = f"{HOST} ({host_version(HOST)})"
    terminalreporter.write_line(f"ComfyUI: {version}")
    if os.environ.get("CODI_FRONTEND"):
        terminalreporter.write_line(f"front end: {find_front_end()}")
    for line in _skipped:
        terminalreporter.write_line(f"  skipped {line}")

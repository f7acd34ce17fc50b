"""Makes the pack importable as package `codi`, and finds a ComfyUI for the tests named test_host_*.

A host is looked for in this order: COMFYUI_PATH, the ComfyUI that the pack lies in, ~/comfy/ComfyUI.
Without one the host tests are skipped, and the last lines of the run say so. The host is put on sys.path
by the first test that needs it, so that headless tests run as they do on a machine without ComfyUI.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# Tests use networks of a few layers: more threads do not speed them up, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

TESTS = Path(__file__).resolve().parent
PACK = TESTS.parent

# The root of the pack has a folder `nodes`, and so has the host: `import nodes` must find the host's.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != PACK and not (Path(p or ".") / "comfy_execution").is_dir()]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))


def _import_pack() -> None:
    spec = importlib.util.spec_from_file_location("codi", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["codi"] = module
    spec.loader.exec_module(module)


def find_host() -> Path | None:
    """Folder of the ComfyUI to test in, or None."""
    if given := os.environ.get("COMFYUI_PATH"):
        return Path(given).expanduser().resolve()
    for folder in (*PACK.parents, Path.home() / "comfy" / "ComfyUI"):
        if (folder / "comfy_execution").is_dir() and (folder / "main.py").is_file():
            return folder
    return None


_import_pack()
HOST = find_host()
_skipped: list[str] = []


@pytest.fixture(scope="session")
def host() -> Path:
    """The ComfyUI folder; skips the test where there is none."""
    if HOST is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to its folder")
    if not (HOST / "main.py").is_file():
        pytest.fail(f"COMFYUI_PATH={HOST} is not a ComfyUI folder: it has no main.py")
    return HOST


def make_base(folder: Path) -> Path:
    """Makes `folder` a ComfyUI base directory with the model `tiny`, random weights, which also stands for a codi-mini not shipped."""
    from host.tiny import create_tiny

    models = folder / "models" / "codi"
    create_tiny(models / "tiny")
    if not (PACK / "weights" / "codi-mini" / "config.json").is_file():
        (models / "codi-mini").symlink_to(models / "tiny", target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base directory of the in-process host."""
    return make_base(tmp_path_factory.mktemp("comfy"))


@pytest.fixture(scope="session")
def session(host: Path, base: Path):
    """The host, started in this process with the pack in it (host.session.Session)."""
    from host.session import Session

    return Session(host, base, PACK)


@pytest.fixture(scope="session")
def server(host: Path, tmp_path_factory: pytest.TempPathFactory):
    """The host in a process of its own (host.server.Server)."""
    from host.server import Server

    running = Server(host, make_base(tmp_path_factory.mktemp("server")), PACK)
    yield running
    running.stop()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "test_host_" in report.nodeid:
        _skipped.append(f"{report.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    version = "none found, host tests skipped (set COMFYUI_PATH)"
    if HOST is not None:
        version = f"{HOST} ({_host_version(HOST)})"
    terminalreporter.write_line(f"ComfyUI: {version}")
    for line in _skipped:
        terminalreporter.write_line(f"  skipped {line}")


def _host_version(folder: Path) -> str:
    file = folder / "comfyui_version.py"
    return file.read_text(encoding="utf-8").split('"')[1] if file.is_file() else "unknown version"

"""A batch on two local Ray workers, one of them killed in the middle: nothing is lost, nothing made twice."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from host.setting import PACK
from host.tiny import create_tiny

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (an optional extra)")
SECONDS = 600


def workers(parent: int) -> list[int]:
    """Process ids of the actors that descend from a process."""
    import psutil

    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if "ray::_Actor" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_killed_worker_loses_nothing(tmp_path):
    create_tiny(tmp_path / "tiny")
    names = [f"i{i:02d}" for i in range(16)]
    lines = [
        json.dumps({"id": n, "prompts": ["a star"], "outputs": ["image"], "seed": i, "settings": {"steps": 20}})
        for i, n in enumerate(names)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join([*lines, '{"id": "broken"']))
    items = tmp_path / "out" / "items"
    command = [sys.executable, "-m", "codi_models", "batch", str(tmp_path / "m.jsonl"), "--model", str(tmp_path / "tiny")]
    command += ["--out", str(tmp_path / "out"), "--ray", "--workers", "2", "--batch-size", "2", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    process = subprocess.Popen(command, cwd=PACK, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    seen: dict[str, int] = {}  # name -> inode: an item that is put in place again is another folder
    doubled: list[str] = []
    watching = threading.Event()

    def watch(folder: Path) -> None:
        while not watching.is_set():
            for item in folder.glob("i??"):
                if seen.setdefault(item.name, inode := item.stat().st_ino) != inode:
                    doubled.append(item.name)
            time.sleep(0.05)

    watcher = threading.Thread(target=watch, args=(items,))
    watcher.start()
    try:
        deadline = time.monotonic() + SECONDS
        while len(seen) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        alive = workers(process.pid)
        assert alive, process.communicate(timeout=10)
        os.kill(alive[0], signal.SIGKILL)
        out, error = process.communicate(timeout=SECONDS)
    finally:
        watching.set()
        watcher.join()
        process.kill()
    assert process.returncode == 0, error
    assert "a worker died" in error and "16 made" in out and "Traceback" not in error
    assert sorted(p.name for p in items.iterdir()) == names and not doubled
    assert all({file.name for file in item.iterdir()} == {"item.json", f"{item.name}_image.png"} for item in items.iterdir())
    told = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [(failure["line"], failure["id"]) for failure in told] == [(17, None)]

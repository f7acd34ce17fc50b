"""`codi.py run`: what it does with ports, servers that run already, links, missing networks, and one whole run."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from host.graph import template
from host.setting import PACK


@pytest.fixture(scope="module")
def launch():
    spec = importlib.util.spec_from_file_location("codi_launch", PACK / "codi_launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def answering():
    """A server that says it is a ComfyUI; `nodes` is what it knows of CoDi's loader."""

    class Handler(BaseHTTPRequestHandler):
        nodes: dict = {}

        def do_GET(self):
            body = json.dumps({"system": {}} if self.path == "/system_stats" else self.nodes).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running.server_port, Handler
    running.shutdown()


def test_a_running_comfyui_is_used_where_it_has_the_pack(launch, answering, capsys):
    port, handler = answering
    assert launch.running_host(port) is None and "has no CoDi in it" in capsys.readouterr().out
    handler.nodes = {"CoDiLoadJoint": {}}
    assert launch.running_host(port) == f"http://127.0.0.1:{port}"


def test_a_taken_port_is_replaced(launch, capsys):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert launch.running_host(port) is None
        assert launch.free_port(port) != port and f"port {port} is taken" in capsys.readouterr().out
    assert launch.free_port(port) == port


def test_where_nothing_can_be_fetched_one_line_says_so(launch, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "PLACE", tmp_path / "a place" / "ComfyUI")
    monkeypatch.setattr(launch, "REPOSITORY", "http://127.0.0.1:9/ComfyUI")
    with pytest.raises(launch.Failure, match="cannot be fetched here") as failure:
        launch.fetch_host(yes=True)
    assert "\n" not in str(failure.value) and not launch.PLACE.exists()


def test_comfyui_is_fetched_to_the_place_that_is_named(launch, monkeypatch, tmp_path, capsys):
    """From a local repository in place of the real one."""
    source, place = tmp_path / "source", tmp_path / "my place" / "ComfyUI"
    source.mkdir()
    for command in (
        ["init", "-q"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "t"],
        ["tag", launch.VERSION],
    ):
        subprocess.run(["git", *command], cwd=source, check=True)
    monkeypatch.setattr(launch, "PLACE", place)
    monkeypatch.setattr(launch, "REPOSITORY", source.as_uri())
    real = launch.urllib.request.urlopen
    monkeypatch.setattr(launch.urllib.request, "urlopen", lambda url, **more: real((source / ".git" / "HEAD").as_uri(), **more))
    assert launch.fetch_host(yes=True) == place and (place / ".git").is_dir()
    assert str(place) in capsys.readouterr().out and not place.with_name("ComfyUI.part").exists()


def test_the_pack_is_linked_once(launch, tmp_path):
    base = tmp_path / "with space"
    for _ in range(2):
        launch.link_pack(base)
        link = base / "custom_nodes" / "ComfyUI-CoDi"
        assert link.resolve() == PACK and (link / "nodes" / "load.py").is_file()


def test_a_long_step_is_announced_and_timed(launch, monkeypatch, capsys):
    monkeypatch.setattr(launch, "SHOWN_AFTER", 0.01)
    with launch.step("counting"):
        time.sleep(0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "counting ..." and lines[1].startswith("counting: 0.") and lines[1].endswith(" s")


@pytest.mark.slow
def test_one_whole_run_in_a_place_with_spaces_ended_by_ctrl_c(launch, host, tmp_path):
    """ComfyUI starts, the first workflow runs, results are saved, the address is printed; an interrupt ends all of it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import codi_launch as c; from pathlib import Path;"
        "sys.exit(c.launch(Path(sys.executable), Path(sys.argv[2]), Path(sys.argv[3]), 0, stay=True, browser=False))"
    )
    base = tmp_path / "base with spaces"
    command = [sys.executable, "-u", "-c", code, str(PACK), str(host), str(base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                process.send_signal(signal.SIGINT)
                break
        process.wait(60)
    assert process.returncode == 0, lines
    said = "\n".join(lines)
    assert "starting ComfyUI: " in said and "running the workflow 'Text to everything': " in said and "caption: " in said
    assert f"/?codi={urllib.parse.quote(template('text_to_everything'))}" in said
    saved = [base / "output" / Path(line.removeprefix("saved: ")) for line in lines if line.startswith("saved: ")]
    assert {path.suffix for path in saved} == {".png", ".mp4"} and all(path.stat().st_size > 100 for path in saved)

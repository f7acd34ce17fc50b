"""`python3 codi.py run`: ComfyUI with this pack in it, set up where there is none, and its first workflow run. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parent
REPOSITORY, VERSION = "https://github.com/comfyanonymous/ComfyUI", "v0.33.0"
PLACE = Path.home() / "comfy" / "ComfyUI"
TEMPLATE, WORKFLOW = "01 Text to everything", PACK / "tests" / "workflows" / "text_to_everything.json"
PORT = 8188
SHOWN_AFTER = 2  # seconds
NOT_COPIED = shutil.ignore_patterns(".venv", ".git", "out", "runs", "__pycache__")


class Failure(Exception):
    """Why there is no graph, in a sentence."""


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Says what is going on once it takes longer than 2 s, and then how long it took."""
    begin = time.monotonic()
    timer = threading.Timer(SHOWN_AFTER, print, (f"{what} ...",), {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    print(f"{what}: {time.monotonic() - begin:.1f} s", flush=True)


def get(request: str | urllib.request.Request, seconds: float = 30) -> Any:
    """JSON of an HTTP answer."""
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return json.load(answer)


def running_host(port: int) -> str | None:
    """Address of a ComfyUI that runs on a port of this machine with CoDi in it, or None."""
    url = f"http://127.0.0.1:{port}"
    try:
        get(f"{url}/system_stats", 3)
        nodes = get(f"{url}/object_info/CoDiLoadJoint")
    except (OSError, ValueError):
        return None
    if not nodes:
        print(f"the ComfyUI at {url} has no CoDi in it (put this folder into its custom_nodes and restart it): starting another")
    return url if nodes else None


def free_port(port: int) -> int:
    """The port, or a free one where it is taken."""
    for wanted in (port, 0):
        with socket.socket() as probe:
            if os.name != "nt":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            found = int(probe.getsockname()[1])
        if found != port:
            print(f"port {port} is taken: using {found}")
        return found
    raise Failure("no port of this machine is free")


def fetch_host(yes: bool) -> Path:
    """ComfyUI's source in PLACE, after asking where somebody can be asked. Raises Failure where it cannot be had."""
    asked = sys.stdin.isatty() and not yes
    if asked and input(f"No ComfyUI found. Set it up in {PLACE} (this folder stays as it is)? [Y/n] ").strip().lower().startswith("n"):
        raise Failure("no ComfyUI wanted")
    if PLACE.exists() and any(PLACE.iterdir()):
        raise Failure(f"{PLACE} exists and is no ComfyUI: name one with COMFYUI_PATH")
    if not shutil.which("git"):
        raise Failure("git is not installed, which fetches ComfyUI")
    try:
        with urllib.request.urlopen(f"{REPOSITORY}/info/refs?service=git-upload-pack", timeout=10):
            pass
    except (OSError, ValueError) as error:
        raise Failure(f"ComfyUI cannot be fetched here ({error})") from error
    with step(f"fetching ComfyUI {VERSION} to {PLACE}"):
        PLACE.parent.mkdir(parents=True, exist_ok=True)
        half = PLACE.with_name(f"{PLACE.name}.part")
        shutil.rmtree(half, ignore_errors=True)
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", VERSION, REPOSITORY, str(half)]
        if subprocess.run(command, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}).returncode:
            shutil.rmtree(half, ignore_errors=True)
            raise Failure("ComfyUI could not be fetched, see git's message above")
        if PLACE.exists():
            PLACE.rmdir()
        half.rename(PLACE)
    return PLACE


def link_pack(base: Path) -> None:
    """This folder in custom_nodes of a base directory: a link, where none may be made a copy."""
    link = base / "custom_nodes" / "ComfyUI-CoDi"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists() and link.resolve() == PACK:
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        shutil.rmtree(link)
    try:
        link.symlink_to(PACK, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(PACK, link, ignore=NOT_COPIED)


@contextlib.contextmanager
def server(python: Path, host: Path, base: Path, port: int) -> Iterator[str]:
    """Address of a ComfyUI of our own, which ends with the block. Its log is server.log in the base directory."""
    command = [str(python), "main.py", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    command += ["--database-url", f"sqlite:///{(base / 'comfyui.db').as_posix()}", "--disable-api-nodes"]
    gpu = subprocess.run([str(python), "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]).returncode == 0
    log = base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *([] if gpu else ["--cpu"])], cwd=host, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield _answering(process, f"http://127.0.0.1:{port}", log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _answering(process: subprocess.Popen[bytes], url: str, log: Path) -> str:
    with step("starting ComfyUI"):
        for _ in range(1200):
            if process.poll() is not None:
                raise Failure(f"ComfyUI ended with status {process.returncode}; its log: {log}")
            try:
                get(f"{url}/system_stats", 5)
            except (OSError, ValueError):
                time.sleep(0.25)
                continue
            if not get(f"{url}/object_info/CoDiLoadJoint"):
                raise Failure(f"ComfyUI could not load this pack; its log: {log}")
            return url
    raise Failure(f"ComfyUI does not answer; its log: {log}")


def first_run(url: str) -> list[str]:
    """Runs the first workflow. Returns lines about its results."""
    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    request = urllib.request.Request(f"{url}/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"})
    with step(f"running the workflow {TEMPLATE[3:]!r}"):
        try:
            prompt_id = get(request)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise Failure(f"ComfyUI refuses the workflow: {error.read().decode(errors='replace')}") from error
        while not (entry := get(f"{url}/history/{prompt_id}").get(prompt_id)):
            time.sleep(0.25)
    if entry["status"]["status_str"] != "success":
        raise Failure(f"the workflow failed: {json.dumps(entry['status']['messages'][-1])}")
    lines = []
    for number, shown in entry["outputs"].items():
        if prompt[number]["class_type"] == "CoDiPreview":
            lines += [f"caption: {text}" for text in shown.get("text", ())]
        files = [file for files in shown.values() if isinstance(files, list) for file in files if isinstance(file, dict)]
        lines += [f"saved: {Path(file['subfolder']) / file['filename']}" for file in files if file.get("type") == "output"]
    return lines


def launch(python: Path, host: Path, base: Path, port: int, *, stay: bool, browser: bool) -> int:
    """ComfyUI at `host` with `base` as its base directory: started, its first workflow run, kept running until Ctrl-C where `stay`."""
    base.mkdir(parents=True, exist_ok=True)
    link_pack(base)
    with server(python, host, base, free_port(port)) as url:
        show(url, base / "output", stay=stay, browser=browser)
        if stay:
            with contextlib.suppress(KeyboardInterrupt):
                print("Ctrl-C ends ComfyUI", flush=True)
                signal.pause() if hasattr(signal, "pause") else threading.Event().wait()
    return 0


def show(url: str, output: Path | None, *, stay: bool, browser: bool) -> None:
    """Runs the first workflow at an address, and says where its results and its graph are."""
    for line in first_run(url):
        print(line)
    if output:
        print(f"results lie in {output}")
    address = f"{url}/?codi={urllib.parse.quote(TEMPLATE)}"
    if stay:
        print(f"the graph: {address}", flush=True)
        if browser and (os.name == "nt" or sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(address)

#!/usr/bin/env python3
"""The README's commands, by the path of this file from any folder.

python3 codi.py run       one sentence to picture, clip, sound and caption: inside ComfyUI where one is found, else headless
python3 codi.py test      lint, type check and all tests; --quick: those that need no ComfyUI
python3 codi.py COMMAND   convert, download or another command of `python -m codi_models`, with the Python that is called

The first two need only Python 3.10+: they make a virtual environment in .venv beside this file first, once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parent
VENV = PACK / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PROMPT = "a red circle bounces twice"


def find_host() -> Path | None:
    """ComfyUI by COMFYUI_PATH, else the one this pack lies in, else ~/comfy/ComfyUI."""
    if given := os.environ.get("COMFYUI_PATH"):
        return Path(given).expanduser().resolve()
    for folder in (*PACK.parents, Path.home() / "comfy" / "ComfyUI"):
        if (folder / "comfy_execution").is_dir() and (folder / "main.py").is_file():
            return folder
    return None


def set_up(host: Path | None) -> None:
    """The virtual environment with the development requirements and, where there is a host, the host's own."""
    files = [PACK / "requirements.txt", PACK / "requirements-dev.txt", *([host / "requirements.txt"] if host else [])]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    stamp = VENV / "installed"
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"setting up {VENV} (once; PyTorch is a large download)", flush=True)
    venv.create(VENV, with_pip=True, clear=VENV.exists())
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for file in files[1:]:
        subprocess.run([*pip, "-r", str(file)], check=True)
    stamp.write_text(wanted)


def run(host: Path | None) -> int:
    """Generate all four outputs of one sentence and say where they lie."""
    if host:
        print(f"running the workflow text_to_everything in ComfyUI at {host}", flush=True)
        return _run_in_host(host, PACK / "out" / "comfyui")
    out = PACK / "out" / "demo"
    command = ["generate", "--text", PROMPT, "--outputs", "image,video,audio,text", "--out", str(out)]
    done = subprocess.run([str(PYTHON), "-m", "codi_models", *command], cwd=PACK).returncode
    if not done:
        _list(out)
    return done


def _list(folder: Path) -> None:
    print("results:")
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            print(f"  {file}")


def _run_in_host(host: Path, base: Path) -> int:
    """Start a ComfyUI of its own on a free port, with this pack alone, and queue the shipped workflow."""
    packs = base / "custom_nodes"
    packs.mkdir(parents=True, exist_ok=True)
    link = packs / "ComfyUI-CoDi"
    if link.is_symlink() or link.exists():
        link.unlink() if link.is_symlink() else shutil.rmtree(link)
    try:
        link.symlink_to(PACK, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(PACK, link, ignore=shutil.ignore_patterns(".venv", "out", "runs", ".git"))
    shutil.rmtree(base / "output", ignore_errors=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(PYTHON), "main.py", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    command += ["--database-url", f"sqlite:///{base / 'comfyui.db'}", "--disable-api-nodes"]
    gpu = subprocess.run([str(PYTHON), "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]).returncode == 0
    log = base / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen([*command, *([] if gpu else ["--cpu"])], cwd=host, stdout=output, stderr=subprocess.STDOUT)
        try:
            status = _queue(f"http://127.0.0.1:{port}", server, base)
        finally:
            server.terminate()
            server.wait(30)
    if status:
        print(f"the run failed: {status}\nthe server's log: {log}", file=sys.stderr)
        return 1
    _list(base / "output")
    return 0


def _keep(outputs: dict[str, Any], base: Path) -> None:
    """Copy the files that nodes show into the output folder: the server empties its temporary folder when it ends."""
    target = base / "output"
    target.mkdir(parents=True, exist_ok=True)
    for shown in outputs.values():
        for files in shown.values():
            for file in files if isinstance(files, list) else []:
                if isinstance(file, dict) and "filename" in file:
                    source = base / file.get("type", "output") / file.get("subfolder", "") / file["filename"]
                    if source.is_file() and source.parent != target:
                        shutil.copy(source, target)


def _queue(url: str, server: subprocess.Popen[bytes], base: Path) -> str:
    """Run the workflow through the server's HTTP interface. Returns what went wrong, or nothing."""
    for _ in range(240):
        if server.poll() is not None:
            return f"ComfyUI ended with status {server.returncode}"
        try:
            _get(f"{url}/system_stats")
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    else:
        return "ComfyUI did not answer within two minutes"
    prompt = json.loads((PACK / "tests" / "workflows" / "text_to_everything.json").read_text(encoding="utf-8"))
    request = urllib.request.Request(f"{url}/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"})
    try:
        prompt_id = _get(request)["prompt_id"]
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace")
    while server.poll() is None:
        history = _get(f"{url}/history/{prompt_id}")
        if prompt_id in history:
            entry = history[prompt_id]
            _keep(entry["outputs"], base)
            for output in entry["outputs"].values():
                if "text" in output:
                    print("caption:", "".join(output["text"]))
            return "" if entry["status"]["status_str"] == "success" else json.dumps(entry["status"]["messages"][-1])
        time.sleep(0.5)
    return f"ComfyUI ended with status {server.returncode}"


def _get(request: str | urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test(arguments: list[str]) -> int:
    """ruff, mypy, then pytest, whose summary comes last. `--quick`: no host, no browser, nothing slow; the rest goes to pytest."""
    if "--quick" in arguments:
        arguments = [*(a for a in arguments if a != "--quick"), "-m", "not host and not browser and not slow"]
    checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy", "codi_models", "nodes", "codi.py"]]
    for check in checks:
        if status := subprocess.run([str(PYTHON), "-m", *check], cwd=PACK).returncode:
            return status
    return subprocess.run([str(PYTHON), "-m", "pytest", *arguments], cwd=PACK).returncode


def pass_on(argv: list[str]) -> int:
    """A command of the package itself, with this Python: an embedded one does not look for modules beside the script by itself."""
    sys.path.insert(0, str(PACK))
    try:
        from codi_models.__main__ import main as command
    except ImportError as error:
        print(f"error: {error}. Call this with the Python that ComfyUI runs with, which has PyTorch", file=sys.stderr)
        return 2
    return command(argv)


def main(argv: list[str]) -> int:
    """Run one command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    if argv[0] not in ("run", "test"):
        return pass_on(argv)
    host = find_host()
    set_up(host)
    return run(host) if argv[0] == "run" else test(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

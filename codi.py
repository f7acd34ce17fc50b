#!/usr/bin/env python3
"""The README's commands, by the path of this file from any folder.

python3 codi.py run       one sentence to image, video, audio and caption in ComfyUI, which is set up where there is none (run --help)
python3 codi.py test      lint, type check and all tests; --quick: those that need no ComfyUI
python3 codi.py COMMAND   convert, download or another command of `python -m codi_models`, with the Python that is called

The first two need only Python 3.10+: they make a virtual environment in .venv beside this file first, once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

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
    begin = time.monotonic()
    venv.create(VENV, with_pip=True, clear=VENV.exists())
    # Of the many modules few are imported, and Python compiles these then.
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    for file in files[1:]:
        subprocess.run([*pip, "-r", str(file)], check=True)
    stamp.write_text(wanted)
    print(f"setting up: {time.monotonic() - begin:.1f} s", flush=True)


def run(host: Path | None, arguments: list[str]) -> int:
    """ComfyUI with the first workflow run in it, or, where there is none and none can be had, the same headless."""
    import codi_launch as launch

    parser = argparse.ArgumentParser(prog="codi.py run", description="The first workflow in ComfyUI, which is set up where there is none.")
    parser.add_argument("--yes", action="store_true", help="set ComfyUI up without asking")
    parser.add_argument("--headless", action="store_true", help="without ComfyUI: the outputs as files")
    parser.add_argument("--port", type=int, default=launch.PORT, help="of ComfyUI (default: %(default)s, or a free one)")
    parser.add_argument("--once", action="store_true", help="end after the first run, as where there is no terminal")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    options = parser.parse_args(arguments)
    stay = sys.stdout.isatty() and not options.once
    try:
        if not options.headless:
            if url := launch.running_host(options.port):
                print(f"using the ComfyUI that runs at {url}")
                launch.show(url, None, stay=True, browser=stay and not options.no_browser)
                return 0
            own = host is None
            host = host or launch.fetch_host(options.yes)
            print(f"ComfyUI: {host}")
            set_up(host)
            base = host if own else PACK / "out" / "comfyui"
            return launch.launch(PYTHON, host, base, options.port, stay=stay, browser=not options.no_browser)
    except launch.Failure as failure:
        if host:
            print(f"error: {failure}", file=sys.stderr)
            return 1
        print(f"{failure}: running headless")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return _headless(PACK / "out" / "demo")


def _headless(out: Path) -> int:
    set_up(None)
    command = ["generate", "--text", PROMPT, "--outputs", "image,video,audio,text", "--out", str(out)]
    if done := subprocess.run([str(PYTHON), "-m", "codi_models", *command], cwd=PACK).returncode:
        return done
    print("results:", *(f"  {file}" for file in sorted(out.rglob("*")) if file.is_file()), sep="\n")
    return 0


def test(arguments: list[str]) -> int:
    """ruff, mypy, then pytest on one process more than there are cores, up to four, for many wait for a server or a page; its summary
    comes last.

    `--quick`: no host, no browser, nothing slow; the rest goes to pytest (`-n0` for one process)."""
    if "--quick" in arguments:
        arguments = [*(a for a in arguments if a != "--quick"), "-m", "not host and not browser and not slow"]
    checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy", "codi_models", "nodes", "codi.py"]]
    for check in checks:
        if status := subprocess.run([str(PYTHON), "-m", *check], cwd=PACK).returncode:
            return status
    if not any(a.startswith(("-n", "--pdb")) for a in arguments):
        arguments = [f"-n{min(4, (os.cpu_count() or 1) + 1)}", "--dist=loadfile", *arguments]
    return subprocess.run([str(PYTHON), "-m", "pytest", *arguments], cwd=PACK).returncode


def pass_on(argv: list[str]) -> int:
    """A command of the package itself, with this Python: an embedded one does not look for modules beside the script by itself."""
    try:
        from codi_models.__main__ import run as command
    except ImportError as error:
        print(f"error: {error}. Call this with the Python that ComfyUI runs with, which has PyTorch", file=sys.stderr)
        return 2
    return command(argv)


def main(argv: list[str]) -> int:
    """Run one command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    sys.path.insert(0, str(PACK))
    if argv[0] not in ("run", "test"):
        return pass_on(argv)
    host = find_host()
    if argv[0] == "run":
        return run(host, argv[1:])
    set_up(host)
    return test(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

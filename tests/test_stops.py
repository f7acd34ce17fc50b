"""Two writers to one folder, disks that are full, and readers that leave: each is told in one line, and nothing half stays."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from codi.codi_models import __main__ as command
from codi.codi_models.__main__ import main
from codi.codi_models.errors import CoDiError
from codi.codi_models.files import temporary_of
from codi.codi_models.locks import LOCK, Busy, sole_writer

PACK = Path(__file__).resolve().parent.parent
sys.path.append(str(PACK / "tests" / "campaign"))
from outcomes import whole_files  # noqa: E402

HOLD = """
import sys, time
from codi_models.locks import sole_writer
with sole_writer(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def held(folder, part=""):
    """A process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), part], cwd=PACK, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_two_writers_are_told_of_each_other_until_the_first_is_gone(tmp_path):
    folder = tmp_path / "a" / "out"
    other = held(folder)
    with pytest.raises(Busy, match=f"process {other.pid} on .* writes to .*out"), sole_writer(folder):
        pass
    with pytest.raises(Busy, match=str(other.pid)), sole_writer(folder, "image"):
        pass
    other.kill()
    other.wait()
    assert (folder / LOCK).exists()  # it was killed: the file says nothing, the system does
    with sole_writer(folder):
        pass
    assert not (folder / LOCK).exists()


def test_parts_of_a_folder_are_written_beside_each_other(tmp_path):
    other = held(tmp_path, "image")
    try:
        with sole_writer(tmp_path, "audio"):
            pass
        for part in ("image", ""):
            with pytest.raises(Busy, match=str(other.pid)), sole_writer(tmp_path, part):
                pass
    finally:
        other.kill()
        other.wait()
    with sole_writer(tmp_path):  # and what the killed one left is gone
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())


def test_a_folder_in_which_nothing_was_written_is_not_left(tmp_path):
    with pytest.raises(CoDiError, match="bad"), sole_writer(tmp_path / "a" / "b"):
        raise CoDiError("bad")
    assert not list(tmp_path.iterdir())
    with sole_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_many_processes_take_turns(tmp_path):
    """None of them is in the folder while another is: each would find the other's mark."""
    code = (
        "import sys, time; from pathlib import Path; from codi_models.locks import Busy, sole_writer\n"
        "done, mark = 0, Path(sys.argv[1], 'mark')\n"
        "while done < 40:\n"
        "    try:\n"
        "        with sole_writer(sys.argv[1]): mark.touch(exist_ok=False); mark.unlink(); done += 1\n"
        "    except Busy: time.sleep(0.001)\n"
    )
    (tmp_path / "kept").touch()
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=PACK, stderr=subprocess.PIPE) for _ in range(4)]
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in processes] == [(b"", 0)] * 4


COMMANDS = {
    "generate": lambda model, out, more: ["generate", "--model", model, "--outputs", "text", "--device", "cpu", "--out", out],
    "batch": lambda model, out, more: ["batch", more / "manifest.jsonl", "--model", model, "--device", "cpu", "--out", out],
    "train, its model": lambda model, out, more: [
        "train", "--base", model, "--data", more / "pairs", "--steps", "1", "--stage", "denoiser", "--modality", "image",
        "--out", out, "--runs", more / "runs"],
    "train, its runs": lambda model, out, more: [
        "train", "--base", model, "--data", more / "pairs", "--steps", "1", "--stage", "denoiser", "--modality", "image",
        "--out", more / "model", "--runs", out],
    "convert": lambda model, out, more: ["convert", more / "published", "--config", model / "config.json", "--out", out],
    "download": lambda model, out, more: ["download", "tokenizers", "--yes", "--out", out],
    "world": lambda model, out, more: ["world", "--count", "1", "--out", out],
    "evaluate": lambda model, out, more: ["evaluate", "--model", model, "--out", out],
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model, and a folder with data, a manifest and published files of its sizes."""
    import published
    from host.tiny import create_tiny, tiny_config
    from PIL import Image

    folder = tmp_path_factory.mktemp("tiny")
    create_tiny(folder / "model")
    published.write(folder / "more" / "published", tiny_config())
    (folder / "more" / "pairs").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 90, 200)).save(folder / "more" / "pairs" / f"{number}.png")
        (folder / "more" / "pairs" / f"{number}.txt").write_text(f"a picture {number}")
    item = {"id": "a", "prompts": ["a star"], "outputs": ["text"], "settings": {"steps": 1}}
    (folder / "more" / "manifest.jsonl").write_text(json.dumps(item))
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_writes_a_folder_holds_it(tiny, tmp_path, capsys, name):
    argv = [str(word) for word in COMMANDS[name](tiny / "model", tmp_path, tiny / "more")]
    part = "denoiser-image" if name == "train, its runs" else ""
    with sole_writer(tmp_path, part):
        assert main(argv) == 2
        assert [path.name for path in tmp_path.iterdir()] == [f"{LOCK}-{part}" if part else LOCK]
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: process {os.getpid()} on ") and "give another folder" in error


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
@pytest.mark.parametrize("merged", [False, True], ids=["stdout", "stdout and stderr"])
@pytest.mark.parametrize("name", command.COMMANDS)
def test_a_reader_that_leaves_ends_a_command_without_a_word(name, merged):
    """`COMMAND --help | head -0`, for each, also in the middle of what it prints."""
    read, write = os.pipe()
    os.close(read)
    argv, error = [sys.executable, "-m", "codi_models", name, "--help"], write if merged else subprocess.PIPE
    process = subprocess.Popen(argv, cwd=PACK, stdout=write, stderr=error)
    os.close(write)
    said = process.communicate(timeout=120)[1]
    assert process.returncode in (0, 141) and not said  # 0 where the parser of options had printed all of it


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_a_reader_that_leaves_while_a_command_works(tiny, tmp_path):
    command = [sys.executable, "-u", "-m", "codi_models", "evaluate", "--model", tiny / "model", "--samples", "1", "--steps", "1", "--out",
               tmp_path / "out", "--only", "fidelity"]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), cwd=PACK, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert not process.stderr.read() and process.wait(timeout=120) == 141
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_under_what_is_printed():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "codi_models", "--help"], cwd=PACK, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == "error: cannot write what is to be printed: No space left on device. Make room\n"


WRITERS = {"write_text", "write_bytes", "mkdir", "makedirs", "touch", "save_file", "copyfile", "rmtree", "savez", "savefig"}
HELPERS = {"whole_file", "writing", "_writing"}
ELSEWHERE = {
    "files.py", "locks.py",  # the helpers themselves
    "vocabulary.py",  # parity's, in a temporary folder
    "hub.py", "store.py", "loop.py",  # tried below: they go on where they were, or write folders
}  # fmt: skip


def test_everything_is_written_through_the_helpers():
    """Which make a full disk one line and leave nothing half: a list of files that write by themselves, each tried by a test."""
    found = []
    for path in [p for folder in ("codi_models", "nodes") for p in sorted((PACK / folder).rglob("*.py")) if p.name not in ELSEWHERE]:
        inside: set[int] = set()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            calls = [item.context_expr for item in node.items] if isinstance(node, ast.With) else []
            if any(getattr(getattr(call, "func", None), "id", "") in HELPERS for call in calls):
                inside |= {id(part) for part in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in inside and _writes(node):
                found.append(f"{path.relative_to(PACK)}:{node.lineno} {ast.unparse(node)[:80]}")
    assert not found


def _writes(call):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "open":
        modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]
        return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
    if name == "replace" or name == "rename":  # of a path or of `os`, not of a string or a dataclass
        return isinstance(call.func, ast.Attribute) and (len(call.args) == 1 or ast.unparse(call.func.value) == "os") and not call.keywords
    return isinstance(call.func, ast.Attribute) and name in WRITERS or (name in ("save_file", "rmtree") and isinstance(call.func, ast.Name))


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own, of so many bytes."""
    mounted = []

    def make(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True).returncode:
            pytest.skip("no right to mount a disk")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("size", ["4k", "16k", "64k", "300k"])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "download"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half(tiny, disk, tmp_path, capsys, name, size):
    folder = disk(size)
    argv = [str(word) for word in COMMANDS[name](tiny / "model", folder / "out", tiny / "more")]
    if name == "generate":
        argv[4:5] = ["image,audio,video,text", "--raw", "--steps", "1"]
    if name == "evaluate":
        argv += ["--only", "fidelity", "--samples", "1", "--steps", "1"]
    if name == "world":
        argv[2] = "5"
    if name == "train, its runs":
        argv[argv.index("--out") + 1] = str(tmp_path / "model")
    code = main(argv)
    said = capsys.readouterr().err.strip().splitlines()
    assert code in (0, 2)
    if code:
        assert said[-1].startswith("error: ") and ("No space left on device" in said[-1] or "are needed: make room" in said[-1]), said[-1]
    if (folder / "out").exists():
        whole_files(folder / "out")
        assert not [p.name for p in folder.rglob("*") if LOCK in p.name or p.name.endswith(".partial") or temporary_of(p)]

"""Every option of every command with values that make no sense: accepted, or refused in one line; never a traceback, never a hang."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys

import pytest
from codi.codi_models import __main__ as command
from codi.codi_models.cli.parser import Parser, number, place, whole
from test_stops import PACK, tiny  # noqa: F401

VALUES = [
    "", " ", "-", "-1", "0", "1e9", "1000000000", str(2**64 - 1), str(2**64), "9" * 5000, "nan", "-inf", "1e400", "1_0", "true",
    "\U0001f534", "=", ",,", "a,b", "a=1", "image=nan", "../..", "a" * 5000, "no/such/place", ".", "%s", "[", "\udcff",
]  # fmt: skip


class Accepted(Exception):
    """The work has begun: the value was taken."""


@pytest.fixture
def usual(tiny, tmp_path, monkeypatch):  # noqa: F811
    """Arguments with which each command works, and what would take long replaced by `Accepted`."""

    def accept(*_, **__):
        raise Accepted

    for name in ("training.run.train_run", "training.finetune.train_run", "training.information.write_report", "batch.on_ray.RayEngine",
                 "cli.download.fetch", "cli.download.install", "parity.cli.run_folder", "bounce_world.evaluation.cells.Runner._run",
                 "cli.convert.convert", "pipeline.CoDiPipeline.load", "batch.worker.Worker.make",
                 "bounce_world.export.render_image"):  # fmt: skip
        monkeypatch.setattr(f"codi.codi_models.{name}", accept)
    place = tmp_path / "a" / "b" / "c"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)  # what leads out of it stays in the test's own folder
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model, more, out = str(tiny / "model"), tiny / "more", str(tmp_path / "out")
    finetune = ["--base", model, "--data", str(more / "pairs"), "--steps", "1", "--stage", "denoiser", "--modality", "image"]
    return {
        "generate": ["--model", model, "--outputs", "image,text", "--text", "a", "--steps", "1", "--device", "cpu", "--out", out],
        "batch": [str(more / "manifest.jsonl"), "--model", model, "--device", "cpu", "--out", out],
        "train": [*finetune, "--out", out, "--runs", f"{out}-runs"],
        "convert": [str(more / "published"), "--config", f"{model}/config.json", "--out", out],
        "download": ["tokenizers", "--yes", "--out", out],
        "world": ["--count", "1", "--out", out],
        "evaluate": ["--model", model, "--only", "fidelity", "--samples", "1", "--out", out],
        "parity": [str(more)],
    }


def options(name):
    """Options of a command that take a value: the first name of each."""
    found = []

    def parsed(parser, *_, **__):
        found.extend(parser._actions)
        raise Accepted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        with pytest.raises(Accepted):
            importlib.import_module(f"codi.codi_models{command.COMMANDS[name][0]}").main([])
    return [action.option_strings[0] for action in found if action.option_strings and action.nargs != 0]


@pytest.mark.parametrize("name, option", [(name, option) for name in command.COMMANDS for option in options(name)])
def test_any_value_of_any_option_is_taken_or_refused_in_one_line(usual, capsys, name, option):
    wrong = []
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # as in a process of its own
    for value in VALUES:
        capsys.readouterr()
        try:
            code = command.main([name, *usual[name], f"{option}={value}"])
        except Accepted:
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            wrong.append(f"{value[:40]!r}: {type(error).__name__}: {str(error)[:100]}")
            continue
        lines = [line for line in capsys.readouterr().err.strip().split("\n") if line.startswith("error: ")]
        if code not in (0, 2) or (code == 2 and (len(lines) != 1 or not 20 < len(lines[0]) < 2000)):
            wrong.append(f"{value[:40]!r}: exit {code}, {lines}")
    assert not wrong


COUNTS = {
    "--count",
    "--steps",
    "--batch-size",
    "--size",
    "--frames",
    "--batch",
    "--batches",
    "--threads",
    "--workers",
    "--cpus",
    "--samples",
}


@pytest.mark.parametrize("name, option", [(name, option) for name in command.COMMANDS for option in options(name) if option in COUNTS])
def test_counts_that_nobody_means_are_refused(usual, name, option):
    """Numbers that set how long a command works, or how much it takes."""
    try:
        code = command.main([name, *usual[name], option, "1000000000"])
    except SystemExit as end:
        code = end.code
    assert code == 2


@pytest.mark.skipif(os.name == "nt", reason="file names are texts there")
def test_names_of_files_may_hold_any_bytes(tmp_path):
    """They can be printed, too."""
    argv = [sys.executable, "-m", "codi_models", "world", "--count", "1", "--out", os.fsencode(tmp_path) + b"/\xff"]
    done = subprocess.run(argv, cwd=PACK, capture_output=True)
    assert done.returncode == 0 and b"files in" in done.stdout and b"udcff" in done.stdout and not done.stderr


@pytest.mark.parametrize("kind, good, bad", [
    (whole(1, 9), ["1", "9", " 3 "], ["0", "10", "1e0", "", "nan", "9" * 5000]),
    (number(0, 2), ["0", "1e-3", "2"], ["-0.1", "2.1", "nan", "inf", ""]),
    (place, ["a", ".", "a/b"], ["", " "]),
])  # fmt: skip
def test_types_of_options(kind, good, bad):
    parser = Parser(prog="p")
    parser.add_argument("--x", type=kind)
    for value in good:
        parser.parse_args([f"--x={value}"])
    for value in bad:
        with pytest.raises(SystemExit) as end:
            parser.parse_args([f"--x={value}"])
        assert end.value.code == 2

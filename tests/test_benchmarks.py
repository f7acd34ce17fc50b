"""The benchmark scripts run, check what they time, and refuse what they cannot compare; no time is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("script", "arguments", "rows"),
    [
        ("levers.py", "--config mini --output text --repeats 1 --levers folded,both,batch,bfloat16 --device cpu", 4),
        ("levers.py", "--config mini --output audio --repeats 1 --levers unconditional,seeds,window,environment,graph --device cpu", 4),
        ("growth.py", "--scale 10 --size 64 --repeats 1 --only prompts,rate --outputs 1 --prompts 1,2 --out OUT", 6),
        ("components.py", "--only vocoder --repeats 1", 1),
        ("half_precision.py", "--only vocoder,text_denoiser", 4),
        ("gpu.py", "agreement --device cpu --evaluations 2", 2),
        ("gpu.py", "step --config mini --device cpu --repeats 1", 3),
        ("samplers.py", "--samples 2 --runs euler/normal --evaluations 2 --outputs text --no-joint --device cpu --out OUT", 2),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(".py") else "",
)
def test_a_script_prints_a_table(script: str, arguments: str, rows: int, tmp_path: Path) -> None:
    arguments = arguments.replace("OUT", str(tmp_path))
    threads = [] if script in ("half_precision.py", "gpu.py") else ["--threads", "1"]
    done = run(script, *arguments.split(), *threads)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == rows + 2 and torch.__version__ in done.stdout


def test_a_folder_without_the_published_code_is_refused(tmp_path: Path) -> None:
    done = run("against_published.py", "--published", str(tmp_path))
    assert done.returncode == 1 and "is no checkout of the published code" in done.stderr and "Traceback" not in done.stderr


def test_results_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    sides = {"slow": lambda: torch.ones(3), "fast": lambda: torch.ones(3) * 1.01}
    with pytest.raises(SystemExit, match="differ by"):
        measure.compare("a sum", sides, 1, torch.device("cpu"), 1e-3)
    row = measure.compare("a sum", sides, 1, torch.device("cpu"), 0.1)
    assert row[0] == "a sum" and float(row[4]) == pytest.approx(0.01, rel=0.05)

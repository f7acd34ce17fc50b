"""What the benchmark scripts share: alternating runs, agreement, the machine, memory of a process, Markdown tables."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

CONFIGS = ("mini", "official")


def config_of(name: str) -> Any:
    """Configuration of one of `CONFIGS`: codi-mini's as it ships, or that of the published checkpoint."""
    from codi_models.config import CoDiConfig

    return CoDiConfig.official() if name == "official" else CoDiConfig.load(ROOT / "weights" / "codi-mini" / "config.json")


def settle(threads: int) -> None:
    """Threads of torch (0 leaves its choice), no gradients, equal random numbers in every run."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)


def machine(device: torch.device) -> str:
    """Device, threads, versions and how busy the machine is, on one line."""
    name = _processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    cores = f", {os.cpu_count()} cores, {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{name}{cores}, torch {torch.__version__}, Python {platform.python_version()}{load}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        features = named.get("flags", "").split()
        extra = " with " + ", ".join(f for f in ("avx512f", "amx_bf16") if f in features) if features else ""
        return named.get("model name", "CPU") + extra
    return platform.processor() or "CPU"


clock = time.perf_counter
"""What times are taken with. `time.process_time`, with one thread, leaves out what other programs take of a busy machine."""


def alternate(sides: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of every side; runs alternate, so that a busy machine slows all of them alike. One run each warms up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            begin = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                taken[name].append(clock() - begin)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference of two results, relative to the largest value of the second."""
    if isinstance(ours, Tensor):
        return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()
    if isinstance(ours, Mapping):
        return max(difference(ours[key], theirs[key]) for key in theirs)
    return max(difference(a, b) for a, b in zip(ours, theirs, strict=True))


def compare(what: str, sides: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device, tolerance: float) -> list[str]:
    """A table row: seconds of two sides, how many times the second is as fast as the first, and by how much they differ.

    Exits where they differ by more than `tolerance`: a faster answer to another question is worth nothing."""
    (slow, fast), results = sides, [run() for run in sides.values()]
    apart = difference(results[1], results[0])
    if not apart <= tolerance:
        sys.exit(f"{what}: {slow} and {fast} differ by {apart:.1e}, more than {tolerance:.0e}; times are not comparable")
    del results
    taken = alternate(sides, repeats, device)
    return [what, f"{taken[slow]:.3f}", f"{taken[fast]:.3f}", f"{taken[slow] / taken[fast]:.2f}", f"{apart:.1e}"]


def peak_bytes() -> int:
    """Largest resident memory that this process had."""
    status = Path("/proc/self/status")
    if status.exists():  # the other count begins with what the parent process had
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_a_process(script: str, *arguments: str) -> str:
    """Last line that a Python script prints in a process of its own: memory is counted by process."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        sys.exit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])

"""What the pack adds to ComfyUI's start, in seconds and megabytes, and how long a fresh host takes to its first output.

python benchmarks/startup.py [--host COMFYUI_FOLDER] [--repeats 5] [--first-run]

Starts the host in turn without and with the pack (`main.py --quick-test-for-ci`, which ends once the server is up); compares medians. Whole
starts differ by more than the pack costs, so its share is also taken from the interpreter's record of imports (`python -X importtime`).
--first-run starts one server more, queues the workflow text_to_everything and tells when each output was there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PACK / "tests"))

from host.setting import find_host, host_version, import_pack, make_base  # noqa: E402

LINK = "ComfyUI-CoDi"


def start(host: Path, base: Path, *options: str) -> tuple[list[float], str]:
    """One start of the host: wall-clock seconds, processor seconds and peak resident MB; and what it wrote."""
    command = [sys.executable, *options, "main.py", "--quick-test-for-ci", "--cpu", "--disable-api-nodes"]
    command += ["--base-directory", str(base), "--database-url", f"sqlite:///{base}/comfy.sqlite"]
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=host, stdout=errors, stderr=errors, env={**os.environ, "PYTHONPATH": ""})
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if status or "IMPORT FAILED" in said:
        sys.exit(f"error: the host did not start with {base}:\n{said[-3000:]}")
    return [seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024], said


def imports(record: str) -> list[tuple[float, str]]:
    """Milliseconds (with what it imports itself) and name of the pack's modules, longest first, from `-X importtime` output."""
    rows = []
    for line in record.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and len(fields) == 3 and f"{LINK}." in fields[2]:
            rows.append((int(fields[1]) / 1000, fields[2].strip().rsplit(f"{LINK}.", 1)[1]))
    return sorted(rows, reverse=True)


def first_run(host: Path, base: Path) -> None:
    """Seconds from starting a server to each node that shows something."""
    from host.graph import workflow
    from host.server import Server

    begin = time.perf_counter()
    server = Server(host, base, PACK)
    up = time.perf_counter() - begin
    shown: list[tuple[str, float]] = []
    graph = workflow("text_to_everything")

    def at(kind: str, data: dict) -> None:
        if kind == "executed":
            shown.append((graph[data["node"]]["class_type"], time.perf_counter() - begin))

    try:
        run = server.run(graph, at=at, seconds=600)
    finally:
        server.stop()
    if run.end != "execution_success":
        sys.exit(f"error: the workflow ended with {run.end}: {run.error}")
    print(f"\nFresh host to first output: server up after {up:.1f} s; queued at once, shown after")
    for name, seconds in shown:
        print(f"  {seconds:6.1f} s  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=find_host(), help="ComfyUI's folder (default: where the tests find it)")
    parser.add_argument("--repeats", type=int, default=5, help="starts of each kind")
    parser.add_argument("--first-run", action="store_true", help="also run a workflow on a fresh server")
    args = parser.parse_args()
    if args.host is None:
        sys.exit("error: no ComfyUI found: give --host FOLDER or set COMFYUI_PATH")
    import_pack()
    with tempfile.TemporaryDirectory() as folder:
        bases = {name: make_base(Path(folder) / name.split()[0]) for name in ("without", "with the pack")}
        for base in bases.values():
            (base / "custom_nodes").mkdir()
        (bases["with the pack"] / "custom_nodes" / LINK).symlink_to(PACK, target_is_directory=True)
        for base in bases.values():
            start(args.host, base)  # files are in memory from here on
        runs: dict[str, list[list[float]]] = {name: [] for name in bases}
        for _ in range(args.repeats):
            for name, base in bases.items():
                runs[name].append(start(args.host, base)[0])
        record = imports(start(args.host, bases["with the pack"], "-X", "importtime")[1])
        middle = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in runs.items()}
        plain, packed = middle["without"], middle["with the pack"]
        print(f"ComfyUI {host_version(args.host)}, Python {sys.version.split()[0]}, medians of {args.repeats} alternating starts\n")
        print("| start | seconds | processor seconds | peak MB |\n| --- | ---: | ---: | ---: |")
        for name, (seconds, busy, memory) in middle.items():
            print(f"| {name} | {seconds:.2f} | {busy:.2f} | {memory:.0f} |")
        print("| difference | {:+.2f} | {:+.2f} | {:+.0f} |".format(*(b - a for a, b in zip(plain, packed, strict=True))))
        print(f"| imports of the pack alone | {record[0][0] / 1000:.2f} | | |")
        print("\nLongest imports: " + json.dumps({name: f"{ms:.0f} ms" for ms, name in record[:8]}))
        if args.first_run:
            first_run(args.host, bases["without"])


if __name__ == "__main__":
    main()

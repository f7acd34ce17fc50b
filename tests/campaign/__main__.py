"""Everything that may come in, drawn at random: what comes back must be sound, or an error that says what to do.

    python tests/campaign [--tries 20000] [--seed 0] [--only graphs,requests,files,checkpoints,stops,media] [--keep FOLDER]

Each part is a stream of tries (`parts.py`), run in processes whose memory and time are bounded. A try ends sound, with a clear error,
stopped (a node that worked long, ended by the host's interrupt), or wrong: obscure error, hang, crash, too much memory, half a file.
Prints a table and every wrong one; ends with 1 where there is any. Not part of the tests: 20,000 tries take hours."""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
for place in (str(TESTS), str(HERE)):
    if place not in sys.path:
        sys.path.insert(0, place)

SHARES = {"graphs": 0.5, "requests": 0.2, "files": 0.15, "checkpoints": 0.04, "stops": 0.01, "media": 0.1}
SECONDS = {"stops": 240.0}  # a try may take; others 30
BYTES = 3 << 30  # resident, of a process that has torch and a host loaded
AT_ONCE = 500  # tries of a process
SOUND = ("sound", "clear", "stopped")
KINDS = (*SOUND, "obscure", "hang", "crash", "memory", "half file")


def child(part: str, seed: int, tries: int, skip: int) -> None:
    """Run tries of a part, a line before and after each. `skip`: how many of the stream have been run."""
    from host.setting import import_pack

    import_pack()
    import parts

    stream = parts.PARTS[part](seed)
    for number in range(skip + tries):
        what, attempt = next(stream)
        if number < skip:
            continue
        print(json.dumps({"begins": what[:300], "number": number}), flush=True)
        kind, said = parts.outcome(attempt)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"kind": kind, "said": said[:300], "peak": peak}), flush=True)


def watch(part: str, seed: int, tries: int, counts: Counter, wrong: list[tuple[str, str, str]]) -> None:
    """Run the tries of a part in processes, a new one after each that ended early."""
    done, seconds = 0, SECONDS.get(part, 30.0)
    while done < tries:
        command = [sys.executable, str(HERE), "--child", part, str(seed), str(min(AT_ONCE, tries - done)), str(done)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        what, began, ended, buffer = "", False, "", b""
        selector = selectors.DefaultSelector()
        selector.register(process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        deadline = time.monotonic() + 300  # a host starts
        while not ended:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                ended = "hang"
                break
            chunk = os.read(process.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                try:
                    told = json.loads(line)
                except ValueError:
                    continue  # what a library prints
                if not isinstance(told, dict):
                    continue
                if "begins" in told:
                    what, began, deadline = told["begins"], True, time.monotonic() + seconds
                elif "kind" in told:
                    began, done, kind = False, done + 1, told["kind"]
                    deadline = time.monotonic() + 300
                    if kind in SOUND and told["peak"] > BYTES:
                        kind, ended = "memory", "restart"
                    counts[part, kind] += 1
                    if kind not in SOUND:
                        wrong.append((part, kind, f"{what}: {told['said']}"))
                    if ended:
                        break  # what it began since is tried again by the next process
        process.kill()
        code = process.wait()
        if began:
            counts[part, "hang" if ended == "hang" else "crash"] += 1
            wrong.append((part, "hang" if ended == "hang" else f"crash ({code})", what))
            done += 1
        elif not what:
            sys.exit(f"the part {part} does not start: python tests/campaign --child {part} {seed} 1 0")


def media(seed: int, tries: int, counts: Counter, wrong: list[tuple[str, str, str]], keep: Path | None) -> None:
    """Damaged media, by the script that has its own processes."""
    import mutated_media

    figures = mutated_media.run(tries, seed, keep)
    counts["media", "sound"], counts["media", "clear"] = figures["read"], figures["refused"]
    for name, way, came, seconds, megabytes in figures["wrong"]:
        kind = "crash" if "ended" in came else "hang" if seconds > mutated_media.SECONDS else "memory" if "re" in came[:2] else "obscure"
        counts["media", kind] += 1
        wrong.append(("media", kind, f"{name} as {way}: {came}, {seconds} s, {megabytes} MB"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SHARES), help="some of the parts (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="folder for media that went wrong")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        part, *numbers = args.child
        child(part, *map(int, numbers))
        return 0
    chosen = args.only.split(",")
    if unknown := [part for part in chosen if part not in SHARES]:
        parser.error(f"unknown part {unknown[0]}: there are {', '.join(SHARES)}")
    counts: Counter = Counter()
    wrong: list[tuple[str, str, str]] = []
    whole = sum(SHARES[part] for part in chosen)
    for part in chosen:
        tries, begin = max(1, round(args.tries * SHARES[part] / whole)), time.monotonic()
        if part == "media":
            media(args.seed, tries, counts, wrong, args.keep)
        else:
            watch(part, args.seed, tries, counts, wrong)
        print(f"{part}: {tries} tries, {time.monotonic() - begin:.0f} s", flush=True)
    print("\n| part | tries | " + " | ".join(KINDS) + " |\n| --- |" + " ---: |" * (1 + len(KINDS)))
    for part in chosen:
        row = [counts[part, kind] for kind in KINDS]
        print(f"| {part} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    for line in wrong:
        print("  ".join(line))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

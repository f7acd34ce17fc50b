"""Damaged media files, made by rule from a seed and read in processes whose memory and time are bounded.

    python tests/mutated_media.py --count 2000 [--seed 0] [--keep FOLDER]

Whole files of many kinds are written; each damaged one is one of them with bytes changed, cut out, doubled or cut off. Reading it must give
finite values or a CoDiError, within 20 s and 1 GB. Prints what went wrong, and the figures."""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SECONDS, BYTES = 20.0, 1 << 30


def write_whole(folder: Path) -> list[Path]:
    """Small files of each kind."""
    from clips import Clip, write
    from codi.codi_models import media
    from PIL import Image

    small = {"size": (64, 96), "seconds": 0.8, "audio": (0.0, 0.8)}
    found = [
        write(folder / "a.mp4", Clip(**small)), write(folder / "b.mov", Clip(**small, options={"g": "5"})),
        write(folder / "a.mkv", Clip(**small)), write(folder / "a.ts", Clip(**small)),
        write(folder / "a.webm", Clip(**small, codec="libvpx-vp9", audio_codec="libopus", audio_rate=48000)),
        write(folder / "a.avi", Clip(**small, codec="mpeg4", audio_codec="mp3", options={"b": "900000"})),
        write(folder / "b.mkv", Clip(**small, codec="ffv1", pix_fmt="bgra", audio_codec="flac", channels=2)),
        write(folder / "c.mov", Clip(**small, codec="mjpeg", pix_fmt="yuvj420p", audio_codec="pcm_s16le")),
    ]  # fmt: skip
    frames = [Image.fromarray((media.read_video(found[0], 4, rate=6.25).frames[i].movedim(0, -1) * 255).byte().numpy()) for i in range(4)]
    for suffix, options in (
        ("png", {}), ("gif", {"save_all": True, "append_images": frames[1:], "duration": 90}), ("jpg", {}), ("bmp", {}),
        ("webp", {"save_all": True, "append_images": frames[1:], "duration": 90}), ("tiff", {"compression": "tiff_lzw"}),
        ("avif", {"save_all": True, "append_images": frames[1:], "duration": 90}),
    ):  # fmt: skip
        if f".{suffix}" not in Image.registered_extensions():  # AVIF in older versions of Pillow
            continue
        frames[0].save(folder / f"a.{suffix}", **options)
        found.append(folder / f"a.{suffix}")
    frames[0].convert("RGBA").save(folder / "b.png", save_all=True, append_images=frames[1:], duration=90)
    found.append(folder / "b.png")
    sounds = {"s.wav": "pcm_s16le", "f.wav": "pcm_f32le", "s.mp3": "libmp3lame", "s.flac": "flac", "s.ogg": "libopus", "s.m4a": "aac"}
    return [*found, *(write_sound(folder / name, codec) for name, codec in sounds.items())]


def write_sound(path: Path, codec: str) -> Path:
    import av
    import numpy as np

    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=48000, layout="stereo")
        wave = 0.5 * np.sin(np.arange(24000) / 20, dtype=np.float32)
        block = av.AudioFrame.from_ndarray(np.stack([wave, -wave]), format="fltp", layout="stereo")
        block.sample_rate, block.pts = 48000, 0
        context = stream.codec_context
        convert = av.AudioResampler(format=context.format, layout="stereo", rate=48000, frame_size=context.frame_size or None)
        for part in [*convert.resample(block), *convert.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three kinds of damage. Headers, at the beginning and at the end, are hit as often as all the rest."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        size = len(data)
        if size < 16:
            break
        place = rng.choice((rng.randrange(size), rng.randrange(min(size, 256)), max(0, size - 1 - rng.randrange(min(size, 4096)))))
        kind = rng.choice(("bits", "bytes", "number", "cut", "double", "end"))
        if kind == "bits":
            for _ in range(rng.choice((1, 4, 32))):
                data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif kind == "bytes":
            count = rng.choice((1, 4, 64))
            data[place : place + count] = rng.randbytes(len(data[place : place + count]))
        elif kind == "number":  # sizes, rates and counts
            value = rng.choice((0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, rng.getrandbits(32)))
            data[place : place + 4] = value.to_bytes(4, rng.choice(("big", "little")))[: len(data[place : place + 4])]
        elif kind == "cut":
            del data[place : place + rng.choice((1, 8, 300, 3000))]
        elif kind == "double":
            data[place:place] = data[place : place + rng.choice((8, 300, 3000))]
        else:
            del data[max(1, place) :]
    return bytes(data)


def read_all(paths: list[Path]) -> None:
    """Reads each file in every way, a line on each: what came, seconds, peak bytes."""
    import torch

    import_pack()
    torch.set_num_threads(1)
    from codi.codi_models import media
    from codi.codi_models.errors import CoDiError

    resource.setrlimit(resource.RLIMIT_AS, (4 * BYTES, 4 * BYTES))  # of addresses: threads reserve many that they never use

    def small(pixels):
        return media.fill(pixels[None], (64, 64))[0]

    later = media.Span(0.4, 0.3)
    ways = {
        "given video": lambda path: media.read_video(path, 8, rate=6.25, fit=small).frames,
        "prompt video": lambda path: media.read_video(path, 8).frames,
        "later video": lambda path: media.read_video(path, 2, rate=6.25, span=later, fit=small).frames,
        "audio": lambda path: media.read_audio(path, rate=16000).samples,
        "image": lambda path: media.read_image(path),
    }
    for path in paths:
        for what, way in ways.items():
            Path("/proc/self/clear_refs").write_text("5")
            begin = time.monotonic()
            print(json.dumps({"begins": [path.name, what]}), flush=True)
            try:
                value = way(path)
                came = "read" if bool(torch.isfinite(value).all()) and value.numel() else "not finite"
            except CoDiError as error:
                came = "refused" if len(str(error)) > 20 else f"says nothing: {error}"
            except Exception as error:
                came = f"{type(error).__name__}: {str(error)[:200]}"
            status = Path("/proc/self/status").read_text()
            peak = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            print(json.dumps({"came": came, "seconds": time.monotonic() - begin, "peak": peak}), flush=True)


def run(count: int, seed: int, keep: Path | None = None, at_once: int = 200) -> dict:
    """Figures, and in "wrong" whatever should not have come."""
    import_pack()
    figures: dict = {"files": count, "read": 0, "refused": 0, "slowest": [], "peak": [], "wrong": []}
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = write_whole(folder)
        contents = [path.read_bytes() for path in whole]
        for first in range(0, count, at_once):
            paths = []
            for number in range(first, min(first + at_once, count)):
                which = number % len(whole)
                paths.append(folder / f"{number:05d}_{whole[which].name}")
                paths[-1].write_bytes(mutate(contents[which], rng))
            while paths:
                left = _read_in_a_process(paths, figures)
                if len(left) < len(paths) and figures["wrong"] and keep is not None:
                    for name in {wrong[0] for wrong in figures["wrong"]}:
                        if (folder / name).exists():
                            keep.mkdir(parents=True, exist_ok=True)
                            (keep / name).write_bytes((folder / name).read_bytes())
                paths = left
            for path in folder.glob("[0-9]*"):
                path.unlink()
    return figures


def _read_in_a_process(paths: list[Path], figures: dict) -> list[Path]:
    """Reads files; those that are left where the process ended before."""
    command = [sys.executable, __file__, "--read", *map(str, paths)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    lines: list[dict] = []
    try:
        output, _ = process.communicate(timeout=len(paths) * SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
    name = what = ""
    for line in lines:
        if "begins" in line:
            name, what = line["begins"]
            continue
        came, seconds, peak = line["came"], line["seconds"], line["peak"]
        figures["slowest"] = max(figures["slowest"], [round(seconds, 2), name, what])
        figures["peak"] = max(figures["peak"], [peak >> 20, name, what])
        if came in ("read", "refused"):
            figures[came] += 1
        if came not in ("read", "refused") or seconds > SECONDS or peak > BYTES:
            figures["wrong"].append([name, what, came, round(seconds, 1), peak >> 20])
    if process.returncode == 0:
        return []
    figures["wrong"].append([name, what, f"the process ended with {process.returncode}", 0, 0])
    names = [path.name for path in paths]
    return paths[names.index(name) + 1 :] if name in names else []


def import_pack() -> None:
    sys.path.insert(0, str(TESTS))
    from host.setting import import_pack

    import_pack()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--read", nargs="+", type=Path)
    options = parser.parse_args()
    if options.read:
        read_all(options.read)
    else:
        found = run(options.count, options.seed, options.keep)
        print(json.dumps(found, indent=1))
        sys.exit(bool(found["wrong"]))

"""How much memory it takes to read media, beyond what a process has that could read them: megabytes at the peak, and seconds.

python benchmarks/media_memory.py [--phone] [--ceiling MB]

Each reading runs in a process of its own, on files that are written first: 10 s of video at 1280 x 720 and 1920 x 1080, 10 minutes of
stereo audio at 48 kHz, as files that expand much: a video, an image and a sound of few bytes. --phone adds a minute of 3840 x 2160.
`given`: fitted for an output that is given (codi-mini: 8 frames of 64 x 64 in 1.28 s). `prompt`: read as a prompt and fitted to the
encoder, frames spread over all of its time. --ceiling: exits with 1 where a reading takes more. Runs on Linux.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import torch
from measure import ROOT, clock, config_of, in_a_process, machine, peak_bytes, table

CASES = {
    "720p.mp4": ("given video", "prompt video"), "1080p.mp4": ("given video", "prompt video"), "phone.mp4": ("given video", "prompt video"),
    "ten_minutes.m4a": ("given audio", "prompt audio"), "silence.flac": ("prompt audio",), "flat.mp4": ("prompt video",),
    "flat.png": ("given image", "prompt image"), "flat.gif": ("prompt video",),
}  # fmt: skip


def write_video(path: Path, size: tuple[int, int], seconds: float, rate: int = 30, *, flat: bool = False) -> None:
    """Moving stripes and noise with a tone, or one colour."""
    import av
    import numpy as np

    generator = np.random.default_rng(0)
    height, width = size
    noise = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "g": str(2 * rate)})
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        audio = file.add_stream("aac", rate=48000, layout="stereo")
        made = []
        for number in range(1 if flat else 10):
            stripe = ((np.arange(width) + 8 * number) % 80).astype(np.uint8)
            pixels = np.full((height, width, 3), 90, np.uint8) if flat else noise + stripe[None, :, None]
            made.append(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p"))
        for number in range(round(seconds * rate)):
            frame = made[number % len(made)]
            frame.pts, frame.time_base = number, Fraction(1, rate)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        write_tone(file, audio, seconds)


def write_tone(file, audio, seconds: float, *, rate: int = 48000, level: float = 0.3) -> None:
    """A second at a time."""
    import av
    import numpy as np

    kind = audio.codec_context.format.name
    for second in range(round(seconds)):
        wave = level * np.sin(2 * np.pi * 440 * np.arange(rate) / rate, dtype=np.float32)
        block = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        block.sample_rate, block.pts, block.time_base = rate, second * rate, Fraction(1, rate)
        for part in av.AudioResampler(format=kind, layout="stereo", rate=rate).resample(block):
            file.mux(audio.encode(part))
    file.mux(audio.encode(None))


def write_audio(path: Path, codec: str, seconds: float, *, rate: int = 48000, level: float = 0.3) -> None:
    import av

    with av.open(str(path), "w") as file:
        write_tone(file, file.add_stream(codec, rate=rate, layout="stereo"), seconds, rate=rate, level=level)


def write_gif(path: Path) -> None:
    from PIL import Image

    frames = [Image.new("RGB", (3000, 3000), (6 * number, 0, 0)) for number in range(40)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)


def write_png(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (9000, 9000), "navy").save(path)


def write_all(folder: Path, phone: bool, only: str | None) -> None:
    writers = {
        "720p.mp4": lambda path: write_video(path, (720, 1280), 10), "1080p.mp4": lambda path: write_video(path, (1080, 1920), 10),
        "phone.mp4": lambda path: write_video(path, (2160, 3840), 60), "ten_minutes.m4a": lambda path: write_audio(path, "aac", 600),
        "silence.flac": lambda path: write_audio(path, "flac", 590, level=0),
        "flat.mp4": lambda path: write_video(path, (4096, 7680), 2, 2, flat=True), "flat.png": write_png, "flat.gif": write_gif,
    }  # fmt: skip
    for name, writer in writers.items():
        if name == only or (only is None and (phone or name != "phone.mp4")):
            writer(folder / name)


def read(path: Path, what: str) -> str:
    """Megabytes beyond what the process had before, seconds, and megabytes of what was read."""
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(2)
    from codi_models.conditioning import Prompt
    from codi_models.latents import fitted

    how, kind = what.split()
    config = config_of("mini")
    warm(path.parent)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, begin = peak_bytes(), clock()
    prompt = Prompt(kind, path)
    value = fitted(config, prompt) if how == "given" else prompt.read(config).value
    seconds, used = clock() - begin, peak_bytes() - before
    held = getattr(value, "frames", value[0] if isinstance(value, tuple) else value)
    return f"{used / 1e6:.0f} {seconds:.1f} {held.numel() * 4 / 1e6:.0f}"


def warm(folder: Path) -> None:
    """Loads the libraries that readings use."""
    import av
    import PIL.Image
    import torchaudio.functional

    PIL.Image.init()
    torchaudio.functional.resample(torch.zeros(1, 100), 3, 2)
    torch.nn.functional.interpolate(torch.zeros(1, 3, 8, 8), (4, 4), mode="bicubic", antialias=True)
    _ = av.library_versions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phone", action="store_true", help="also a minute of 4K")
    parser.add_argument("--only", metavar="FILE", help="one of the files alone")
    parser.add_argument("--ceiling", type=float, metavar="MB", help="exit with 1 where a reading takes more")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(read(Path(args.read[0]), args.read[1]))
        return 0
    rows, most = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder), args.phone, args.only)
        for name, ways in CASES.items():
            path = Path(folder) / name
            for what in ways if path.exists() else ():
                used, seconds, held = in_a_process(__file__, "--read", str(path), what).split()
                rows.append([f"{name}, {what}", f"{path.stat().st_size / 1e6:.1f}", used, held, seconds])
                most = max(most, float(used))
    print(machine(torch.device("cpu")))
    print(table(["reading", "file, MB", "memory, MB", "of it kept, MB", "seconds"], rows))
    return 1 if args.ceiling and most > args.ceiling else 0


if __name__ == "__main__":
    sys.exit(main())

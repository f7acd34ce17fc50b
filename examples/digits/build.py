"""Handwritten and spoken digits as a folder of training data: images of scikit-learn's digits, speech of espeak-ng, captions.

    python examples/digits/build.py OUT            # needs: pip install scikit-learn; espeak-ng on the path

Each example is one line of OUT/manifest.jsonl: an image, a recording and a caption of one digit. Writers and voices have nothing to do with
each other. One image in ten, and one voice, are kept out of it, in OUT/test, for the classifiers that evaluate what a model makes."""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codi_models.encoders.preprocess import resample  # noqa: E402
from codi_models.media import read_audio, write_png, write_wav  # noqa: E402

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("the digit {}", "a {}", "{}", "the number {}", "somebody writes {}", "somebody says {}")
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f2", "en-gb+f4", "en-us+m3", "en-gb+m5", "en-us+f3")
TEST_VOICE = "en-gb+f1"
SIZE, RATE, SAMPLES = 32, 16000, 20480  # px, Hz, samples: 1.28 s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--limit", type=int, default=1797, help="examples (default: all of them, %(default)s)")
    options = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        print("espeak-ng is not here: install it (apt install espeak-ng, brew install espeak-ng)", file=sys.stderr)
        return 2
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        print("scikit-learn is not here: pip install scikit-learn", file=sys.stderr)
        return 2

    digits = load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits.target), generator=generator)[: options.limit].tolist()
    takes = {voice: [(word, *manner(generator)) for word in WORDS for _ in range(4)] for voice in (*VOICES, TEST_VOICE)}
    lines: dict[str, list[str]] = {"": [], "test": []}
    for number, index in enumerate(order):
        part = "test" if number % 10 == 9 else ""
        digit, name = int(digits.target[index]), f"{number:04d}"
        voice = TEST_VOICE if part else VOICES[int(torch.randint(len(VOICES), (1,), generator=generator))]
        wave = speech(voice, *takes[voice][4 * digit + int(torch.randint(4, (1,), generator=generator))])
        pixels = torch.tensor(digits.images[index], dtype=torch.float32)[None, None] / 16
        image = torch.nn.functional.interpolate(pixels, (SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1)[0]
        write_png(options.out / part / f"{name}.png", image.expand(3, -1, -1))
        write_wav(options.out / part / f"{name}.wav", placed(wave, generator), RATE)
        caption = CAPTIONS[int(torch.randint(len(CAPTIONS), (1,), generator=generator))].format(WORDS[digit])
        lines[part].append(json.dumps({"name": name, "text": caption, "image": f"{name}.png", "audio": f"{name}.wav"}))
    for part, found in lines.items():
        if found:
            (options.out / part / "manifest.jsonl").write_text("\n".join(found) + "\n", encoding="utf-8")
    print(f"{len(lines[''])} examples in {options.out}, {len(lines['test'])} in {options.out / 'test'}")
    return 0


def manner(generator: torch.Generator) -> tuple[int, int]:
    """A random speed in words a minute, and pitch of 0..99."""
    return int(torch.randint(120, 190, (1,), generator=generator)), int(torch.randint(30, 70, (1,), generator=generator))


@functools.cache
def speech(voice: str, word: str, speed: int, pitch: int) -> torch.Tensor:
    """A word spoken, silence cut off, (N,) at RATE."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "word.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(file), word], check=True)
        wave, rate = read_audio(file)
    wave = resample(wave[None], rate, RATE)[0]
    loud = (wave.abs() > 0.02 * wave.abs().max()).nonzero()[:, 0]
    return wave[int(loud[0]) : int(loud[-1]) + 1][: SAMPLES - 1600]


def placed(wave: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A word somewhere in 1.28 s of silence, at a random loudness."""
    start = int(torch.randint(0, SAMPLES - len(wave), (1,), generator=generator)) // 4
    peak = 0.3 + 0.5 * float(torch.rand(1, generator=generator))
    return torch.nn.functional.pad(wave / wave.abs().max() * peak, (start, SAMPLES - start - len(wave)))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m codi_models world`: samples of Bounce World as files, to look at, to listen to, or to use as prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..cli.parser import Parser, place, whole
from ..errors import CoDiError
from ..files import output_folder, write_text
from ..locks import sole_writer
from ..media import write_mp4, write_png, write_wav
from ..settings import MOST_SAMPLES
from .render import render_audio, render_image, render_video
from .world import DURATION, FRAMES, SAMPLE_RATE, captions, sample_nuisance, sample_scenes

SUFFIXES = {"image": "png", "video": "mp4", "audio": "wav", "text": "txt"}


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns 0; raises CoDiError for input that cannot be used."""
    parser = Parser(prog="python -m codi_models world", description=__doc__)
    parser.add_argument("--out", type=place, required=True, help="folder to write into")
    parser.add_argument("--count", type=int, default=8, help="scenes (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0, 2**64 - 1), default=0, help="the same seed writes the same samples (default: %(default)s)")
    args = parser.parse_args(argv)
    with sole_writer(output_folder(args.out)):
        files = export_samples(args.out, args.count, seed=args.seed)
    print(f"{len(files)} files in {args.out}")
    return 0


def export_samples(folder: str | Path, count: int, *, seed: int = 0) -> list[Path]:
    """Writes `count` scenes and returns the files: for sample i, with three digits, 00i_image.png, 00i_video.mp4 (with its sound),
    00i_audio.wav and 00i_text.txt; last scenes.json, which says what each shows.

    The media of a sample show one scene and share no nuisance; the sound of the clip is that of the WAV.
    Raises CoDiError for a count out of bounds, or a folder that cannot be written.
    """
    folder = Path(folder)
    if not 1 <= count <= MOST_SAMPLES:
        raise CoDiError(f"count={count} samples cannot be written; give 1 to {MOST_SAMPLES}.")
    if folder.exists() and not folder.is_dir():
        raise CoDiError(f"{folder} is a file; give a folder to write samples into.")
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(count, generator=generator)
    for_image, for_video, for_audio = (sample_nuisance(count, generator=generator) for _ in range(3))
    texts = captions(scenes, generator=generator, full=True)
    files: list[Path] = []
    for i, text in enumerate(texts):
        one = slice(i, i + 1)
        sound = render_audio(scenes[one], for_audio[one])[0]
        paths = {kind: folder / f"{i:03d}_{kind}.{suffix}" for kind, suffix in SUFFIXES.items()}
        write_png(paths["image"], render_image(scenes[one], for_image[one])[0])
        write_mp4(paths["video"], render_video(scenes[one], for_video[one])[0], FRAMES / DURATION, sound, SAMPLE_RATE)
        write_wav(paths["audio"], sound, SAMPLE_RATE)
        write_text(paths["text"], text + "\n")
        files += paths.values()
    write_text(folder / "scenes.json", json.dumps([scenes.describe(i) for i in range(count)], indent=1) + "\n")
    return [*files, folder / "scenes.json"]

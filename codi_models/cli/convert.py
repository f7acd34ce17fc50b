"""`python codi.py convert`: the published .pth files into a model folder."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..autoencoders.tokenizers import BERT_VOCAB, GPT2_MERGES, GPT2_VOCAB
from ..components import COMPONENTS
from ..config import CoDiConfig
from ..conversion.convert import PRECISIONS, convert
from ..conversion.layout import ENCODERS_FILE, published_file
from ..conversion.matching import LISTED
from ..files import output_folder
from ..locks import sole_writer
from .parser import Parser

_WHERE = "\n".join(f"  {name:21}{published_file(name)}" for name in COMPONENTS)
EPILOG = f"""
Components and the published file that holds each (files are recognised by their keys, whatever their names):
{_WHERE}

What a use needs:
  prompts of text, image, video   clip
  prompts of sound                clap
  images and clips                vision_denoiser, image_autoencoder
  sound                           audio_denoiser, audio_autoencoder, vocoder
  captions                        text_denoiser, text_autoencoder, and its vocabularies: python codi.py download tokenizers

Only tensors are read (weights-only, memory-mapped): a .pth that holds other objects is refused. Every key and shape is checked.
Each component becomes one file, written whole or not at all. Run the command again after an interruption, or with more files
later: what was already converted from the same file (by SHA-256) in the same dtype is left alone.

Example, sound only:
  python codi.py convert {ENCODERS_FILE} {published_file("audio_denoiser")} --out models/codi/codi \\
      --components clip,audio_denoiser,audio_autoencoder,vocoder
"""


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns 0; raises CoDiError for input that cannot be used."""
    args = _parser().parse_args(argv)
    config = CoDiConfig.load(args.config) if args.config else CoDiConfig.official()
    chosen = [name.strip() for name in (args.components or "").split(",") if name.strip()]
    bars = Bars()
    out = output_folder(args.out)
    with sole_writer(out), contextlib.closing(bars):
        result = convert(
            args.files, out, dtype=args.dtype, config=config, components=chosen, strict=args.strict, allow_half=args.allow_half,
            listed=sys.maxsize if args.all_keys else LISTED, progress=bars,
        )  # fmt: skip
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    report(out, result.components)
    return 0


def report(folder: Path, states: dict[str, str]) -> None:
    """Print what the folder holds and what it still lacks."""
    for name in COMPONENTS:
        path = folder / f"{name}.safetensors"
        size = f"{path.stat().st_size / 1e9:6.2f} GB" if path.exists() else "        -"
        state = states.get(name) or ("there before" if path.exists() else f"not converted; it is in {published_file(name)}")
        print(f"{name:21}{size}  {state}")
    lacking = [name for name in (BERT_VOCAB, GPT2_VOCAB, GPT2_MERGES) if not (folder / name).exists()]
    if lacking and (folder / "text_autoencoder.safetensors").exists():
        print(f"captions also need {', '.join(lacking)}: python codi.py download tokenizers --out {folder}")
    print(f"model folder: {folder}")


class Bars:
    """One tqdm bar at a time, of bytes, for the stages of a long job."""

    def __init__(self) -> None:
        self._name, self._bar = "", None

    def __call__(self, name: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if name != self._name:
            self.close()
            self._name = name
            self._bar = tqdm(total=total, desc=f"{name:21}", unit="B", unit_scale=True, file=sys.stderr)
        if self._bar is not None:
            self._bar.update(done)

    def close(self) -> None:
        """Finish the bar that is shown."""
        bar: Any = self._bar
        if bar is not None:
            bar.close()
        self._name, self._bar = "", None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python codi.py convert",
        description="Turns any subset of the published CoDi files into a model folder with one safetensors file per component.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILES", help="files of the published checkpoint, full or half precision: .pth or .safetensors")
    add(
        "--out", required=True, metavar="DIR", help="model folder, for instance models/codi/codi of ComfyUI; it is made where it is missing"
    )
    add(
        "--dtype",
        default="fp16",
        choices=list(PRECISIONS),
        help="precision of the written weights (default fp16; fp8: the denoisers' matrices)",
    )
    add("--components", metavar="A,B,...", help="only these (default: all that the files hold)")
    add("--strict", action="store_true", help="stop at tensors that the published layout does not have, instead of leaving them out")
    add("--allow-unexpected", action="store_true", help=argparse.SUPPRESS)  # what happens without --strict since 0.4
    add("--allow-half", action="store_true", help="with --dtype fp32: accept weights that have half precision only")
    add("--all-keys", action="store_true", help=f"list all keys in messages, not just {LISTED} of a kind")
    add("--config", metavar="FILE", help="config.json of a model of other sizes (default: the official ones)")
    return parser

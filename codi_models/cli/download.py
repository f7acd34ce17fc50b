"""`python -m codi_models download`: fetch the published checkpoint or its vocabularies, after showing what and how much."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import CLIPConfig
from ..conversion.convert import convert
from ..conversion.download import DOWNLOADS, HALF_FOLDER, PINS, REPOSITORY, Wanted, fetch, wanted_vocabularies, wanted_weights
from ..encoders.tokenizer import CLIPTokenizer
from ..errors import CoDiError
from ..files import output_folder
from ..model import DTYPES, SHIPPED
from .convert import Bars, report

EPILOG = f"""
The revision: no commit is built in. The first download asks the hub for the commit that --revision (default main) stands for,
records it in {PINS} of the model folder, and every later download into that folder uses the recorded commit. The hash of each
weights file, as the hub states it, is checked; those of the vocabularies are built in.

Vocabularies: text prompts use the one that the package open_clip_torch ships; captions need BERT's cased vocabulary and
GPT-2's vocabulary and merges, which both `download codi` and `download tokenizers` fetch (1.7 MB).

Nothing is fetched before the list was shown and confirmed (--yes confirms beforehand). Nodes never download.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns 0, or 1 where the user declined; raises CoDiError for what cannot be fetched."""
    args = _parser().parse_args(argv)
    out = output_folder(_folder(args.out))
    chosen = [name.strip() for name in (args.components or "").split(",") if name.strip()]
    weights = []
    if args.what == "codi":
        weights = wanted_weights(out, components=chosen, precision=args.precision, revision=args.revision)
    captions = args.what == "tokenizers" or not chosen or "text_autoencoder" in chosen
    wanted = [*weights, *(wanted_vocabularies(out) if captions else [])]
    if not _confirmed(wanted, out, args.yes):
        print("nothing was fetched")
        return 1
    fetch(wanted, out, say=print)
    CLIPTokenizer(None, CLIPConfig())  # says what to install where open_clip's vocabulary is missing
    files = [w.target for w in weights]
    if args.what == "tokenizers":
        print(f"vocabularies are in {out}")
    elif args.convert:
        bars = Bars()
        try:
            result = convert(files, out, dtype=args.dtype, components=chosen, progress=bars)
        finally:
            bars.close()
        report(out, result.components)
        print(f"{out / DOWNLOADS} is not needed any more")
    else:
        parts = f" --components {','.join(chosen)}" if chosen else ""
        print(f"next: python -m codi_models convert {' '.join(map(str, files))} --out {out} --dtype {args.dtype}{parts}")
    return 0


def _folder(given: str | None) -> Path:
    """--out, or models/codi/codi of the ComfyUI that the pack lies in."""
    if given:
        return Path(given)
    pack = SHIPPED.parent
    if pack.parent.name == "custom_nodes":
        return pack.parent.parent / "models" / "codi" / "codi"
    raise CoDiError("say where to put the files: --out DIR, a model folder such as models/codi/codi of ComfyUI")


def _confirmed(wanted: Sequence[Wanted], out: Path, yes: bool) -> bool:
    """Show what will be fetched, and ask unless `yes`. Raises CoDiError where nobody can answer."""
    for w in wanted:
        there = "  (there already)" if w.target.exists() else ""
        print(f"{w.size / 1e6:12.1f} MB  {w.repository} {w.path} at {w.commit[:12]} -> {w.target}{there}")
    print(f"{sum(w.size for w in wanted) / 1e6:12.1f} MB  in all, into {out}", flush=True)
    if yes or not wanted:
        return True
    if not sys.stdin.isatty():
        raise CoDiError("nobody is there to confirm the download: add --yes")
    return input("fetch these files? [y/N] ").strip().lower() in ("y", "yes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m codi_models download",
        description=f"Fetches the published checkpoint ({REPOSITORY} on the Hugging Face hub), or only what captions need beside it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("what", choices=("codi", "tokenizers"), help="codi: weights and vocabularies; tokenizers: vocabularies only")
    add("--out", metavar="DIR", help="model folder (default models/codi/codi of the ComfyUI that this pack lies in)")
    add("--components", metavar="A,B,...", help="only the files that hold these (see convert --help; default all)")
    add("--precision", default="fp16", choices=("fp16", "fp32"), help=f"fp16: the files of {HALF_FOLDER} (half the size; default)")
    add("--revision", metavar="REV", help="commit, branch or tag (default: the commit recorded in DIR, else main)")
    add("--convert", action="store_true", help="convert right away")
    add("--dtype", default="fp16", choices=list(DTYPES), help="precision to convert to (default fp16)")
    add("--yes", action="store_true", help="do not ask")
    return parser

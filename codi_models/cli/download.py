"""`python codi.py download`: fetch the published checkpoint or its vocabularies, after showing what and how much."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import CoDiConfig
from ..conversion.convert import PRECISIONS
from ..conversion.download import DOWNLOADS, PINS, Wanted, check_room, fetch, wanted_vocabularies, wanted_weights
from ..conversion.hub import Hub
from ..conversion.install import install, needed_room
from ..conversion.releases import COMMIT, HALF_FOLDER, REPOSITORY
from ..errors import CoDiError
from ..files import output_folder
from ..locks import sole_writer
from ..model import SHIPPED
from .convert import Bars, report
from .parser import Parser

EPILOG = f"""
Which files: commit {COMMIT[:12]} of {REPOSITORY}, with sizes and hashes built in; the hash of the video file is not publicly known and
is kept from the first download. {PINS} in the model folder records and overrules them:
{{"commits": {{"{REPOSITORY}": COMMIT}}, "files": {{"{REPOSITORY}@COMMIT/PATH": {{"size": BYTES, "sha256": HASH}}}}}}.
--revision main takes what the hub has now, with the hashes that it states.

With --convert each file is fetched, converted and removed before the next, so that room for the converted model and one more file suffices.
What was interrupted goes on; run the same command again.

Environment: HF_ENDPOINT (or --mirror), HF_TOKEN, HF_HOME and HF_HUB_CACHE (files in that cache are used and left there), HF_HUB_OFFLINE,
HF_HUB_DOWNLOAD_TIMEOUT (seconds without a byte, then it tries again), HTTPS_PROXY, REQUESTS_CA_BUNDLE.

Vocabularies: captions need BERT's cased vocabulary and GPT-2's vocabulary and merges, which both `download codi` and `download tokenizers`
fetch (1.7 MB).

Nothing is fetched before the list was shown and confirmed (--yes confirms beforehand).
"""


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns 0, or 1 where the user declined; raises CoDiError for what cannot be fetched."""
    args = _parser().parse_args(argv)
    out, hub = output_folder(_folder(args.out)), Hub(args.mirror)
    config = CoDiConfig.load(args.config) if args.config else CoDiConfig.official()
    chosen = [name.strip() for name in (args.components or "").split(",") if name.strip()]
    weights = []
    if args.what == "codi":
        weights = wanted_weights(out, components=chosen, precision=args.precision, revision=args.revision, hub=hub)
    captions = args.what == "tokenizers" or not chosen or "text_autoencoder" in chosen
    vocabularies = wanted_vocabularies(out, config) if captions else []
    needed = sum(w.missing() for w in (vocabularies if args.convert else [*weights, *vocabularies]))
    if args.convert:
        needed += needed_room(weights, out, dtype=args.dtype, components=chosen, config=config)
    if not _confirmed([*weights, *vocabularies], needed, out, args.yes):
        print("nothing was fetched")
        return 1
    check_room(out, needed)
    bars = Bars()
    with sole_writer(out), contextlib.closing(bars):
        files = [fetch(w, out, hub, bars) for w in vocabularies]
        if args.convert:
            result = install(weights, out, dtype=args.dtype, components=chosen, config=config, hub=hub, progress=bars)
        else:
            files = [fetch(w, out, hub, bars) for w in weights]
    if args.what == "tokenizers":
        print(f"vocabularies are in {out}")
    elif args.convert:
        for note in result.notes:
            print(f"note: {note}", file=sys.stderr)
        report(out, result.components)
    else:
        parts = f" --components {','.join(chosen)}" if chosen else ""
        print(f"next: python codi.py convert {' '.join(map(str, files))} --out {out} --dtype {args.dtype}{parts}")
        print(f"then {out / DOWNLOADS} is not needed any more")
    return 0


def _folder(given: str | None) -> Path:
    """--out, or models/codi/codi of the ComfyUI that the pack lies in."""
    if given:
        return Path(given)
    pack = SHIPPED.parent
    if pack.parent.name == "custom_nodes":
        return pack.parent.parent / "models" / "codi" / "codi"
    raise CoDiError("say where to put the files: --out DIR, a model folder such as models/codi/codi of ComfyUI")


def _confirmed(wanted: Sequence[Wanted], needed: int, out: Path, yes: bool) -> bool:
    """Show what will be fetched, and ask unless `yes`. Raises CoDiError where nobody can answer."""
    for w in wanted:
        there = "  (there already)" if w.target.exists() else f"  ({w.bytes - w.missing()} bytes there already)" if w.part.exists() else ""
        about = "" if w.size else "about "
        print(f"{about:6}{w.bytes / 1e6:10.1f} MB  {w.repository} {w.path} at {w.commit[:12]} -> {w.target}{there}")
    print(f"{sum(w.missing() for w in wanted) / 1e6:16.1f} MB  to fetch, {needed / 1e6:.1f} MB of free disk needed in {out}", flush=True)
    if yes or not wanted:
        return True
    if not sys.stdin.isatty():
        raise CoDiError("nobody is there to confirm the download: add --yes")
    return input("fetch these files? [y/N] ").strip().lower() in ("y", "yes")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python codi.py download",
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
    add("--revision", metavar="REV", help="commit, branch or tag (default: the commit recorded in DIR, else the built-in one)")
    add("--mirror", metavar="URL", help="address of a mirror of the hub (default: HF_ENDPOINT, else the hub)")
    add("--convert", action="store_true", help="convert each file right away, and remove it")
    add("--dtype", default="fp16", choices=list(PRECISIONS), help="precision to convert to (default fp16)")
    add("--config", metavar="FILE", help="with --convert: config.json of a model of other sizes (default: the official ones)")
    add("--yes", action="store_true", help="do not ask")
    return parser

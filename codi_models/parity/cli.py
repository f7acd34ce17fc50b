"""`python -m codi_models parity DIR`: hold our networks against recorded numbers of the published ones.

Prints a line a tensor, `fixture tensor rel-error tolerance ok|FAIL|skipped why`, and a summary. Exit status 0 where everything is
within its tolerance, 1 where anything is not or was skipped, 2 for a folder without fixtures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..cli.parser import THREADS, Parser, place, whole
from ..errors import CoDiError
from ..files import write_text
from .autoencoders import check_audio, check_image, check_mel, check_vocoder
from .blocks import check_blocks, check_temporal
from .check import Check
from .clap import check_clap, check_htsat
from .clip import check_clip
from .fixture import Fixture, fixture_names, read_fixture
from .manifest import check_manifest
from .networks import Networks
from .optimus import check_optimus
from .pixels import check_clip_pixels, check_vision_pixels
from .report import SKIPPED, WHOLE, Report, Row
from .schedules import check_schedules
from .text_io import check_text
from .unets import check_unets

Runner = Callable[[Check, Networks], None]

BY_CLASS: tuple[tuple[str, Runner], ...] = (
    ("UNetModelCoDi", check_unets),
    ("SpatioTemporalAttention", check_temporal),
    ("ResBlock", check_blocks),
    ("SpatialTransformer", check_blocks),
    ("FCBlock_MultiDim", check_blocks),
    ("timestep_embedding", check_blocks),
    ("AudioAutoencoderKL", check_audio),
    ("AutoencoderKL", check_image),
    ("TacotronSTFT", check_mel),
    ("hifigan", check_vocoder),
    ("optimus", check_optimus),
    ("CLIPImageProcessor", check_clip_pixels),
    ("CLIPModel", check_clip),
    ("CLAPAudioEmbedding", check_clap),
    ("HTSAT", check_htsat),
    ("regularisation helpers", check_vision_pixels),
)
"""Part of the official class's name -> what runs it; the first that fits."""

BY_FIELD: tuple[tuple[str, Runner], ...] = (
    ("parameter_counts", check_manifest),
    ("schedules", check_schedules),
    ("bert_encode", check_text),
    ("gpt2_decode", check_text),
    ("caption_cleanup", check_text),
)
"""Field of a json without an official class -> what runs it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status. Raises CoDiError for a folder or names that cannot be used."""
    parser = Parser(prog="python -m codi_models parity", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=place, metavar="DIR", help="folder of fixtures, <name>.json and <name>.safetensors")
    parser.add_argument("--only", action="append", metavar="NAME", help="this fixture alone; may be repeated")
    parser.add_argument("--vocabularies", type=place, metavar="DIR", help="folder with the published tokenizers' vocabulary files")
    parser.add_argument("--threads", type=whole(1, THREADS), metavar="N", help="threads of torch")
    parser.add_argument("--json", type=place, metavar="FILE", help="also write the rows to this file")
    options = parser.parse_args(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    begin = time.monotonic()
    report = run_folder(options.folder, options.only, vocabularies=options.vocabularies, tell=lambda row: print(row, flush=True))
    print(f"{report.summary()}, {time.monotonic() - begin:.0f} s")
    if options.json is not None:
        write_text(options.json, json.dumps(report.as_dict(), indent=1) + "\n")
    return 0 if report.passed else 1


def run_folder(
    folder: Path,
    only: Sequence[str] | None = None,
    *,
    vocabularies: Path | None = None,
    tell: Callable[[Row], None] = lambda row: None,
) -> Report:
    """Run the fixtures of a folder, all or those in `only`; `vocabularies` as in `Networks`.

    Raises CoDiError where the folder has none or not those."""
    names = fixture_names(folder)
    if unknown := [name for name in only or () if name not in names]:
        raise CoDiError(f"no fixture {', '.join(unknown)} in {folder}; there are {', '.join(names)}")
    report, networks = Report(tell), Networks(vocabularies)
    for name in names if only is None else [name for name in names if name in only]:
        run_fixture(folder, name, report, networks)
    return report


def run_fixture(folder: Path, name: str, report: Report, networks: Networks) -> None:
    """Add the rows of one fixture; whatever keeps it from being run is a row too."""
    try:
        fixture = read_fixture(folder, name)
        runner = runner_of(fixture)
        with torch.inference_mode():
            check = Check(fixture, report)
            runner(check, networks)
            check.finish()
    except CoDiError as error:
        report.add(Row(name, WHOLE, None, None, SKIPPED, _line(str(error))))
    except KeyError as error:
        report.add(Row(name, WHOLE, None, None, SKIPPED, f"{name}.json lacks the entry {error}, which this run needs"))
    except Exception as error:  # a fixture of unforeseen content must not hide the others
        report.add(Row(name, WHOLE, None, None, SKIPPED, _line(f"cannot be run: {type(error).__name__}: {error}")))


def runner_of(fixture: Fixture) -> Runner:
    """What runs a fixture. Raises CoDiError for one of an unknown kind."""
    official = fixture.info.get("official_class")
    for part, runner in BY_CLASS if isinstance(official, str) else ():
        if part.lower() in str(official).lower():
            return runner
    for field, runner in BY_FIELD:
        if field in fixture.info:
            return runner
    if official is not None:
        raise CoDiError(f"unknown official class {official!r}; known are {', '.join(part for part, _ in BY_CLASS)}")
    fields = ", ".join(sorted(field for field, _ in BY_FIELD))
    raise CoDiError(f"{fixture.name}.json names no official_class and has none of the fields {fields}")


def _line(text: str) -> str:
    return " ".join(text.split())[:500]

"""`python -m codi_models generate`: files for the outputs of a run, and run.json with all that is needed to repeat it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import version_0_3
from ..conditioning import DEFAULT_MIX, MIX_METHODS, PROMPT_KINDS, Prompt
from ..diffusion import SAMPLERS, SCHEDULERS
from ..errors import CoDiError
from ..files import output_folder, write_text
from ..locks import sole_writer
from ..media import LONGER_AUDIO
from ..modalities import MODALITIES
from ..model import CoDi
from ..pipeline import CoDiPipeline
from ..settings import OVERRIDES, Settings
from .outputs import write_sample
from .parser import Parser

PACKAGES = ("torch", "torchaudio", "numpy", "safetensors", "diffusers", "transformers", "tokenizers", "av", "pillow")
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns 0, or 130 after an interrupt; raises CoDiError for input that cannot be used."""
    parser = _parser()
    args = parser.parse_args(_joined(argv, parser))
    prompts = _weighted(args.prompts or [], args.weights)
    outputs = [name.strip() for name in args.outputs.split(",") if name.strip()]
    folder = output_folder(args.out)
    begin = time.perf_counter()
    model = CoDi.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    chosen = version_0_3.settings({name: getattr(args, name) for name in ("seed", "count", "batch_size", *OVERRIDES)})
    span = {"start": args.start, "length": args.length}
    prompts = [replace(prompt, **span) if prompt.kind in ("audio", "video") else prompt for prompt in prompts]
    given = [Prompt(output, value, **span) for output, value in (args.keep or {}).items()]
    settings = Settings.resolve(model.config, outputs, given=[prompt.kind for prompt in given], **chosen)
    with sole_writer(folder):
        return _run(model, prompts, given, settings, folder, span=span, raw=args.raw, longer_audio=args.longer_audio, begin=begin)


def _run(
    model: CoDi, prompts: list[Prompt], given: list[Prompt], settings: Settings, folder: Path, *,
    span: dict[str, float | None], raw: bool, longer_audio: str, begin: float,
) -> int:  # fmt: skip
    from tqdm import tqdm

    pipe = CoDiPipeline(model)
    written: list[dict[str, Any]] = []
    writing, complete = 0.0, False
    bars: list[tqdm] = []

    def tick(done: int, steps: int) -> None:
        if not bars:  # no bar before there is progress: a message about bad input stands alone
            bars.append(closing.enter_context(tqdm(total=steps, desc="denoising", unit="step", file=sys.stderr)))
        bars[0].update(done - bars[0].n)

    try:
        with contextlib.ExitStack() as closing:
            bar = closing.enter_context(LateBar("reading"))
            for i, sample in enumerate(pipe.stream(prompts, settings, given=given, callback=tick, reading=bar, note=tell)):
                start = time.perf_counter()
                record: dict[str, Any] = {"index": i, "seed": sample.seed, "files": []}
                written.append(record)
                with _interrupts_waiting():  # so that what is told is exactly what was written
                    write_sample(
                        sample, folder, f"{i:03d}", raw=raw, written=record["files"], longer_audio=longer_audio,
                        note=tell if i == 0 else lambda _: None,
                    )  # fmt: skip
                writing += time.perf_counter() - start
        complete = True
    except KeyboardInterrupt:
        files = [file for record in written for file in record["files"]]
        print(f"interrupted; whole files in {folder}: {', '.join(files) or 'none'}", file=sys.stderr)
    if complete or written:
        seconds = {**pipe.seconds, "write": writing, "total": time.perf_counter() - begin}
        report = {
            "model": model.config.name,
            "model_folder": str(model.folder),
            "prompts": [{"kind": p.kind, "value": str(p.value), "weight": p.weight} for p in prompts],
            **settings.to_dict(),
            "keep": {p.kind: str(p.value) for p in given},
            **{name: value for name, value in span.items() if value},
            "longer_audio": longer_audio,
            "raw": raw,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights": model.hashes(),
            "versions": versions(),
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            "complete": complete,
            "samples": [record for record in written if record["files"]],
        }
        write_text(folder / "run.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return 0 if complete else INTERRUPTED


def tell(text: str) -> None:
    """A line for the user."""
    print(text, file=sys.stderr)


class LateBar:
    """A progress bar that appears after two seconds. Call it with the part done, 0..1."""

    def __init__(self, what: str) -> None:
        self.what, self._begin = what, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> LateBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: float) -> None:
        from tqdm import tqdm

        if self._bar is None and time.monotonic() - self._begin > 2:
            self._bar = tqdm(total=100, desc=self.what, unit="%", file=sys.stderr, leave=False)
        if self._bar is not None:
            self._bar.update(round(100 * done) - self._bar.n)


@contextlib.contextmanager
def _interrupts_waiting() -> Iterator[None]:
    """Ctrl-C inside the block, which takes moments, is raised at its end."""
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


class _AppendPrompt(argparse.Action):
    """Collects prompts of all kinds in the order given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        kind = str(option).removeprefix("--")
        namespace.prompts = [*(namespace.prompts or []), Prompt(kind, values)]


class _Keep(argparse.Action):
    """Collects the outputs that are given, each once."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        output, kept = str(option).removeprefix("--keep-"), namespace.keep or {}
        if output in kept:
            parser.error(f"{option} was given twice: a run keeps one {output}")
        namespace.keep = {**kept, output: values}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m codi_models generate",
        description="Any mix of prompts to any set of outputs, denoised together. Without a prompt, sampling is unconditional.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="codi-mini", help="name of a shipped model or a model folder (default codi-mini)")
    accepted = {kind: "T" if kind == "text" else "F" for kind in PROMPT_KINDS}
    for kind in PROMPT_KINDS:
        what = "a sentence" if kind == "text" else f"a file with {kind}"
        add(f"--{kind}", action=_AppendPrompt, dest="prompts", metavar=accepted[kind], help=f"prompt: {what}; may be repeated")
    add("--weights", metavar="W1,W2,...", help="one number per prompt, in the order given; negative moves away (default all 1)")
    for kind in MODALITIES:
        what = "this caption" if kind == "text" else f"the {kind} of this file"
        add(f"--keep-{kind}", action=_Keep, dest="keep", metavar=accepted[kind], help=f"an output that is given: {what}; the others fit it")
    add("--strength", "--denoise", dest="strength", metavar="S",
        help="part of what is kept that is generated, 0 to 1, for a variation; also image=0.5,text=0.2 (default 0)")  # fmt: skip
    add("--start", type=float, default=0.0, metavar="S", help="seconds of audio and video files that are passed over (default 0)")
    add("--length", type=float, metavar="S",
        help="seconds of audio and video files that are taken (default: prompts whole; of what is kept, as much as fits)")  # fmt: skip
    add("--outputs", required=True, metavar=",".join(MODALITIES), help="any of these, separated by commas")
    add("--out", required=True, metavar="DIR", help="folder for the files; it is made where it is missing")
    add("--longer-audio", default="cut", choices=LONGER_AUDIO, help="what becomes of audio that is longer than its video, in the mp4: it "
        "is cut (default), the frames come again (loop), or the last one stays (hold); the wav holds all of it")  # fmt: skip
    add("--raw", action="store_true", help="also write 00i_raw.npz with float32 arrays")
    add("--seed", type=int, default=0, metavar="N", help="sample i is drawn from seed N + i (default 0)")
    add("--count", type=int, default=1, metavar="K", help="number of samples (default 1)")
    add("--steps", type=int, metavar="S", help="denoising steps")
    add("--cfg", metavar="C", help="classifier-free guidance; 1 is none. By output: image=5,text=2, or 3,image=5 with 3 for the others")
    add("--cfg-rescale", type=float, metavar="R", help="takes back what guidance adds to contrast, 0 none to 1 all")
    add("--sampler", metavar="NAME", help=f"one of {', '.join(SAMPLERS)} (default: the model's)")
    add("--scheduler", metavar="NAME", help=f"how noise falls from step to step: one of {', '.join(SCHEDULERS)} (default: the model's)")
    add("--wiring", metavar="cross|self|off", help="what outputs attend to: each other, themselves (as published), nothing")
    add("--alignment", type=float, metavar="STRENGTH", help="strength of latent alignment; 0 is none, 1 as trained")
    add("--alignment-guidance", type=float, metavar="G", help="weight of the aligned prediction against the one without; 1 is none")
    add("--alignment-directions", "--alignment-pairs", dest="alignment_directions", metavar="T<S=X,...",
        help="how strongly target T attends to source S, such as video<audio=0.5,audio<video=0 (default all 1)")  # fmt: skip
    add("--alignment-start", type=float, metavar="P", help="part of the run at which alignment begins, 0 (default) to 1")
    add("--alignment-end", type=float, metavar="P", help="part of the run at which it ends (default 1)")
    add("--alignment-combine", metavar="attention|sum", help="several sources at once (the paper), or one by one and added up")
    add("--schedule", "--order", dest="schedule", help='which outputs are denoised together: "together", "sequential", or stages such as '
                                                       '"video, audio+text" (default: the model\'s)')  # fmt: skip
    add("--mix", default=DEFAULT_MIX, metavar="|".join(MIX_METHODS), help=f"how prompts are mixed (default {DEFAULT_MIX}, as published)")
    add("--composition", help=argparse.SUPPRESS)  # of version 0.3, without effect
    add("--frames", type=int, metavar="F", help="frames of a video")
    add("--size", type=int, metavar="PIXELS", help="edge of image and video")
    add("--batch-size", type=int, metavar="B", help="samples denoised at once (default: what suits the sizes)")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute (default auto)")
    add("--dtype", default="auto", metavar="auto|fp32|fp16|bf16", help="precision (default auto)")
    return parser


def _joined(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """`--weights -1,2` as `--weights=-1,2`: argparse takes a value that begins with a dash for an option."""
    options = {option for action in parser._actions for option in action.option_strings}
    valued = {option for action in parser._actions if action.nargs is None for option in action.option_strings}
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in valued and argument.startswith("-") and argument.split("=")[0] not in options:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _weighted(prompts: list[Prompt], weights: str | None) -> list[Prompt]:
    if weights is None:
        return prompts
    try:
        numbers = [float(w) for w in weights.split(",")]
    except ValueError:
        raise CoDiError(f"--weights {weights!r} are not numbers: give one per prompt, separated by commas, such as 1,0.5,-0.5") from None
    if len(numbers) != len(prompts):
        raise CoDiError(f"--weights gives {len(numbers)} numbers for {len(prompts)} prompts: give one per prompt, in the order given")
    return [Prompt(p.kind, p.value, w) for p, w in zip(prompts, numbers, strict=True)]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found

"""`python -m codi_models COMMAND ...`: each command is a module of its own, imported when called."""

from __future__ import annotations

import importlib
import os
import sys

from .errors import CoDiError, out_of_memory
from .files import disk_refuses

COMMANDS = {
    "generate": (".cli.generate", "any mix of prompts to any set of outputs, as files"),
    "batch": (".cli.batch", "every item of a manifest, on one machine or many"),
    "train": (".training.cli", "train a model on Bounce World"),
    "evaluate": (".bounce_world.evaluation.cli", "measure a model by Bounce World's judge"),
    "convert": (".cli.convert", "the published checkpoint to a model folder"),
    "download": (".cli.download", "fetch the published checkpoint or its vocabularies"),
    "parity": (".parity.cli", "hold the networks against recorded numbers of the published ones"),
    "world": (".bounce_world.export", "write samples of Bounce World"),
}
BAD_INPUT, INTERRUPTED, NOBODY_READS = 2, 130, 141


def main(argv: list[str]) -> int:
    """Run one command. Returns the exit status: 2 for input that cannot be used, told in one message on stderr."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else BAD_INPUT
    if argv[0] not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}\n{_usage()}", file=sys.stderr)
        return BAD_INPUT
    try:
        command = importlib.import_module(COMMANDS[argv[0]][0], __package__)
        return int(command.main(argv[1:]) or 0)
    except CoDiError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print("error: out of memory. Use a smaller --batch-size, fewer frames or a smaller --size, or --dtype fp16", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def run(argv: list[str]) -> int:
    """`main` of a process of its own: a disk that takes nothing more is told in one message, and where nobody reads what it prints any
    more, as of `| head`, it ends without a word and with the status that a shell gives to such an end."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as stderr: names of files may hold any bytes
    try:
        try:
            return main(argv)
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
    except BrokenPipeError:
        status = NOBODY_READS
    except OSError as error:
        if not disk_refuses(error):
            raise
        print(f"error: cannot write {error.filename or 'what is to be printed'}: {error.strerror}. Make room", file=sys.stderr)
        status = BAD_INPUT
    silence = os.open(os.devnull, os.O_WRONLY)  # or Python complains when it flushes once more at its end
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silence, stream.fileno())
    return status


def _usage() -> str:
    lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: python -m codi_models COMMAND ...   (COMMAND --help for its options)", *lines])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

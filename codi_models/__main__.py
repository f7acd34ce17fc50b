"""`python -m codi_models COMMAND ...`: each command is a module of its own, imported when called."""

from __future__ import annotations

import importlib
import sys

from .errors import CoDiError, out_of_memory

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
BAD_INPUT, INTERRUPTED = 2, 130


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


def _usage() -> str:
    lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: python -m codi_models COMMAND ...   (COMMAND --help for its options)", *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Options of the commands: numbers within bounds, and places that have a name; what makes no sense is told in one line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..errors import CoDiError

THREADS = 1024


class Parser(argparse.ArgumentParser):
    """As argparse has it, with a message of one line instead of the list of all options."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with status 2."""
        print(f"error: {CoDiError(message)} (usage: {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Type of an option that is a whole number within bounds."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least} to {most}")
        return value

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Type of an option that is a number within bounds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number from {least:g} to {most:g}")
        return value

    return read


def place(text: str) -> Path:
    """Type of an option that names a file or folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty: give a file or folder")
    try:
        Path(text).exists()
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise argparse.ArgumentTypeError(f"{text[:300]!r} cannot be a file or folder here: {error.strerror}") from error
    return Path(text)

"""What is read at most. Each limit has a default and an environment variable that sets it; refusals name both."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import CoDiError

WORKING_PIXELS = 1 << 24
"""Larger images are reduced by a whole factor while they are decoded: nothing here makes more pixels of one."""

_SETTINGS = {"pixels": "CODI_MAX_PIXELS", "frames": "CODI_MAX_FRAMES", "seconds": "CODI_MAX_SECONDS", "samples": "CODI_MAX_SAMPLES"}
_UNITS = {"pixels": "pixels a frame", "frames": "frames", "seconds": "s", "samples": "samples"}


_PART = "a shorter part of it (start and length)"
_ADVICE = {"pixels": "a smaller one", "frames": _PART, "seconds": _PART, "samples": _PART}


@dataclass(frozen=True)
class Limits:
    """Upper bounds on what a file may ask of the machine."""

    pixels: int  # of an image or a frame of video
    frames: int  # of video, that one reading goes through
    seconds: float  # of video or audio, that one reading covers
    samples: int  # of audio, that one reading keeps

    @staticmethod
    def current() -> Limits:
        """The limits in force. Pixels default to Pillow's own limit (`PIL.Image.MAX_IMAGE_PIXELS`), which a host may set.

        Raises CoDiError for a setting that is no positive number."""
        from PIL import Image

        defaults = {"pixels": Image.MAX_IMAGE_PIXELS or 1 << 28, "frames": 100_000, "seconds": 600.0, "samples": 30_000_000}
        found = {name: _number(setting, defaults[name]) for name, setting in _SETTINGS.items()}
        return Limits(int(found["pixels"]), int(found["frames"]), float(found["seconds"]), int(found["samples"]))

    def check(self, name: str, value: float, source: object) -> None:
        """Raises CoDiError where `value` of a source exceeds the limit `name`."""
        if not value <= getattr(self, name) + (1 if name == "seconds" else 0):  # codecs fill up their last block
            raise CoDiError(
                f"{source} has {value:.0f} {_UNITS[name]}, at most {getattr(self, name):.0f} are read at once: give {_ADVICE[name]}, or "
                f"set {_SETTINGS[name]} to allow more"
            )


def _number(setting: str, default: float) -> float:
    text = os.environ.get(setting, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise CoDiError(f"{setting}={text!r} is no limit: set it to a positive number, or leave it out for {default:g}")
    return value

"""Images and animated images through the decoders of a list: none of them starts a program or reads another file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CoDiError
from .container import Source, must_exist, name_of, unreadable
from .limits import WORKING_PIXELS, Limits
from .values import Fit, Progress, Shown

DECODERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MOVING = ("PNG", "WEBP", "GIF", "AVIF")
"""Formats that may hold more than one frame in time."""

_SHORTEST = 0.011  # seconds; frames of a shorter time, or of none, are shown for _INSTEAD, as browsers do
_INSTEAD = 0.1


def read_image(source: Source, *, fit: Fit | None = None) -> Tensor:
    """First frame of an image file, upright, transparency laid on white: (3, H, W) in 0..1, or what `fit` makes of its 8-bit pixels.

    Images of more than WORKING_PIXELS are reduced by a whole factor. Raises CoDiError naming file and formats."""
    from PIL import ImageOps

    must_exist(source, "image")
    with _errors(source, "image"), _open(source) as file:
        _check(source, file)
        pixels = torch.from_numpy(_on_white(ImageOps.exif_transpose(_reduced(file)))).movedim(-1, 0)  # (3, H, W), 8 bits
    return pixels.float() / 255 if fit is None else fit(pixels)


class Animation:
    """Frames of an image file in time. Use it in a `with` block."""

    def __init__(self, source: Source, file: Any) -> None:
        self.source, self.file, self.limits, self.told = source, file, Limits.current(), None

    def __enter__(self) -> Animation:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def seconds(self, progress: Progress) -> float:
        """End of the last frame."""
        end, number = 0.0, 0
        while True:
            self.limits.check("frames", number + 1, name_of(self.source))
            try:
                with _errors(self.source, "video"):
                    self.file.seek(number)
                    _check(self.source, self.file)
            except CoDiError:
                if number:
                    return end
                raise
            progress(0.0)
            end, number = end + self._lasts(), number + 1

    def _lasts(self) -> float:
        """Seconds for which the present frame is shown."""
        lasts = float(self.file.info.get("duration", 0) or 0) / 1000
        return lasts if _SHORTEST < lasts < 3600 else _INSTEAD

    def since(self, begin: float) -> Iterator[Shown]:
        """All frames, in order, since each is drawn over those before it; of a damaged file as far as it goes."""
        time, number = 0.0, 0
        while True:
            self.limits.check("frames", number + 1, name_of(self.source))
            try:
                with _errors(self.source, "video"):
                    self.file.seek(number)
                    _check(self.source, self.file)
                    image = _reduced(self.file).copy()
                    lasts = self._lasts()
            except CoDiError:
                if number:
                    return
                raise
            yield Shown(time, time + lasts, image)
            time, number = time + lasts, number + 1

    def pixels(self, image: Any) -> np.ndarray:
        """(H, W, 3), 8 bits, on white where it is transparent."""
        with _errors(self.source, "video"):
            return _on_white(image)


def animation(source: Source) -> Animation | None:
    """An image file as frames in time; None where the source is no image."""
    from PIL import UnidentifiedImageError

    must_exist(source, "video")
    with _errors(source, "video"):
        try:
            file = _open(source)
        except UnidentifiedImageError:
            return None
        _check(source, file)
    return Animation(source, file)


def _open(source: Source) -> Any:
    from PIL import Image

    Image.init()  # before, it knows a part of its decoders only
    return Image.open(source, formats=[name for name in DECODERS if name in Image.OPEN])  # AVIF came with Pillow 11.3


def _check(source: Source, file: Any) -> None:
    Limits.current().check("pixels", file.width * file.height, name_of(source))


@contextlib.contextmanager
def _errors(source: Source, kind: str) -> Iterator[None]:
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except Image.DecompressionBombError as error:  # Pillow's own check comes before ours can name the setting
        raise CoDiError(f"{name_of(source)}: {error}; set CODI_MAX_PIXELS, and Pillow's limit, to allow more") from error
    except UnidentifiedImageError as error:
        if kind == "video":
            raise
        raise unreadable(source, kind, "no image of a known format") from error
    except CoDiError:
        raise
    except Exception as error:  # its decoders raise whatever they meet in damaged files
        raise unreadable(source, kind, error) from error


def _reduced(file: Any) -> Any:
    """The image, by a whole factor smaller where it is larger than anything here makes use of."""
    factor = 1
    while file.width * file.height > WORKING_PIXELS * factor * factor:
        factor += 1
    if factor == 1:
        return file
    file.draft("RGB", (file.width // factor, file.height // factor))  # JPEG decodes at 1/2, 1/4 or 1/8
    if file.width * file.height <= WORKING_PIXELS:
        return file
    if file.mode in ("P", "1") or file.mode.startswith("I;16"):
        return file.resize((file.width // factor, file.height // factor))  # these cannot be averaged
    return file.reduce(factor)


def _on_white(image: Any) -> np.ndarray:
    """(H, W, 3), 8 bits."""
    from PIL import Image

    if image.mode[0] in "IF":  # Pillow would cut greys of more than 8 bits at 255 instead of scaling them
        image = Image.fromarray(_grey_bytes(np.asarray(image, dtype=np.float32), image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _grey_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Greys of more than 8 bits -> uint8. 32-bit modes do not say what white is: 1, 255 or 65535, the first that none exceeds."""
    brightest = float(np.nanmax(values, initial=0.0))
    if mode.startswith("I;16") or brightest > 255:
        white = 65535.0
    else:
        white = 1.0 if mode == "F" and brightest <= 1 else 255.0
    return (np.nan_to_num(values).clip(0, white) * (255 / white)).astype(np.uint8)

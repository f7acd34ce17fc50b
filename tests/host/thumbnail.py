"""Thumbnails of workflows: their results beside each other, moving where they move."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIZE, _GAP, _WAVE, _TEXT = (576, 384), 8, 84, 26  # pixels
_GROUND, _INK, _WAVES = (24, 26, 31), (235, 235, 235), (120, 190, 255)
_MOST = 6  # images and videos


def write_thumbnail(path: Path, prompt: dict[str, dict], outputs: dict[str, Any], read: Callable[[dict], bytes]) -> None:
    """A picture of a run's results; animated WebP where a video is among them, else JPEG.

    ComfyUI asks for a template's thumbnail by the ending .jpg and browsers go by what a file holds, so both are written to `path`.
    `outputs` as in the host's history, `read` gives a file that they name."""
    panels, waves, texts = _results(prompt, outputs, read)
    moving = [panel for panel in panels if len(panel) > 1]
    count = max((len(panel) for panel in panels), default=1)
    frames = [_frame([panel[i % len(panel)] for panel in panels], waves, texts, i / count if moving else None) for i in range(count)]
    if len(frames) > 1:
        frames[0].save(path, "WEBP", save_all=True, append_images=frames[1:], duration=160, loop=0, quality=80, method=6)
    else:
        frames[0].save(path, "JPEG", quality=88, optimize=True)


def write_plan(path: Path, prompt: dict[str, dict]) -> None:
    """What goes in and what comes out, for a template whose results cannot be shown."""
    kinds = [
        entry["class_type"].removeprefix("CoDiEncode").lower() for entry in prompt.values() if entry["class_type"].startswith("CoDiEncode")
    ]
    (made,) = (entry["inputs"] for entry in prompt.values() if entry["class_type"] == "CoDiEmptyJointLatent")
    picture = Image.new("RGB", _SIZE, _GROUND)
    draw = ImageDraw.Draw(picture)
    large, small = (ImageFont.load_default(size=size) for size in (34, 20))
    for names, x in ((kinds, 40), ([kind for kind in ("text", "image", "video", "audio") if made.get(kind) is True], 356)):
        for row, name in enumerate(names):
            y = _SIZE[1] / 2 + (row - len(names) / 2) * 92 + 6
            draw.rounded_rectangle((x, y, x + 180, y + 80), radius=14, outline=_WAVES, width=3)
            draw.text((x + 90, y + 40), name, fill=_INK, font=large, anchor="mm")
    draw.line((240, 192, 330, 192), fill=_INK, width=4)
    draw.polygon(((330, 180), (348, 192), (330, 204)), fill=_INK)
    draw.text((_SIZE[0] / 2, _SIZE[1] - 28), "CoDi, the official model", fill=_INK, font=small, anchor="mm")
    picture.save(path, "JPEG", quality=88, optimize=True)


def _results(
    prompt: dict[str, dict], outputs: dict[str, Any], read: Callable[[dict], bytes]
) -> tuple[list[list[Image.Image]], list[np.ndarray], list[str]]:
    """Images and videos as lists of frames, waveforms, and texts: of saving nodes only where what they save is not shown before them."""
    panels: list[list[Image.Image]] = []
    waves: list[np.ndarray] = []
    texts: list[str] = []
    shows = {i for i in outputs if prompt[i]["class_type"].startswith(("CoDiDecode", "CoDiPreview")) and not _goes_on(prompt, i)}
    saves = {i for i in outputs if prompt[i]["class_type"].startswith("Save")} - {i for i in outputs if _sources(prompt, i) & shows}
    for i in sorted(shows | saves, key=int):
        entry = outputs[i]
        animated = bool((entry.get("animated") or [False])[0])
        for file in [*entry.get("images", []), *entry.get("video", [])]:
            data = read(file)
            panels.append(_video(data) if animated or file["filename"].endswith(".mp4") else [Image.open(io.BytesIO(data)).convert("RGB")])
        waves += [_wave(read(file)) for file in entry.get("audio", [])]
        texts += [line for text in entry.get("text", []) for line in text.splitlines()] if i in shows else []
    return panels[:_MOST], waves[:4], texts[:3]


def _sources(prompt: dict[str, dict], i: str) -> set[str]:
    return {value[0] for value in prompt[i]["inputs"].values() if isinstance(value, list)}


def _goes_on(prompt: dict[str, dict], i: str) -> bool:
    """Whether a stock node makes something else of what a node shows."""
    kinds = [entry["class_type"] for j, entry in prompt.items() if i in _sources(prompt, j)]
    return any(not kind.startswith(("CoDi", "Save")) for kind in kinds)


def _video(data: bytes) -> list[Image.Image]:
    with av.open(io.BytesIO(data)) as file:
        return [frame.to_image() for frame in file.decode(video=0)]


def _wave(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        parts = [frame.to_ndarray().reshape(-1).astype(np.float32) for frame in file.decode(audio=0)]
    wave = np.concatenate(parts)
    return wave / max(float(np.abs(wave).max()), 1e-6)


def _frame(images: list[Image.Image], waves: list[np.ndarray], texts: list[str], at: float | None) -> Image.Image:
    """One frame: images above, waveforms with a mark at the time `at` below them, then texts."""
    picture = Image.new("RGB", _SIZE, _GROUND)
    draw = ImageDraw.Draw(picture)
    low = _SIZE[1] - _GAP
    for text in reversed(texts):
        low -= _TEXT
        draw.text((_GAP * 2, low), text, fill=_INK, font=ImageFont.load_default(size=19))
    if waves:
        high = low - (_WAVE if images else low - _GAP)
        wide = (_SIZE[0] - _GAP * (len(waves) + 1)) // len(waves)
        for n, wave in enumerate(waves):
            _draw_wave(draw, wave, (_GAP + n * (wide + _GAP), high), (wide, low - high), at)
        low = high - _GAP
    if images:
        rows = 1 if len(images) <= 3 else 2
        per = -(-len(images) // rows)
        side = min((_SIZE[0] - _GAP * (per + 1)) // per, (low - _GAP * rows) // rows)
        for n, image in enumerate(images):
            row, column = divmod(n, per)
            left = (_SIZE[0] - per * side - (per - 1) * _GAP) // 2
            scale = side / max(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            resized = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
            picture.paste(resized, (left + column * (side + _GAP), _GAP + row * (side + _GAP)))
    return picture


def _draw_wave(draw: Any, wave: np.ndarray, corner: tuple[int, int], size: tuple[int, int], at: float | None) -> None:
    (x, y), (wide, high) = corner, size
    draw.rectangle((x, y, x + wide, y + high), fill=(14, 15, 18))
    for column, part in enumerate(np.array_split(wave, wide)):
        top, bottom = (y + high / 2 - float(v) * high * 0.46 for v in (part.max(), part.min()))
        draw.line((x + column, top, x + column, max(bottom, top + 1)), fill=_WAVES)
    if at is not None:
        draw.line((x + at * wide, y, x + at * wide, y + high), fill=_INK, width=2)

"""The judge of Bounce World: reads shape, colour and beats from any medium by measurement, from the world's definition alone.

Every judge returns a dict of int64 tensors (n,), one per attribute that the medium shows, as indices into SHAPES, COLOURS and
BEATS, -1 where the attribute cannot be read. Clips and sounds also have "times": when the object hits or a note starts, in
seconds, ascending, filled up with NaN. With `nuisance=True` the result also holds what a scene leaves open (`NUISANCE_IN`), as floats
(n,), NaN where it cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .judge_audio import check_wave, measure_notes
from .judge_image import LEAST_FIT, Objects, check_pixels, measure_objects, nearest_colour
from .judge_video import read_bounce
from .world import BEAT_WORDS, COLOURS, FREQUENCIES, SAMPLE_RATE, SHAPES

SOUND_BATCH = 64  # sounds measured at once: bounds the memory

NUISANCE_IN = {"image": ("x", "radius", "grey"), "video": ("x", "radius", "grey"), "audio": ("peak", "detune"), "text": ()}
"""Nuisance that a medium shows: place (px), size (px) and background (0 .. 1); loudness (peak) and detune (factor on the frequency)."""

_SHAPE_OF, _COLOUR_OF, _BEATS_OF = ({word: i for i, word in enumerate(words)} for words in (SHAPES, COLOURS, BEAT_WORDS))


def judge_image(pixels: Tensor, *, nuisance: bool = False) -> dict[str, Tensor]:
    """pixels (n, 3, 64, 64) RGB 0 .. 1 -> shape, colour. Raises CoDiError on another size."""
    seen = measure_objects(pixels)
    read = {"shape": seen.shape, "colour": torch.where(seen.present, nearest_colour(seen.rgb), -1)}
    return {**read, **_placed(seen, len(pixels))} if nuisance else read


def judge_video(frames: Tensor, *, nuisance: bool = False) -> dict[str, Tensor]:
    """frames (n, F, 3, 64, 64) RGB 0 .. 1, evenly over 1.28 s -> shape, colour, beats, times (n, 3).

    Shape and colour are read over all frames that show an object, at least half of them; beats need four frames. The times of
    the hits are measured on the path of the object, so they tell when it hits, not when it should.
    """
    check_pixels(frames, 5)
    n, length = frames.shape[:2]
    seen = measure_objects(frames.flatten(0, 1))
    present = seen.present.view(n, length)
    shown = present.sum(dim=1) >= max(length / 2, 1)
    weight = present.unsqueeze(2).float() / present.sum(dim=1).clamp(min=1).view(n, 1, 1)  # (n, F, 1)
    misfit, shape = (seen.misfit.view(n, length, len(SHAPES)) * weight).sum(dim=1).min(dim=1)
    colour = nearest_colour((seen.rgb.view(n, length, 3) * weight).sum(dim=1))
    beats, times = read_bounce(seen.y.view(n, length), present)
    read = {
        "shape": torch.where(shown & (misfit < 1 - LEAST_FIT), shape, -1),
        "colour": torch.where(shown, colour, -1),
        "beats": beats,
        "times": times,
    }
    return {**read, **_placed(seen, n)} if nuisance else read


def judge_audio(wave: Tensor, sample_rate: int, *, nuisance: bool = False) -> dict[str, Tensor]:
    """wave (n, N) or (n, channels, N) -1 .. 1, any length and rate -> shape (timbre), colour (pitch), beats, times (n, 6).

    Raises CoDiError on other shapes.
    """
    if len(wave) == 0:  # not every transform takes an empty batch
        silence = wave.new_zeros(1, SAMPLE_RATE)
        return {name: value[:0] for name, value in judge_audio(silence, SAMPLE_RATE, nuisance=nuisance).items()}
    mono = check_wave(wave, sample_rate)
    parts = [measure_notes(part) for part in mono.split(SOUND_BATCH)]
    read = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    frequency, colour = read.pop("frequency"), read["colour"]
    if not nuisance:
        return read
    detune = frequency / torch.tensor(FREQUENCIES, device=mono.device)[colour.clamp(min=0)]
    return {**read, "peak": mono.abs().amax(dim=1), "detune": torch.where(colour >= 0, detune, torch.nan)}


def judge_text(texts: Sequence[str]) -> dict[str, Tensor]:
    """Captions -> shape, colour, beats by the attribute words in them; -1 where a word is missing, misspelt or contradicted."""
    read = []
    for text in texts:
        words = re.findall(r"[\w'-]+", text.lower())
        words += [f"{one} {two}" for one, two in zip(words, words[1:], strict=False)]
        said = [{value[word] for word in words if word in value} for value in (_SHAPE_OF, _COLOUR_OF, _BEATS_OF)]
        read.append([one.pop() if len(one) == 1 else -1 for one in said])
    columns = torch.tensor(read, dtype=torch.long).view(-1, 3).unbind(1)
    return {"shape": columns[0], "colour": columns[1], "beats": columns[2]}


def _placed(seen: Objects, n: int) -> dict[str, Tensor]:
    """Place, size and background in n pictures or, as means over the frames with an object, n clips; `seen` holds them in order."""
    known = (seen.present & (seen.shape >= 0)).view(n, -1)  # (n, F)
    read = {}
    for name in NUISANCE_IN["image"]:
        read[name] = torch.where(known, getattr(seen, name).view(n, -1), torch.nan).nanmean(dim=1)
    return read

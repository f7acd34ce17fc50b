"""From pictures, clips and sound of any size to what the prompt encoders take.

Pixels are floats in 0..1, channels first. `clip_*` end in pixels normalised for CLIP; `encode_audio` ends in the shared space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CoDiError
from ..media.fitting import fill, rgb
from ..media.resampling import resample
from ..media.values import Progress

if TYPE_CHECKING:
    from .clap import CLAPEncoder

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training pixels."""

LONG_SIDE = 4
"""Aspect ratio up to which a picture is resized as a whole."""


def clip_normalize(pixels: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) in 0..1 to CLIP's statistics; the fast path for pictures that have the encoder's size."""
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def resize_image(pixels: Tensor, size: int) -> Tensor:
    """Centre square of pictures (N, 3, H, W), 0..1 or 8 bits, at size x size, through 8 bits and Pillow's bicubic filter as published.

    The short side becomes `size` and the middle of the long side is kept. Up to LONG_SIDE times the short side the whole picture
    is resized and then cropped, to the last bit as published; of longer ones only the middle is ever computed, so that extreme
    aspect ratios cost nothing. Returns float32 in 0..1, multiples of 1/255 on the CPU; what has the size already is not changed.
    """
    from PIL import Image

    height, width = pixels.shape[-2:]
    if (height, width) == (size, size):
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    short = min(height, width)
    whole = (size * width // short, size * height // short)
    box = (*_centre(width, short, size), *_centre(height, short, size))
    eight_bits = pixels if pixels.dtype == torch.uint8 else (pixels.float() * 255).to(torch.uint8)  # truncated
    bytes_ = eight_bits.movedim(1, -1).contiguous().cpu().numpy()  # (N, H, W, 3)
    if max(whole) <= LONG_SIDE * size:
        left, top = ((side - size) // 2 for side in whole)
        crop = (left, top, left + size, top + size)
        pictures = [Image.fromarray(p).resize(whole, Image.Resampling.BICUBIC).crop(crop) for p in bytes_]
    else:
        pictures = [Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC, (box[0], box[2], box[1], box[3])) for p in bytes_]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).movedim(-1, 1).float() / 255


def _centre(length: int, short: int, size: int) -> tuple[float, float]:
    """First and last source coordinate of the `size` middle pixels of a side resized in proportion to short -> size."""
    out = size * length // short
    first = (out - size) // 2
    return first * length / out, min((first + size) * length / out, float(length))


def resize_clip(frames: Tensor, size: int, *, antialias: bool = True) -> Tensor:
    """Centre square of frames (N, 3, H, W) at size x size, see `media.fill`, float32 in 0..1.

    The published conditioning did not antialias (`antialias=False`), which large frames do not survive well.
    """
    return fill(frames, (size, size), antialias=antialias)


def clip_image(pixels: Tensor, size: int, *, working_size: int | None = None) -> Tensor:
    """Pictures (..., C, H, W) in 0..1 as CLIP pixels (..., 3, size, size); the centre square is kept.

    `working_size`: resize to this first, as the published conditioning does with the size of the picture model.
    Raises CoDiError as `rgb` does.
    """
    pixels = rgb(pixels)
    for step in (working_size, size):
        if step is not None and tuple(pixels.shape[-2:]) != (step, step):
            pixels = resize_image(pixels.reshape(-1, *pixels.shape[-3:]), step).view(*pixels.shape[:-2], step, step)
    return clip_normalize(pixels.float())


def clip_video(frames: Tensor, size: int, *, working_size: int | None = None, antialias: bool = True) -> Tensor:
    """Clips (B, F, C, H, W) in 0..1, F >= 1, as CLIP pixels (B, F, 3, size, size); see `clip_image`."""
    if frames.ndim != 5:
        raise CoDiError(f"the video has shape {tuple(frames.shape)}; it takes (batch, frames, channels, height, width)")
    flat = rgb(frames, "clip").flatten(0, 1)
    if working_size is not None and tuple(flat.shape[-2:]) != (working_size, working_size):
        flat = resize_clip(flat, working_size, antialias=antialias)
    return clip_image(flat, size).unflatten(0, frames.shape[:2])


def spread(frames: Tensor, count: int) -> Tensor:
    """At most `count` frames of clips (B, F, ...), spread evenly: the middles of `count` equal parts."""
    total = frames.shape[1]
    if total <= count:
        return frames
    return frames[:, [(2 * i + 1) * total // (2 * count) for i in range(count)]]


def repeat_pad(waveform: Tensor, samples: int) -> Tensor:
    """Waveform (B, N) at exactly `samples`: whole copies, then zeros (as CLAP was trained); longer is cut."""
    copies = samples // waveform.shape[-1]
    if copies > 1:
        waveform = waveform.repeat(1, copies)
    return F.pad(waveform, (0, max(samples - waveform.shape[-1], 0)))[:, :samples]


def encode_audio(
    clap: CLAPEncoder,
    waveform: Tensor,
    rate: int,
    *,
    crop: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: Progress = lambda _: None,
) -> Tensor:
    """Sound (B, N) or (B, channels, N), -1..1, at `rate` Hz, any N >= 1, to unit vectors (B, 1, D), float32. Channels are averaged.

    Sound longer than the encoder's clip is read in consecutive windows, in bounded batches; their embeddings are averaged, weighted
    by duration, and renormalised. Given a generator `crop`, one random window is read instead, as published. Silence is a valid
    prompt. batch_size: windows at once; by default one on a CPU, where more are not faster and an interrupt waits for them, else 8.
    progress: called after every batch with the part done.
    Raises CoDiError for no samples, integers, NaN or infinite samples, and unusable rates.
    """
    if waveform.ndim not in (2, 3) or not waveform.numel():
        raise CoDiError(f"the audio has shape {tuple(waveform.shape)}; it takes (batch, samples) or (batch, channels, samples), not empty")
    if not waveform.is_floating_point():
        raise CoDiError(f"the audio holds {waveform.dtype}; it takes floating-point samples in -1..1")
    if waveform.ndim == 2:
        waveform = waveform[:, None]
    device = next(clap.parameters()).device
    samples, length = waveform.shape[-1], max(round(clap.config.clip_seconds * rate), 1)
    if crop is not None and samples > length:
        start = int(torch.randint(samples - length + 1, (1,), generator=crop))
        waveform, samples = waveform[..., start : start + length], length
    total = torch.zeros((), device=device)
    batch_size = batch_size or (1 if device.type == "cpu" else 8)
    step = max(batch_size // waveform.shape[0], 1) * length
    for start in range(0, samples, step):
        block = waveform[..., start : start + step].mean(dim=1, dtype=torch.float32)  # (B, n)
        if not bool(torch.isfinite(block).all()):
            raise CoDiError("the audio holds NaN or infinite samples; it takes values in -1..1. Check the node or file that it comes from")
        whole = block.shape[-1] // length * length
        for part in (block[:, :whole].reshape(-1, length), block[:, whole:]):
            if part.numel():
                windows = repeat_pad(resample(part.to(device), rate, clap.config.sample_rate), clap.clip_samples)
                filled = part.shape[-1] / length
                embedding = clap.encode_audio(windows).unflatten(0, (waveform.shape[0], -1))  # (B, windows, 1, D)
                total = total + filled * embedding.float().sum(dim=1)
        progress(min(1.0, (start + step) / samples))
    return F.normalize(total, dim=-1)

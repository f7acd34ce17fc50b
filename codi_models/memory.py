"""How much memory a request takes, reckoned before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from .config import CoDiConfig
from .errors import TooLarge

PIXELS_AT_ONCE = 8 * 256 * 256  # pictures and frames beyond that many pixels are decoded one part after another
BINS_AT_ONCE = 8 * 1024 * 64  # the same for sounds, in mel bins
_BYTES_PER_CHANNEL = 33  # activations of one latent element, per model channel and byte of the dtype; as ComfyUI reckons for SD 1.5
_COPIES = 8  # widest feature maps that an autoencoder holds at once, rounded up
_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine() -> int:
    """Bytes of memory of this machine, or of the container that this process runs in."""
    import psutil

    allowed = [psutil.virtual_memory().total]
    for file in _CONTAINER:
        try:
            allowed.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return min(allowed)


def denoising(config: CoDiConfig, shapes: Sequence[Sequence[int]], itemsize: int) -> int:
    """Bytes of activations of one call of the joint denoiser on latents of these shapes, (B, C, ...)."""
    places = sum(shape[0] * math.prod(shape[2:]) for shape in shapes)
    return places * config.vision_denoiser.model_channels * itemsize * _BYTES_PER_CHANNEL


def coding(config: CoDiConfig, component: str, places: int, itemsize: int) -> int:
    """Bytes that an autoencoder or vocoder computes so many pixels (or mel bins) in."""
    autoencoder = config.image_autoencoder if component == "image_autoencoder" else config.audio_autoencoder
    return places * autoencoder.model_channels * _COPIES * itemsize


def making(config: CoDiConfig, latents: Mapping[str, Sequence[int]], batch: int, itemsize: int) -> int:
    """Bytes at the peak of making `batch` samples with latents (C, ...) of these shapes at once: sampling under guidance, which takes two
    rows a sample, or decoding one part after another; and the outputs."""
    most, made = denoising(config, [(2 * batch, *shape) for shape in latents.values()], itemsize), 0
    for output, shape in latents.items():
        name = "audio_autoencoder" if output == "audio" else "image_autoencoder"
        unit = getattr(config, name).downsampling ** 2
        if output == "text":
            continue
        one, least = math.prod(shape[-2:]) * unit, BINS_AT_ONCE if output == "audio" else PIXELS_AT_ONCE
        whole = batch * math.prod(shape[1:]) * unit
        most = max(most, coding(config, name, min(whole, max(one, least)), itemsize))
        made += whole * 3 * 4
    return most + made


def check_room(needed: int, what: str, advice: str) -> None:
    """Raises TooLarge where so many bytes are more than the machine has."""
    if needed > (there := machine()):
        raise TooLarge(f"{what} takes about {needed / 1e9:.0f} GB, and this machine has {there / 1e9:.0f}: {advice}")

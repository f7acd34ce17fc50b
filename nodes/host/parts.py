"""LATENTs of CoDi: which modality a tensor is, and how parts are put together and taken apart.

video (B, 4, F, h, w) | image (B, 4, h, w) | text (B, D, 1) | audio (B, 8, frames / f, mels / f), in latent space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management as mm
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ...codi_models.config import CoDiConfig
from ...codi_models.errors import CoDiError
from ...codi_models.modalities import MODALITIES, Size, ordered
from ...codi_models.modalities import modality_of as modality_of_latent
from ...codi_models.settings import image_unit, own_size


def host_form(modality: str, part: Tensor) -> Tensor:
    """A latent as the host takes it: it wants at least three axes, so text is (B, D, 1)."""
    return part.unsqueeze(-1) if modality == "text" else part


def network_form(modality: str, part: Tensor) -> Tensor:
    """A latent as the networks take it."""
    return part.squeeze(-1) if modality == "text" else part


def modality_of(shape: Sequence[int], config: CoDiConfig) -> str:
    """Modality of a latent of this shape. Raises CoDiError naming the shape and the accepted ones."""
    own = tuple(shape[1:-1]) if len(shape) == 3 and shape[-1] == 1 else tuple(shape[1:])
    found = modality_of_latent(own, config)
    if found is not None and len(shape) >= 3:
        return found
    accepted = []
    for name, row in MODALITIES.items():
        axes = [*row.axes(config), 1] if name == "text" else row.axes(config)
        accepted.append(f"{name} (batch, {', '.join('any' if axis is None else str(axis) for axis in axes)})")
    raise CoDiError(
        f"a latent of shape {tuple(shape)} is none of {config.name}'s: {'; '.join(accepted)}. "
        "Make the LATENT with CoDi Empty Joint Latent of the same model"
    )


def modalities_of(shapes: Sequence[Sequence[int]], config: CoDiConfig) -> tuple[str, ...]:
    """Modalities of the parts of a joint latent, in their order. Raises CoDiError where one is unknown or comes twice."""
    found = tuple(modality_of(shape, config) for shape in shapes)
    if len(set(found)) != len(found):
        raise CoDiError(f"a joint LATENT holds each of {', '.join(MODALITIES)} at most once; this one holds {', '.join(found)}")
    return found


def shapes_of(samples: Any) -> list[tuple[int, ...]]:
    """Shapes of the parts of LATENT["samples"]."""
    return [tuple(p.shape) for p in (samples.unbind() if samples.is_nested else [samples])]


def split(latent: Mapping[str, Any], config: CoDiConfig) -> dict[str, Tensor]:
    """LATENT -> modality -> tensor. Raises CoDiError for a LATENT of another model."""
    samples = latent["samples"]
    parts = list(samples.unbind()) if samples.is_nested else [samples]
    return dict(zip(modalities_of([p.shape for p in parts], config), parts, strict=True))


def take(latent: Mapping[str, Any], modality: str, config: CoDiConfig) -> Tensor:
    """One modality of a LATENT. Raises CoDiError naming what the LATENT holds instead."""
    parts = split(latent, config)
    if modality not in parts:
        raise CoDiError(f"this LATENT holds no {modality}, only {', '.join(parts)}: choose {modality} in CoDi Empty Joint Latent")
    return parts[modality]


def join(parts: Mapping[str, Tensor]) -> Any:
    """Modality -> tensor to LATENT["samples"]: visual first, audio last; one part stays a plain tensor."""
    ordered = [parts[m] for m in MODALITIES if m in parts]
    # The host never unpacks a nested latent of one part.
    return ordered[0] if len(ordered) == 1 else NestedTensor(ordered)


def sizes_of(
    config: CoDiConfig, outputs: Sequence[str], *, width: int = 0, height: int = 0, frames: int = 0, seconds: float = 0.0
) -> dict[str, Size]:
    """Sizes of the chosen outputs: width and height in pixels, of which one alone means a square, seconds of audio (rounded to what the
    network can make). What is 0 is the model's own.

    Raises CoDiError where nothing is chosen, or for sizes and frame counts that the networks cannot make."""
    if not outputs:
        raise CoDiError(f"no output chosen: switch on at least one of {', '.join(MODALITIES)}")
    sizes = {}
    for m in ordered(outputs):
        own = own_size(config, m)
        length = mel_frames(config, seconds) if seconds else own.mel_frames
        size = sizes[m] = Size(height or width or own.height, width or height or own.width, frames or own.frames, length)
        if m in ("image", "video"):
            _check_size(config, size.width, size.height)
        if m == "video" and not 1 <= size.frames <= config.vision_denoiser.max_frames:
            raise CoDiError(f"{frames} frames are not what {config.name} can place in time: give 1 to {config.vision_denoiser.max_frames}")
    return sizes


def empty(config: CoDiConfig, sizes: Mapping[str, Size], batch: int = 1) -> dict:
    """LATENT of zeros for outputs of these sizes. Raises CoDiError for more than fits into the machine's memory."""
    shapes = {m: MODALITIES[m].latent_shape(config, size) for m, size in sizes.items()}
    check_room(sum(map(math.prod, shapes.values())) * batch, f"a LATENT of {batch} samples of this size")
    parts = {m: host_form(m, torch.zeros(batch, *shape, device=mm.intermediate_device())) for m, shape in shapes.items()}
    # Hosts before 0.30 take the rate of a decoded sound from the LATENT.
    return {"samples": join(parts), "type": "codi", "sample_rate": config.mel.sample_rate}


def check_room(numbers: int, what: str) -> None:
    """Raises CoDiError where so many float32 numbers would take more than half of the machine's memory: asked before they are made."""
    size, memory = 4 * numbers, mm.get_total_memory(torch.device("cpu"))
    if size > memory / 2:
        raise CoDiError(
            f"{what} would take {size / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f}: lower the batch, the size or the length"
        )


def mel_frames(config: CoDiConfig, seconds: float) -> int:
    """Mel frames nearest to a length in seconds that autoencoder and denoiser can halve as often as they do."""
    step = config.audio_autoencoder.downsampling * 2 ** (len(config.audio_denoiser.channel_mult) - 1)
    return max(step, round(seconds * config.mel.sample_rate / config.mel.hop_length / step) * step)


def weighted(shapes: Sequence[Sequence[int]], values: Sequence[float | Tensor], x: Tensor) -> Tensor:
    """One number for every element of each part, or one for each sample (B,), shaped to multiply a latent x, packed where it is joint."""
    if len(shapes) == 1:
        return x.new_tensor(float(values[0]))
    columns = [torch.as_tensor(value).to(x).view(-1, 1, 1) for value in values]
    counts = [math.prod(shape[1:]) for shape in shapes]
    return torch.cat([column.expand(len(x), 1, count) for column, count in zip(columns, counts, strict=True)], dim=-1)


def _check_size(config: CoDiConfig, width: int, height: int) -> None:
    unit = image_unit(config)
    if width % unit or height % unit or min(width, height) < unit:
        near = [max(unit, round(v / unit) * unit) for v in (width, height)]
        raise CoDiError(
            f"{width} x {height} pixels cannot be made by {config.name}: width and height must be multiples of {unit}. "
            f"Nearest: {near[0]} x {near[1]}"
        )

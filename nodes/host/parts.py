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

from ...codi_models.config import MODALITIES, AutoencoderConfig, CoDiConfig
from ...codi_models.errors import CoDiError


def modality_of(shape: Sequence[int], config: CoDiConfig) -> str:
    """Modality of a latent of this shape. Raises CoDiError naming the shape and the accepted ones."""
    vision, audio = config.vision_denoiser.in_channels, config.audio_denoiser.in_channels
    if len(shape) == 5 and shape[1] == vision:
        return "video"
    if len(shape) == 4 and shape[1] == vision:
        return "image"
    if len(shape) == 4 and shape[1] == audio and shape[3] == config.mel.n_mels // factor(config.audio_autoencoder):
        return "audio"
    if len(shape) == 3 and tuple(shape[1:]) == (config.text_autoencoder.latent_dim, 1):
        return "text"
    raise CoDiError(
        f"a latent of shape {tuple(shape)} is none of {config.name}'s: video is (batch, {vision}, frames, height, width), "
        f"image (batch, {vision}, height, width), text (batch, {config.text_autoencoder.latent_dim}, 1), audio (batch, {audio}, time, "
        f"{config.mel.n_mels // factor(config.audio_autoencoder)}). Make the LATENT with CoDi Empty Joint Latent of the same model"
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


def empty(config: CoDiConfig, outputs: Sequence[str], *, width: int, height: int, frames: int, seconds: float, batch: int) -> dict:
    """LATENT of zeros for the chosen outputs; width and height in pixels, seconds of sound (rounded to what the network can make).

    Raises CoDiError where nothing is chosen, or for sizes and frame counts that the networks cannot make."""
    if not outputs:
        raise CoDiError(f"no output chosen: switch on at least one of {', '.join(MODALITIES)}")
    if {"image", "video"} & set(outputs):
        _check_size(config, width, height)
    if "video" in outputs and not 1 <= frames <= config.vision_denoiser.max_frames:
        raise CoDiError(f"{frames} frames are not what {config.name} can place in time: give 1 to {config.vision_denoiser.max_frames}")
    f, g, mel = factor(config.image_autoencoder), factor(config.audio_autoencoder), config.mel
    picture = (config.image_autoencoder.latent_channels, height // f, width // f)
    shapes = {
        "video": (picture[0], frames, *picture[1:]),
        "image": picture,
        "text": (config.text_autoencoder.latent_dim, 1),
        "audio": (config.audio_autoencoder.latent_channels, mel_frames(config, seconds) // g, mel.n_mels // g),
    }
    check_room(sum(math.prod(shapes[m]) for m in shapes if m in outputs) * batch, f"a LATENT of {batch} samples of this size")
    parts = {m: torch.zeros(batch, *shapes[m], device=mm.intermediate_device()) for m in MODALITIES if m in outputs}
    # Hosts before 0.30 take the rate of a decoded sound from the LATENT.
    return {"samples": join(parts), "type": "codi", "sample_rate": mel.sample_rate}


def check_room(numbers: int, what: str) -> None:
    """Raises CoDiError where so many float32 numbers would take more than half of the machine's memory: asked before they are made."""
    size, memory = 4 * numbers, mm.get_total_memory(torch.device("cpu"))
    if size > memory / 2:
        raise CoDiError(
            f"{what} would take {size / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f}: lower the batch, the size or the length"
        )


def mel_frames(config: CoDiConfig, seconds: float) -> int:
    """Mel frames nearest to a length in seconds that autoencoder and denoiser can halve as often as they do."""
    step = factor(config.audio_autoencoder) * 2 ** (len(config.audio_denoiser.channel_mult) - 1)
    return max(step, round(seconds * config.mel.sample_rate / config.mel.hop_length / step) * step)


def factor(autoencoder: AutoencoderConfig) -> int:
    """Pixels (or mel bins) of one latent element along one side."""
    return 2 ** (len(autoencoder.channel_mult) - 1)


def _check_size(config: CoDiConfig, width: int, height: int) -> None:
    unit = factor(config.image_autoencoder) * 2 ** (len(config.vision_denoiser.channel_mult) - 1)
    if width % unit or height % unit or min(width, height) < unit:
        near = [max(unit, round(v / unit) * unit) for v in (width, height)]
        raise CoDiError(
            f"{width} x {height} pixels cannot be made by {config.name}: width and height must be multiples of {unit}. "
            f"Nearest: {near[0]} x {near[1]}"
        )

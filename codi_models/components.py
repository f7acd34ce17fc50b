"""The networks that a CoDi model is made of, one row each, and how they are built, checked, loaded and saved."""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoints import check_weights, load_weights, read_metadata, save_weights, without_random_init
from .config import CoDiConfig
from .errors import CoDiError, out_of_memory

_ENCODERS = "CoDi_encoders.pth"


@dataclass(frozen=True)
class Component:
    """Where a component's class lives, which parts of CoDiConfig it takes, and where the published checkpoint has its weights."""

    module: str
    cls: str  # or a function that builds one of several
    configs: tuple[str, ...]  # fields of CoDiConfig, in the order of the constructor
    published_file: str
    published_prefix: str  # of its keys in that file
    former_name: str = ""  # of its file in model folders made by version 0.3 and before


COMPONENTS = {
    "clip": Component(".encoders.clip", "CLIPEncoder", ("clip",), _ENCODERS, "clip.model."),
    "clap": Component(".encoders.clap", "CLAPEncoder", ("clap",), _ENCODERS, "clap."),
    "image_autoencoder": Component(
        ".autoencoders.image", "ImageAutoencoder", ("image_autoencoder",), _ENCODERS, "autokl.", "picture_autoencoder"
    ),
    "audio_autoencoder": Component(
        ".autoencoders.audio", "AudioAutoencoder", ("audio_autoencoder", "mel"), _ENCODERS, "audioldm.", "sound_autoencoder"
    ),
    "vocoder": Component(".autoencoders.spectrum", "build_vocoder", ("vocoder",), _ENCODERS, "audioldm.vocoder."),
    "text_autoencoder": Component(".autoencoders.optimus", "TextAutoencoder", ("text_autoencoder",), _ENCODERS, "optimus."),
    "vision_denoiser": Component(
        ".denoisers.unet2d", "UNet2D", ("vision_denoiser",), "CoDi_video_diffuser_8frames.pth", "model.diffusion_model.unet_image."
    ),
    "audio_denoiser": Component(
        ".denoisers.unet2d", "UNet2D", ("audio_denoiser",), "CoDi_audio_diffuser_m.pth", "model.diffusion_model.unet_audio."
    ),
    "text_denoiser": Component(
        ".denoisers.unet_text", "TextUNet", ("text_denoiser",), "CoDi_text_diffuser.pth", "model.diffusion_model.unet_text."
    ),
}


def component_path(folder: Path, name: str) -> Path:
    """File of a component in a model folder; where only a file of its former name is there, that one."""
    path, former = folder / f"{name}.safetensors", COMPONENTS[name].former_name
    old = folder / f"{former}.safetensors"
    return old if former and not path.exists() and old.exists() else path


def build_component(
    name: str, config: CoDiConfig, *, operations: Any = nn, dtype: Any = None, device: Any = None, **extra: Any
) -> nn.Module:
    """A freshly initialised network of the component table; `extra` goes to its constructor.

    Raises CoDiError for an unknown name, and for a configuration that describes no network."""
    if name not in COMPONENTS:
        raise CoDiError(f"unknown component {name!r}; CoDi has {', '.join(COMPONENTS)}")
    entry = COMPONENTS[name]
    cls = getattr(importlib.import_module(entry.module, __package__), entry.cls)
    parts = [getattr(config, part) for part in entry.configs]
    try:
        return cls(*parts, operations=operations, dtype=dtype, device=device, **extra)
    except Exception as error:  # libraries check configurations with error classes of their own
        if isinstance(error, CoDiError) or out_of_memory(error):
            raise
        raise CoDiError(
            f"no {name} can be built from the configuration of {config.name!r} ({type(error).__name__}: {error}). "
            f"Look at {', '.join(entry.configs)} in its config.json, or restore the model folder"
        ) from error


def load_component(
    name: str, config: CoDiConfig, path: str | Path, *, operations: Any = nn, dtype: Any = None, device: Any = None, **extra: Any
) -> nn.Module:
    """Build a component and fill it from its file; evaluation mode, gradients off. Raises CoDiError as `check_component` does."""
    _check_file(name, Path(path))
    try:
        with without_random_init():
            network = build_component(name, config, operations=operations, dtype=dtype, device=device, **extra)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            check_component(name, config, path)  # perhaps the configuration asks for more than the file holds
        raise
    load_weights(network, path)
    return network.eval().requires_grad_(False)


def check_component(name: str, config: CoDiConfig, path: str | Path) -> None:
    """Whether a file holds a component's weights, every key and shape; no tensor is read.

    Raises CoDiError where it is missing (naming how to get it), not whole, another component's or of another configuration."""
    _check_file(name, Path(path))
    check_weights(build_component(name, config, device="meta"), path)


def _check_file(name: str, path: Path) -> None:
    """The file is there, and its header does not name another component."""
    entry = COMPONENTS[name]
    if not path.is_file():
        raise CoDiError(
            f"{path} is missing, so {name} cannot be used. In a folder made from the published checkpoint: "
            f"`python -m codi_models convert {entry.published_file} --out {path.parent}` adds it; else restore the model folder"
        )
    named = read_metadata(path).get("component", name)
    if named not in (name, entry.former_name):
        raise CoDiError(f"{path} holds the weights of {named}, not of {name}. Restore the files of the model folder")


def save_component(name: str, network: nn.Module, config: CoDiConfig, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write `<folder>/<name>.safetensors`, whole or not at all; the header names component, model and configuration."""
    path = Path(folder) / f"{name}.safetensors"
    parts = {part: dataclasses.asdict(getattr(config, part)) for part in COMPONENTS[name].configs}
    save_weights(network, path, dtype=dtype, metadata={"component": name, "model": config.name, "config": json.dumps(parts)})
    return path

"""Joint LATENTs in safetensors files, inside the host's output and input folders only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ...codi_models.checkpoints import read_metadata, read_weights, save_weights
from ...codi_models.config import CoDiConfig
from ...codi_models.errors import CoDiError
from ...codi_models.modalities import MODALITIES
from .checks import batch_index
from .folders import inside
from .joining import take_apart
from .masks import masks_of, with_masks
from .parts import join, modality_of

SUFFIX = ".codi.safetensors"
_FORMAT = "codi latent 1"


def save(latent: Mapping[str, Any], prefix: str, config: CoDiConfig) -> tuple[str, str]:
    """Write a new file in the output folder -> (name, subfolder). Raises CoDiError for a prefix that leads out of it."""
    root = folder_paths.get_output_directory()
    if not inside(Path(root, f"{prefix}_00001_{SUFFIX}"), root):  # before the host makes the folder
        raise CoDiError(f"{prefix[:200]!r} leads out of the output folder, or is no name at all: give a name, or folder/name")
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root)
    except Exception as error:
        raise CoDiError(f"{prefix[:200]!r} is no name inside the output folder: {error}") from error
    if not inside(folder, root):  # with what the host put for its placeholders
        raise CoDiError(f"{prefix[:200]!r} leads out of the output folder: give a name, or folder/name")
    tensors = {f"part.{m}": own["samples"].contiguous().cpu() for m, own in take_apart(latent, config).items()}
    if "noise_mask" in latent:
        tensors |= {f"mask.{m}": mask.contiguous() for m, mask in masks_of(latent, config).items()}
    while (Path(folder) / (file := f"{name}_{counter:05}_{SUFFIX}")).exists():
        counter += 1
    metadata = {"kind": _FORMAT, "model": config.name, "sample_rate": str(config.mel.sample_rate)}
    if (numbers := latent.get("batch_index")) is not None:
        metadata["batch_index"] = json.dumps(batch_index(numbers, "latent"))
    save_weights(tensors, Path(folder) / file, metadata=metadata)
    return file, subfolder


def names() -> list[str]:
    """Files that can be loaded: of the input folder, and of the output folder marked as the host marks them."""
    found = []
    for root, mark in ((folder_paths.get_input_directory(), ""), (folder_paths.get_output_directory(), " [output]")):
        files = sorted(Path(root).rglob(f"*{SUFFIX}")) if os.path.isdir(root) else []
        found += [file.relative_to(root).as_posix() + mark for file in files if inside(file, root)]
    return found


def path_of(name: str) -> Path:
    """The file of a name. Raises CoDiError for one outside of the input and output folders, or that is not there."""
    bare, root = folder_paths.annotated_filepath(name)
    root = root or folder_paths.get_input_directory()
    path = Path(root) / bare
    if not inside(path, root) or not bare.endswith(SUFFIX):
        raise CoDiError(f"{name[:200]!r} is no *{SUFFIX} file inside the input folder, or in the output folder with [output] after it")
    if not path.is_file():
        raise CoDiError(f"there is no file {name[:200]!r}: save a LATENT with CoDi Save Latent, or copy one to the input folder")
    return path


def load(name: str, config: CoDiConfig) -> dict[str, Any]:
    """LATENT of a file. Raises CoDiError for a damaged file, one that holds something else, and a LATENT of another model."""
    path = path_of(name)
    metadata = read_metadata(path)
    if metadata.get("kind") != _FORMAT:
        raise CoDiError(f"{name} is no joint LATENT: it was not written by CoDi Save Latent")
    tensors, _ = read_weights(path)
    parts: dict[str, Tensor] = {m: tensors[f"part.{m}"] for m in MODALITIES if f"part.{m}" in tensors}
    wrong = [m for m, part in parts.items() if modality_of(part.shape, config) != m]
    if wrong or not parts:
        raise CoDiError(f"{name} holds no LATENT of {config.name}: it was made with {metadata.get('model')}")
    out: dict[str, Any] = {"samples": join(parts), "type": "codi", "sample_rate": config.mel.sample_rate}
    if "batch_index" in metadata:
        out["batch_index"] = _places(metadata["batch_index"], len(next(iter(parts.values()))), name)
    masks = {m: tensors[f"mask.{m}"] for m in parts if f"mask.{m}" in tensors}
    return with_masks(out, parts, masks) if len(masks) == len(parts) else out


def _places(text: str, count: int, name: str) -> list[int]:
    try:
        numbers = batch_index(json.loads(text), name)
    except (ValueError, RecursionError) as error:
        raise CoDiError(f"{name}: its batch_index {text[:80]!r} cannot be read: save the LATENT again") from error
    if len(numbers) != count:
        raise CoDiError(f"{name}: its batch_index has {len(numbers)} numbers for {count} samples: save the LATENT again")
    return numbers

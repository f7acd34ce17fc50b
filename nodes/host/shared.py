"""Points of the shared space in the graph: CONDITIONING in, names for them, parts of a LATENT decoded and encoded back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ...codi_models.coherence import encode_outputs
from ...codi_models.errors import CoDiError
from ...codi_models.latents import decode_text
from ...codi_models.modalities import MODALITIES
from .frames import working
from .handle import CoDiHandle
from .parts import split
from .vae import AudioVAE, ImageVAE

_KINDS = {"CoDiEncodeText": "text", "CoDiEncodeImage": "image", "CoDiEncodeAudio": "audio", "CoDiEncodeVideo": "video"}
_LONGEST_LABEL = 60
_SLOTS = {"CoDiEncodeOutputs": tuple(MODALITIES)}


@dataclass(frozen=True)
class Point:
    """A named embedding: (B, 1, D). `kind` chooses its colour. A label longer than a figure can show is cut."""

    label: str
    kind: str
    embedding: Tensor

    def __post_init__(self) -> None:
        if len(self.label) > _LONGEST_LABEL:
            object.__setattr__(self, "label", f"{self.label[: _LONGEST_LABEL - 1]}…")


def decode_parts(codi: CoDiHandle, latent: Mapping[str, Any], words_seed: int = 0) -> dict[str, Any]:
    """Every part of a LATENT, decoded: video (B, F, H, W, 3), image (B, H, W, 3), text B strings, audio (B, N).

    Raises CoDiError for a LATENT of another model, or one with NaN or infinite values."""
    decoded: dict[str, Any] = {}
    for modality, z in split(latent, codi.config).items():
        mm.throw_exception_if_processing_interrupted()
        if not bool(torch.isfinite(z).all()):
            raise CoDiError(f"the {modality} of this LATENT is NaN or infinite: lower cfg or the alignment, or load the model as fp32")
        if modality == "text":
            scaled = z.squeeze(-1).to(codi.model.place("text_autoencoder"), torch.float32) * codi.config.text_autoencoder.scale
            decoded[modality] = decode_text(codi.model, scaled, [words_seed + i for i in range(len(scaled))])
        elif modality == "audio":
            decoded[modality] = AudioVAE(codi).decode(z).squeeze(-1).float().cpu()
        else:
            decoded[modality] = ImageVAE(codi).decode(z).float().cpu()
    return decoded


def encode_parts(codi: CoDiHandle, latent: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every part of a LATENT, decoded and encoded back to the shared space: modality -> (B, 1, D)."""
    decoded = decode_parts(codi, latent)
    for modality in {"image", "video"} & decoded.keys():
        decoded[modality] = decoded[modality].movedim(-1, -3)
    found = {}
    for modality, rows in decoded.items():
        found[modality] = encode_outputs(codi.model, {modality: rows}, working())[modality].to(mm.intermediate_device())
    return found


def output_points(codi: CoDiHandle, latent: Mapping[str, Any] | None) -> list[Point]:
    """A point for every part of a LATENT; none for no LATENT."""
    return [] if latent is None else [Point(f"made {m}", m, e) for m, e in encode_parts(codi, latent).items()]


def prompt_points(prompts: Mapping[str, Any] | None, names: str, prompt: Any = None, node: Any = None) -> list[Point]:
    """A point for every connected CONDITIONING. Names: the given ones, separated by commas or lines, or else found in the
    graph that runs (`prompt`, API format, and the id of the `node` that asks).

    Raises CoDiError for more names than prompts, and for CONDITIONING that is no point of the shared space."""
    given = {key: c for key, c in (prompts or {}).items() if c is not None}
    said = [n.strip() for n in names.replace("\n", ",").split(",")] if names.strip() else []
    if len(said) > len(given):
        raise CoDiError(f"{len(said)} names for {len(given)} prompts: give one name per prompt, separated by commas, or none")
    points = []
    for number, (key, conditioning) in enumerate(given.items()):
        label, kind = _source(prompt, node, f"prompts.{key}") or (f"prompt {number + 1}", "")
        label = said[number] if number < len(said) and said[number] else label
        entries = [point_of(entry) for entry in conditioning]
        points += [Point(label if len(entries) == 1 else f"{label} {i + 1}", kind, e) for i, e in enumerate(entries)]
    return points


def point_of(entry: Any) -> Tensor:
    """Embedding (B, 1, D) of one entry of a CONDITIONING. Raises CoDiError for several tokens, as other models' prompts have."""
    embedding = entry[0]
    if not isinstance(embedding, Tensor) or embedding.ndim != 3 or embedding.shape[1] != 1:
        shape = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
        raise CoDiError(
            f"this CONDITIONING is {shape}, not one point of CoDi's shared space (batch, 1, D): make it with CoDi's Encode nodes"
        )
    return embedding


def _source(prompt: Any, node: Any, key: str) -> tuple[str, str] | None:
    """Name and kind of what a node's input comes from, as far as the graph tells."""
    graph: Any = prompt if isinstance(prompt, Mapping) else {}
    link = graph.get(str(node), {}).get("inputs", {}).get(key)
    if not isinstance(link, Sequence) or isinstance(link, str) or str(link[0]) not in graph:
        return None
    source, slot = graph[str(link[0])], link[1]
    kind = source.get("class_type", "")
    if kind in _SLOTS:
        return f"made {_SLOTS[kind][slot]}", _SLOTS[kind][slot]
    if kind == "CoDiEncodeText":
        text = source["inputs"].get("text")
        return (f'"{text}"' if isinstance(text, str) and text.strip() else "text"), "text"
    if kind in _KINDS:
        return _KINDS[kind], _KINDS[kind]
    return ("mix", "mix") if "Mix" in kind else (source.get("_meta", {}).get("title") or kind, "")


def select(latent: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The chosen rows of a LATENT's batch, in that order, with its masks."""
    from comfy.nested_tensor import NestedTensor

    def pick(value: Any) -> Any:
        if value.is_nested:
            return NestedTensor([pick(part) for part in value.unbind()])
        return value if len(value) == 1 else value[list(rows)]

    count = len(latent["samples"].unbind()[0] if latent["samples"].is_nested else latent["samples"])
    places = latent.get("batch_index") or range(count)
    chosen = {**latent, "samples": pick(latent["samples"]), "batch_index": [places[row] for row in rows]}
    if latent.get("noise_mask") is not None:
        chosen["noise_mask"] = pick(latent["noise_mask"])
    return chosen

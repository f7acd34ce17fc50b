"""The shared prompt space: where the embeddings of each modality lie in it (paper section 3.2, bridging alignment)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checkpoints import read_weights, save_weights
from ..errors import CoDiError
from ..modalities import MODALITIES

SHARED_SPACE_FILE = "shared_space.safetensors"


class SharedSpace:
    """Centre of each modality in the shared prompt space.

    Contrastive training leaves every modality in a cone of its own (the modality gap); with the cones' means removed,
    a prompt of one kind stands where the text that the denoisers were trained on would stand.
    `means`: modality -> (D,). Without means, `align` returns what it is given."""

    def __init__(self, means: Mapping[str, Tensor] | None = None) -> None:
        self.means = dict(means or {})

    @staticmethod
    def load(path: str | Path) -> SharedSpace:
        """Read `mean.<modality>` tensors; a missing file gives the identity. Raises CoDiError for any other content."""
        if not Path(path).exists():
            return SharedSpace()
        tensors, _ = read_weights(path)
        expected = {f"mean.{m}" for m in MODALITIES}
        if set(tensors) != expected or any(t.ndim != 1 for t in tensors.values()):
            raise CoDiError(f"{path} must hold one vector each of {sorted(expected)}, it has {sorted(tensors)}")
        return SharedSpace({key.removeprefix("mean."): tensor.float() for key, tensor in tensors.items()})

    def save(self, path: str | Path) -> None:
        """Write what `load` reads, float32."""
        save_weights({f"mean.{m}": v for m, v in self.means.items()}, path, dtype=torch.float32)

    def align(self, embedding: Tensor, modality: str) -> Tensor:
        """(B, 1, D) unit embedding of `modality` -> (B, 1, D), its modality's mean removed, unit length again."""
        if modality not in self.means:
            return embedding
        mean = self.means[modality].to(embedding)
        return normalize(embedding - mean, dim=-1)  # (B, 1, D)

    def restore(self, point: Tensor, modality: str) -> Tensor:
        """Inverse of `align` for unit embeddings: (B, 1, D) of the shared space -> the unit embedding that the encoder of
        `modality` would give. A point that no embedding of that modality is aligned to gives the nearest one."""
        point = normalize(point, dim=-1)
        if modality not in self.means:
            return point
        mean = self.means[modality].to(point)
        along = (point * mean).sum(dim=-1, keepdim=True)
        length = (along.square() + 1 - mean.square().sum()).clamp_min(0).sqrt() - along  # |mean + length * point| = 1
        return normalize(mean + length.clamp_min(0) * point, dim=-1)  # (B, 1, D)

"""What `Load CoDi` hands on: a model folder whose networks load when a node first needs them, placed by the host."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch

from ...codi_models import memory
from ...codi_models.checkpoints import read_weights
from ...codi_models.components import build_component, check_component
from ...codi_models.libraries import taken_apart
from ...codi_models.model import CoDi
from .folders import model_folder

_ENCODERS = ("clip", "clap")
_SOUND = ("audio_autoencoder", "vocoder")
_ACTIVATIONS = 256 << 20  # bytes that the other networks compute in at most, at official sizes
_opened: weakref.WeakValueDictionary[tuple, CoDiHandle] = weakref.WeakValueDictionary()


class HostedCoDi(CoDi):
    """A model folder whose components are built from the host's operations and moved by its memory management."""

    def __init__(self, folder: Path) -> None:
        opened = CoDi.from_pretrained(folder, device="cpu", dtype=torch.float32)
        # Prompts are put on `device`, so it is the encoders'.
        super().__init__(
            opened.folder, opened.config, device=mm.text_encoder_device(), dtype=opened.dtype, operations=comfy.ops.manual_cast
        )
        self.patchers: dict[str, Any] = {}
        self._working: dict[str, int] = {}

    def component(self, name: str) -> torch.nn.Module:
        """The network of that name, on its compute device. Raises CoDiError as CoDi.component does."""
        if name not in self.patchers:
            rest = mm.text_encoder_offload_device() if name in _ENCODERS else mm.vae_offload_device()
            # The plain patcher: these networks are small beside the denoisers and are used in one piece.
            self.patchers[name] = comfy.model_patcher.ModelPatcher(self._read(name), load_device=self.place(name), offload_device=rest)
        patcher = self.patchers[name]
        mm.load_models_gpu([patcher], memory_required=self._working.get(name, _ACTIVATIONS))
        return patcher.model

    def reserve(self, name: str, places: int) -> None:
        """Tells how many pixels (or mel bins) an autoencoder works on next, so that the host makes room for its activations."""
        self._working[name] = self.activations(name, places)

    def activations(self, name: str, places: int) -> int:
        """Bytes that an autoencoder computes so many pixels (or mel bins) in."""
        return memory.coding(self.config, name, places, self.precision(name).itemsize)

    def precision(self, name: str) -> torch.dtype:
        """Dtype of a component, chosen as the host chooses for text encoders and for VAEs: float32 on a CPU; on a GPU half precision,
        but float32 for sound and, where the GPU has no bfloat16, for pictures."""
        device = self.place(name)
        if mm.is_device_cpu(device):
            return torch.float32
        if name == "image_autoencoder" or name in _SOUND:
            return mm.vae_dtype(device, [torch.float32] if name in _SOUND else [torch.bfloat16, torch.float32])
        chosen = mm.text_encoder_dtype(device)
        return chosen if chosen in (torch.float16, torch.bfloat16, torch.float32) else torch.float16

    def place(self, name: str) -> torch.device:
        """Device that a component computes on, chosen by the host."""
        return mm.text_encoder_device() if name in _ENCODERS else mm.vae_device()

    def _read(self, name: str) -> torch.nn.Module:
        """A network with its weights, in memory once: what has the right dtype stays in the mapped file until it moves to a GPU."""
        check_component(name, self.config, self.path(name))
        dtype = self.precision(name)
        network = build_component(name, self.config, operations=self.operations, dtype=dtype, device="cpu")
        weights = taken_apart(network, read_weights(self.path(name))[0])
        # Hosts that stream weights leave layers empty until a state dict is assigned.
        network.load_state_dict({k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}, assign=True)
        self.loaded[name] = network
        return network.eval().requires_grad_(False)


class CoDiHandle:
    """One opened model folder; nodes that name the same unchanged folder share it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = HostedCoDi(model_folder(name))
        self.unconds: dict[str, torch.Tensor] = {}
        """Embeddings of no prompt, by kind, as far as they were needed."""

    @property
    def config(self) -> Any:
        """The folder's CoDiConfig."""
        return self.model.config


def fingerprint(name: str) -> tuple:
    """Changes when a file of the model folder does. Raises CoDiError where there is no such folder."""
    folder = model_folder(name)
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))  # others come and go while it is written
    return (str(folder), *((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files))


def open_handle(name: str) -> CoDiHandle:
    """The handle of a model name, opened once while anything still uses it."""
    key = fingerprint(name)
    handle = _opened.get(key)
    if handle is None:
        handle = _opened[key] = CoDiHandle(name)
    return handle

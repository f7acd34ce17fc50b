"""The model folder that training fills: which components exist, where fresh ones come from, and how results are written."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints import read_weights, save_weights
from ..components import COMPONENTS, build_component, component_path, load_component, save_component
from ..config import CoDiConfig
from ..encoders.shared_space import SHARED_SPACE_FILE, SharedSpace
from ..errors import CoDiError
from ..files import writing
from ..libraries import stored_state
from .dataset import Dataset


class Workspace:
    """A model folder in the making. Weights are stored in float16, which is what ships; the next run trains on what ships.

    With a configuration and a data set, what the folder lacks is made: config.json, and vocabularies built from the data's texts."""

    def __init__(self, folder: Path, device: torch.device, config: CoDiConfig | None = None, data: Dataset | None = None):
        self.folder, self.device = folder, device
        if config is None or data is None:
            return
        with self._lock():
            if not (folder / "config.json").exists():
                config.save(self.folder / "config.json")
            if not (folder / "clip_bpe.txt.gz").exists() and "text" in data.has:
                from ..autoencoders.tokenizers import build_vocabularies
                from ..encoders.tokenizer import build_clip_vocabulary

                text, texts = config.text_autoencoder, data.corpus()
                build_vocabularies(texts, folder, text.encoder_vocab, text.decoder_vocab)
                build_clip_vocabulary(texts, folder, vocab_size=config.clip.vocab_size)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Waits for its turn: runs of one recipe may be trained beside each other. Raises WriteError."""
        from filelock import FileLock

        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self.folder / ".lock"))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @property
    def config(self) -> CoDiConfig:
        """As it stands on disk: autoencoder runs that run beside this one write their scales into it."""
        return CoDiConfig.load(self.folder / "config.json")

    @property
    def space(self) -> SharedSpace:
        """Shared prompt space of the trained encoders."""
        return SharedSpace.load(self.folder / SHARED_SPACE_FILE)

    def has(self, component: str) -> bool:
        """Whether a run has written this component."""
        return component_path(self.folder, component).exists()

    def network(self, component: str) -> Any:
        """The component as trained so far, or freshly initialised; trainable, float32."""
        if self.has(component):
            network = load_component(component, self.config, component_path(self.folder, component), dtype=torch.float32)
        else:
            network = build_component(component, self.config, dtype=torch.float32)
        return network.to(self.device).train().requires_grad_(True)

    def trained(self, component: str) -> Any:
        """The component as an earlier run left it: evaluation mode, no gradients. Raises CoDiError if that run is missing."""
        if component not in COMPONENTS or not self.has(component):
            raise CoDiError(f"{self.folder} has no {component} yet: train the earlier runs first")
        return self.network(component).eval().requires_grad_(False)

    def save(self, component: str, network: nn.Module, *, scale: float | None = None) -> None:
        """Write a component and, for autoencoders, the factor that brings its latents to unit variance."""
        with self._lock():
            config = self.config
            if scale is not None:
                part = dataclasses.replace(getattr(config, component), scale=round(scale, 5))
                config = dataclasses.replace(config, **{component: part})
                config.save(self.folder / "config.json")
            save_component(component, network, config, self.folder, dtype=torch.float16)

    def save_learnt(self, component: str, network: nn.Module) -> None:
        """Write what learnt of a component in the dtype that its file has; what did not learn stays in it bit for bit.

        A component that has no file yet is written whole."""
        path = component_path(self.folder, component)
        if not path.exists():
            return self.save(component, network)
        with self._lock():
            tensors, metadata = read_weights(path)
            frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
            learnt = {
                name: value.detach().to("cpu", tensors[name].dtype)
                for name, value in stored_state(network).items()
                if name in tensors and name not in frozen
            }
            save_weights({**tensors, **learnt}, path, metadata=metadata)

    def hidden(self, owner: nn.Module, name: str, network: object) -> None:
        """Give `owner` a network that is no part of its module tree, so that it is neither trained nor saved with it."""
        owner.__dict__[name] = network

"""The model folder that training fills: which components exist, where fresh ones come from, and how results are written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..bounce_world import neighbours
from ..components import COMPONENTS, build_component, load_component, save_component
from ..config import CoDiConfig
from ..encoders.shared_space import SHARED_SPACE_FILE, SharedSpace
from ..errors import CoDiError
from ..facets import FACETS_FILE, Facets
from ..files import whole_file


class Workspace:
    """A model folder in the making. Weights are stored in float16, which is what ships; the next stage trains on what ships."""

    def __init__(self, folder: Path, config: CoDiConfig, device: torch.device):
        self.folder, self.device = folder, device
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not (folder / "config.json").exists():
                self._write_config(config)
            if not (folder / "clip_bpe.txt.gz").exists():
                from ..autoencoders.tokenizers import build_vocabularies
                from ..encoders.tokenizer import build_clip_vocabulary

                text, (captions, _, _) = config.text_autoencoder, neighbours.captions()
                build_vocabularies(captions, folder, text.encoder_vocab, text.decoder_vocab)
                build_clip_vocabulary(captions, folder, vocab_size=config.clip.vocab_size)

    def _lock(self) -> Any:
        from filelock import FileLock

        return FileLock(str(self.folder / ".lock"))

    def _write_config(self, config: CoDiConfig) -> None:
        with whole_file(self.folder / "config.json") as temporary:
            config.save(temporary)

    @property
    def config(self) -> CoDiConfig:
        """As it stands on disk: autoencoder stages that run beside this one write their scales into it."""
        return CoDiConfig.load(self.folder / "config.json")

    @property
    def space(self) -> SharedSpace:
        """Shared prompt space of the trained encoders."""
        return SharedSpace.load(self.folder / SHARED_SPACE_FILE)

    @property
    def facets(self) -> Facets:
        """Facets of the shared space. Raises CoDiError if bridging alignment has not fitted them."""
        found = Facets.load(self.folder / FACETS_FILE)
        if found is None:
            raise CoDiError(f"{self.folder} has no {FACETS_FILE} yet: run the stages of bridging alignment first")
        return found

    def save_facets(self, facets: Facets) -> None:
        """Write the facets and make them the model's own composition."""
        with self._lock():
            facets.save(self.folder / FACETS_FILE)
            config = self.config
            self._write_config(dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, composition="facets")))

    def has(self, component: str) -> bool:
        """Whether a stage has written this component."""
        return (self.folder / f"{component}.safetensors").exists()

    def network(self, component: str) -> Any:
        """The component as trained so far, or freshly initialised; trainable, float32."""
        if self.has(component):
            network = load_component(component, self.config, self.folder / f"{component}.safetensors", dtype=torch.float32)
        else:
            network = build_component(component, self.config, dtype=torch.float32)
        return network.to(self.device).train().requires_grad_(True)

    def trained(self, component: str) -> Any:
        """The component as an earlier stage left it: evaluation mode, no gradients. Raises CoDiError if that stage is missing."""
        if component not in COMPONENTS or not self.has(component):
            raise CoDiError(f"{self.folder} has no {component} yet: run the earlier training stages first")
        return self.network(component).eval().requires_grad_(False)

    def save(self, component: str, network: nn.Module, *, scale: float | None = None) -> None:
        """Write a component and, for autoencoders, the factor that brings its latents to unit variance."""
        with self._lock():
            config = self.config
            if scale is not None:
                part = dataclasses.replace(getattr(config, component), scale=round(scale, 5))
                config = dataclasses.replace(config, **{component: part})
                self._write_config(config)
            save_component(component, network, config, self.folder, dtype=torch.float16)

    def hidden(self, owner: nn.Module, name: str, network: object) -> None:
        """Give `owner` a network that is no part of its module tree, so that it is neither trained nor saved with it."""
        owner.__dict__[name] = network

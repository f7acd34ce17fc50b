"""Networks with recipe weights, kept between fixtures that share them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints import without_random_init
from ..denoisers.unet import UNet
from ..denoisers.unet2d import UNet2D
from ..denoisers.unet_text import TextUNet
from .check import Check
from .configs import text_unet_config, unet_config
from .keys import Layout, check_keys, layout_of, stem
from .recipe import fill

KEPT_BYTES = 1 << 30
"""Networks up to this much in all are kept; a larger one stays alone."""

PARTS = ("unet_image", "unet_text", "unet_audio")
"""Names of the UNets in the official joint class, in its order."""


class Networks:
    """Builds networks on demand. `vocabularies`: folder with the published tokenizers' files, where there is one."""

    def __init__(self, vocabularies: Path | None = None) -> None:
        self.vocabularies = vocabularies
        self._kept: dict[str, tuple[nn.Module, int]] = {}

    def filled(self, build: Callable[[], nn.Module], seed: str, prefix: str = "", untouched: Iterable[str] = (), *, key: str) -> Any:
        """The network of `build` with recipe weights, in evaluation mode without gradients. `key`: what it depends on beside the seed."""
        name = f"{key} {prefix} {seed}"
        if name not in self._kept:
            if sum(kept for _, kept in self._kept.values()) > KEPT_BYTES:  # before another large one takes its memory
                self._kept.clear()
            with without_random_init():
                network = build()
            size = sum(p.numel() * p.element_size() for p in network.parameters())
            if size + sum(kept for _, kept in self._kept.values()) > KEPT_BYTES:
                self._kept.clear()
            self._kept[name] = (fill(network, seed, prefix, untouched).eval().requires_grad_(False), size)
        return self._kept[name][0]

    def checked(self, check: Check, build: Callable[[], nn.Module], config: Any, prefix: str = "") -> Any:
        """The network of a fixture, filled, its keys held against those that the fixture lists; prefix as in `keys.problems`."""
        layout = empty_layout(build)
        network = self.filled(build, check.fixture.seed, stem(check.fixture.info, layout), key=str(config))
        check_keys(check, layout, prefix)
        return network

    def unet(self, part: str, config: Mapping[str, Any], seed: str, stem: str = "") -> UNet:
        """A UNet of the official joint class by its name there; stem: what weights are drawn by before that name."""
        return self.filled(lambda: build_unet(part, config), seed, f"{stem}{part}.", key=json.dumps(config, sort_keys=True))


def empty_layout(build: Callable[[], nn.Module]) -> Layout:
    """Keys and shapes of a network, without memory for its weights."""
    with torch.device("meta"):
        return layout_of(build())


def build_unet(part: str, config: Mapping[str, Any], *, device: Any = None) -> UNet:
    """An empty UNet of the official joint class by its name there."""
    if part == "unet_text":
        return TextUNet(text_unet_config(config), device=device)
    return UNet2D(unet_config(config), device=device)


def unet_layouts(config: Mapping[str, Any]) -> Layout:
    """Keys and shapes of every UNet that the configuration of the official joint class describes."""
    return {
        key: shape
        for part in PARTS if part in config
        for key, shape in layout_of(build_unet(part, config[part], device=torch.device("meta")), f"{part}.").items()
    }  # fmt: skip

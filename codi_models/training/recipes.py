"""The stages of codi-mini in order, and how long each trains."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loop import Objective
    from .workspace import Workspace


@dataclass(frozen=True)
class Recipe:
    """A stage: the objective's module and class, and its number of steps."""

    module: str
    cls: str
    steps: int

    def objective(self, space: Workspace) -> Objective:
        """Build the objective; its networks are fresh or as far as they have been trained."""
        return getattr(importlib.import_module(self.module, __package__), self.cls)(space)


RECIPES = {
    "bridging": Recipe(".bridging", "BridgingAlignment", 720),
    "vision_bridging": Recipe(".bridging", "VisionBridging", 2000),
    "sound_bridging": Recipe(".bridging", "SoundBridging", 2000),
    "picture_autoencoder": Recipe(".autoencoding", "PictureReconstruction", 1740),
    "picture_decoder": Recipe(".autoencoding", "PictureDecoding", 1500),
    "sound_autoencoder": Recipe(".autoencoding", "SoundReconstruction", 1400),
    "vocoder": Recipe(".autoencoding", "SpectrumFitting", 3000),
    "text_autoencoder": Recipe(".autoencoding", "CaptionReconstruction", 5000),
    "vision_denoiser": Recipe(".denoising", "VisionDenoising", 6800),
    "clip_prompting": Recipe(".denoising", "ClipPrompting", 1700),
    "picture_prompting": Recipe(".denoising", "PicturePrompting", 1500),
    "audio_denoiser": Recipe(".denoising", "AudioDenoising", 2640),
    "text_denoiser": Recipe(".denoising", "TextDenoising", 2010),
    "environment": Recipe(".environment", "EnvironmentEncoding", 6000),
    "alignment": Recipe(".alignment", "LatentAlignment", 1600),
}
"""Autoencoders and bridging alignment can run side by side; denoisers need both; alignment needs all denoisers. The steps are about
those of the shipped weights, whose stages ran by the clock (see their model card)."""

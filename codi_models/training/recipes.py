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
    "bridging": Recipe(".bridging", "BridgingAlignment", 1100),
    "vision_bridging": Recipe(".bridging", "VisionBridging", 1800),
    "sound_bridging": Recipe(".bridging", "SoundBridging", 1500),
    "sound_gliding": Recipe(".bridging", "SoundGliding", 1500),
    "image_autoencoder": Recipe(".autoencoding", "PictureReconstruction", 3300),
    "picture_decoder": Recipe(".autoencoding", "PictureDecoding", 2000),
    "audio_autoencoder": Recipe(".autoencoding", "SoundReconstruction", 3800),
    "vocoder": Recipe(".autoencoding", "SpectrumFitting", 3200),
    "text_autoencoder": Recipe(".autoencoding", "CaptionReconstruction", 10000),
    "vision_denoiser": Recipe(".denoising", "VisionDenoising", 6800),
    "clip_prompting": Recipe(".denoising", "ClipPrompting", 5000),
    "picture_prompting": Recipe(".denoising", "PicturePrompting", 3000),
    "world_prompting": Recipe(".denoising", "WorldPrompting", 2200),
    "audio_denoiser": Recipe(".denoising", "AudioDenoising", 8500),
    "text_denoiser": Recipe(".denoising", "TextDenoising", 11000),
    "sound_prompting": Recipe(".denoising", "SoundPrompting", 2500),
    "sound_between": Recipe(".denoising", "SoundGliding", 3000),
    "caption_prompting": Recipe(".denoising", "CaptionPrompting", 4000),
    "environment": Recipe(".environment", "EnvironmentEncoding", 6000),
    "caption_environment": Recipe(".environment", "CaptionEnvironment", 13000),
    "alignment": Recipe(".alignment", "LatentAlignment", 6000),
    "vision_listening": Recipe(".listening", "VisionListening", 1900),
    "picture_listening": Recipe(".listening", "PictureListening", 1000),
    "clip_listening": Recipe(".listening", "ClipListening", 850),
    "audio_listening": Recipe(".listening", "AudioListening", 1500),
    "text_listening": Recipe(".listening", "TextListening", 2500),
}
"""Autoencoders and bridging alignment can run side by side; denoisers need both; latent alignment, which begins with the environment
encoders, needs all denoisers; the listening stages go on from it, side by side if you like. With neighbours of the world in it, the
text autoencoder tells shapes and colours apart late: after 4000 steps it still confuses one of them. What the shipped weights were
trained with says their model card."""

"""Stage 4, third part: more of latent alignment (paper section 3.4), one listener at a time.

With environment encoders and denoisers frozen, connectors of one denoiser learn without those of the others: one run per modality,
side by side, each in batches as large as its own network allows. Directions are those of `alignment.PAIRS`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import DENOISER_OF
from ..denoisers.alignment import connector_parameters
from ..denoisers.unet import UNet
from .alignment import LatentAlignment


class Listening(LatentAlignment):
    """Denoising loss of one listener, attending to the environment embedding of one speaker a step."""

    directions: tuple[tuple[str, str], ...]  # (listener, speaker), taken in turns
    network: str

    def __init_subclass__(cls) -> None:
        cls.network = DENOISER_OF[cls.directions[0][0]]
        if "copies" not in vars(cls):
            cls.copies = {kind: count for kind, count in LatentAlignment.copies.items() if any(kind in pair for pair in cls.directions)}

    def trained_of(self, net: UNet) -> list[nn.Parameter]:
        return connector_parameters(net) if net is self.nets[self.network] else []

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        listener, speaker = pair = self.directions[step % len(self.directions)]
        with torch.no_grad():
            t, (clean, spoken), (noise, other), context = self.drawn(pair, self.batches[listener], generator)
            environment = self.heard(speaker, spoken, other, self.cleaner(t, generator))
        loss = self.denoising(self.nets[self.network], clean, noise, t, context, environment, generator)
        return loss, {f"{listener} hears {speaker}": loss}

    def write(self) -> None:
        self.workspace.save(self.network, self.nets[self.network])


class VisionListening(Listening):
    """Clips hear sounds, pictures hear captions."""

    directions: tuple[tuple[str, str], ...] = (("video", "audio"), ("image", "text"), ("video", "audio"))
    batches = {"image": 48, "video": 12}


class PictureListening(VisionListening):
    """Mostly pictures that hear captions; clips with their sound only so that they are not forgotten."""

    directions = (("image", "text"), ("image", "text"), ("video", "audio"), ("image", "text"))
    copies = {"image": 40, "video": 15, "audio": 20}


class ClipListening(VisionListening):
    """Mostly clips that hear sounds; pictures with their captions only so that they are not forgotten."""

    directions = (("video", "audio"), ("video", "audio"), ("video", "audio"), ("image", "text"))
    copies = {"image": 20, "video": 30, "audio": 40}


class AudioListening(Listening):
    """Sounds hear clips and captions."""

    directions = (("audio", "video"), ("audio", "text"))
    batches = {"audio": 32}


class TextListening(Listening):
    """Captions hear pictures and sounds."""

    directions = (("text", "image"), ("text", "audio"))
    batches = {"text": 192}

"""Bounce World as a data set: as many items as asked for, rendered when they are read."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import CoDiConfig
from ..errors import CoDiError
from ..training.dataset import Dataset
from . import words
from .render import render_audio, render_image, render_video
from .world import ALL_CAPTIONS, DURATION, FRAMES, IMAGE_SIZE, SAMPLE_RATE, SAMPLES, captions, every_scene, sample_nuisance

ITEMS = 14400
TEMPLATED = 0.3
"""Part of the prompts that are captions of the world, whole or partial; the others are in users' words."""


class BounceWorld(Dataset):
    """`items` scenes, each scene equally often. Image, audio and video of an item share its scene and nothing else.

    Raises CoDiError for a model of other sizes than the world's."""

    def __init__(self, config: CoDiConfig, items: int = ITEMS, seed: int = 0) -> None:
        usual, mel = config.sampling, config.mel
        sizes = (usual.image_size, usual.video_size, usual.frames, mel.sample_rate, mel.frames * mel.hop_length)
        if sizes != (IMAGE_SIZE, IMAGE_SIZE, FRAMES, SAMPLE_RATE, SAMPLES):
            raise CoDiError(
                f"Bounce World has images and videos of {IMAGE_SIZE} px, {FRAMES} frames and {DURATION} s of audio at {SAMPLE_RATE} Hz; "
                f"the model's image size, video size, frames, rate and samples are {sizes}"
            )
        generator = torch.Generator().manual_seed(seed)
        scenes = every_scene()
        self.scenes = scenes[torch.arange(items) % len(scenes)]
        self.nuisance = {kind: sample_nuisance(items, generator=generator) for kind in ("image", "audio", "video")}
        self.has = {kind: torch.ones(items, dtype=torch.bool) for kind in ("text", "image", "audio", "video")}
        self.version = f"bounce world 2, {items} items, seed {seed}"

    def media(self, modality: str, rows: Sequence[int]) -> Tensor:
        index = torch.as_tensor(rows, dtype=torch.long)
        scenes, nuisance = self.scenes[index], self.nuisance[modality][index]
        if modality == "audio":
            return render_audio(scenes, nuisance)  # (B, 20480)
        if modality == "image":
            return render_image(scenes, nuisance)  # (B, 3, 64, 64)
        return render_video(scenes, nuisance).transpose(1, 2)  # (B, 3, 8, 64, 64)

    def texts(self, rows: Sequence[int], rng: random.Random) -> list[str]:
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        return captions(self.scenes[torch.as_tensor(rows, dtype=torch.long)], generator=generator, full=True)

    def prompts(self, rows: Sequence[int], rng: random.Random) -> list[str]:
        scenes = self.scenes[torch.as_tensor(rows, dtype=torch.long)]
        texts = captions(scenes, generator=torch.Generator().manual_seed(rng.getrandbits(62)))
        said = zip(texts, scenes.shape.tolist(), scenes.colour.tolist(), scenes.beats.tolist(), strict=True)
        return [text if rng.random() < TEMPLATED else words.users_words(rng, *scene) for text, *scene in said]

    def corpus(self) -> list[str]:
        rng = random.Random(0)
        drawn = self.prompts([rng.randrange(len(self)) for _ in range(4000)], rng)
        return [*ALL_CAPTIONS, *drawn, *(20 * words.vocabulary())]

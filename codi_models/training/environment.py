"""Stage 4, first part: environment encoders learn to say in the shared space what a noisy latent shows (paper section 3.4).

Each modality's encoder learns alone, from its own latents and their captions: one short training for each modality."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounce_world import neighbours
from ..config import DENOISER_OF
from ..denoisers.alignment import environment_parameters
from ..denoisers.unet import UNet
from .bridging import contrastive
from .denoising import Noising, timesteps
from .loop import Objective
from .pools import TextPool, make_pool
from .workspace import Workspace


class EnvironmentEncoding(Objective):
    """Environment embeddings are pulled to the meaning of what is encoded, and apart from those of other scenes.

    The denoisers are frozen, and so are their connectors, which this part never runs: a step costs next to nothing beside one of
    `LatentAlignment`, so encoders learn from large batches to tell scenes apart before anything listens to them."""

    batches = {"image": 128, "video": 32, "audio": 64, "text": 128}
    copies = {"image": 60, "audio": 60, "video": 40}
    near = 0.25  # share of the scenes that are neighbours of the world's
    apart = 0.25  # weight of the contrastive loss
    sharpness = 15.0  # inverse temperature of the contrastive loss
    learning_rate = 1e-3
    kinds: tuple[str, ...] = ("image", "video", "audio", "text")  # in turns

    def __init__(self, space: Workspace):
        super().__init__()
        self.workspace = space
        self.nets: Any = nn.ModuleDict({name: space.network(name) for name in sorted({DENOISER_OF[kind] for kind in self.kinds})})
        net: Any
        for net in self.nets.values():
            net.requires_grad_(False)
            for parameter in self.trained_of(net):
                parameter.requires_grad_(True)
        self.text = TextPool(space)
        self.noising = Noising(space.device)
        self.scenes = neighbours.training_scenes(space.device)
        self.pools = {kind: make_pool(kind, space, copies, seed=21) for kind, copies in self.copies.items()}

    def trained_of(self, net: UNet) -> list[nn.Parameter]:
        """What is trained of a denoiser."""
        return environment_parameters(net)

    def sample(self, kind: str, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean latents (B, ...) of scenes and the prompt embeddings (B, D) of those very samples."""
        if kind != "text":
            return self.pools[kind].draw(ids, generator)
        assert self.text.latents is not None
        rows = self.text.draw(self.scenes[ids], generator, full=True)
        return self.text.latents[rows], self.text.embeddings[rows]

    def heard(self, kind: str, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Environment embeddings (B, 1, C) of latents with that noise in them."""
        return self.nets[DENOISER_OF[kind]].environment_embedding(self.noising.noisy(clean, noise, t), t)

    def towards(self, environment: Tensor, meaning: Tensor, t: Tensor) -> Tensor:
        """Mean distance of embeddings (B, 1, C) from a meaning (B, C), weighted down by the noise at timesteps (B,), scalar.

        A latent that is nearly noise cannot name its scene."""
        signal = self.noising.alphas[t].sqrt()
        return (signal * (1 - (environment[:, 0] * meaning).sum(-1))).mean()

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps (count,) at which the encoders look."""
        return timesteps(count, generator)

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        kind = self.kinds[step % len(self.kinds)]
        count = self.batches[kind]
        with torch.no_grad():
            ids = neighbours.draw_ids(count, generator, self.near)
            clean, own = self.sample(kind, ids, generator)
            captions = self.text.embeddings[self.text.draw(self.scenes[ids], generator, full=True)]  # (B, D)
            noise = torch.randn(clean.shape, generator=generator, device=clean.device)
            t = self.levels(count, generator)
        environment = self.heard(kind, clean, noise, t)
        pull = self.towards(environment, F.normalize(own + captions, dim=-1), t)
        apart = contrastive(environment[:, 0], captions, self.sharpness, ids)
        return pull + self.apart * apart, {f"{kind}/pull": pull, f"{kind}/apart": apart}

    def write(self) -> None:
        for name, net in self.nets.items():
            self.workspace.save(name, net)


class CaptionEnvironment(EnvironmentEncoding):
    """More of it for captions, half of them nearly clean, in larger batches and more often from the neighbours of the world.

    A caption is one point: its encoder tends to learn sentences by heart, and colours, one word among many, are what it then confuses."""

    kinds = ("text",)
    batches = {"text": 512}
    copies = {}
    near = 0.5
    clean = 250  # timesteps that count as nearly clean: what is finished or kept is heard at 0

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        draw = torch.rand(2, count, generator=generator, device=generator.device)
        return torch.where(draw[0] < 0.5, (draw[1] * self.clean).long(), super().levels(count, generator))

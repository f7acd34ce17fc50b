"""Stage 4: latent alignment (paper section 3.4). The denoisers are frozen; environment encoders and connectors learn.

Pairs that are trained: image-text, text-audio, audio-video. Every other combination of outputs is composed without training, so
the number of trainings grows linearly with the number of modalities."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import DENOISER_OF
from ..denoisers.alignment import alignment_parameters, copy_prompt_attention_into_connectors
from ..denoisers.unet import UNet
from ..worlds import neighbours
from .bridging import contrastive
from .denoising import SAMPLERS_BEGIN, Noising, conditions, jittered, timesteps
from .loop import Objective
from .pools import TextPool, make_pool
from .workspace import Workspace

PAIRS = (("image", "text"), ("audio", "video"), ("text", "audio"), ("audio", "video"))
"""Taken in turns; clips with their sound come twice, for only they must agree in time."""

BLANK = 10.0  # signal-to-noise ratio times the number of elements, below which a latent hardly shows its scene


class LatentAlignment(Objective):
    """Denoising loss of both outputs of a pair, each attending to the other's environment embedding, plus the contrastive loss.

    In the first `head_start` steps the environment encoders learn alone: they are pulled towards the prompt embeddings of the clean
    samples, which makes them say in the shared space what a noisy latent shows. Connectors start as copies of the frozen prompt
    attention, which understands that language."""

    batches = {"image": 24, "text": 24, "audio": 24, "video": 12}
    copies = {"image": 60, "audio": 60, "video": 40}
    head_start = 600  # steps
    late, late_start = 0.4, 0.7  # outputs agree or part while they are still mostly noise
    pull_weight = 0.2
    blind = 0.3  # share of the rows whose own latent is noise alone
    near = 0.25  # share of the scenes that are neighbours of the world's
    learning_rate = 1e-3

    def __init__(self, space: Workspace):
        super().__init__()
        self.workspace = space
        self.nets: Any = nn.ModuleDict({name: space.network(name) for name in sorted(set(DENOISER_OF.values()))})
        net: Any
        if not any(_untrained(net) for net in self.nets.values()):
            self.head_start = 0
        for net in self.nets.values():
            net.requires_grad_(False)
            if _untrained(net):
                copy_prompt_attention_into_connectors(net)
            for parameter in alignment_parameters(net):
                parameter.requires_grad_(True)
        self.text = TextPool(space)
        self.noising = Noising(space.device)
        self.scenes = neighbours.training_scenes(space.device)
        self.pools = {kind: make_pool(kind, space, copies, seed=21) for kind, copies in self.copies.items()}

    def sample(self, kind: str, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean latents (B, ...) of scenes and the prompt embeddings (B, D) of those very samples."""
        if kind != "text":
            return self.pools[kind].draw(ids, generator)
        assert self.text.latents is not None
        rows = self.text.draw(self.scenes[ids], generator, full=True)
        return self.text.latents[rows], self.text.embeddings[rows]

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pair, other = PAIRS[step % len(PAIRS)], PAIRS[(step + 1) % len(PAIRS)]
        # Environment encoders are small beside the denoisers: they also learn on a pair of their own.
        _, _, pull = self.listen(other, self.times(2 * min(self.batches[kind] for kind in other), generator), generator)
        if step < self.head_start:
            return pull, {"pull": pull}
        t = self.times(min(self.batches[kind] for kind in pair), generator)
        (clean, noises, ids), environments, own = self.listen(pair, t, generator)
        with torch.no_grad():
            prompts = self.text.embeddings[self.text.draw(self.scenes[ids], generator)]
            context = conditions([(0.4, jittered(prompts, generator))], self.text.empty, generator)
        losses = [
            self.denoising(self.nets[DENOISER_OF[kind]], x, noise, t, context, heard, generator)
            for kind, x, noise, heard in zip(pair, clean, noises, reversed(environments), strict=True)
        ]
        loss = losses[0] + losses[1] + self.pull_weight * (own + pull)
        return loss, {pair[0]: losses[0], pair[1]: losses[1], "pull": pull}

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps of a batch, (count,)."""
        return timesteps(count, generator, self.late, self.late_start)

    def listen(
        self, pair: tuple[str, str], t: Tensor, generator: torch.Generator
    ) -> tuple[tuple[list[Tensor], list[Tensor], Tensor], list[Tensor], Tensor]:
        """Draw a pair for timesteps (B,): ((clean latents, their noises, scene ids), environment embeddings (B, 1, C), pull).

        Both stand for one scene: the pull draws their embeddings to its meaning, the mean prompt embedding of the two, and apart from
        those of other scenes (the paper's contrastive loss). A latent that is nearly noise cannot name its scene: its pull is weighted
        down by the signal in it."""
        with torch.no_grad():
            ids = neighbours.draw_ids(len(t), generator, self.near)
            heard = self.cleaner(t, generator)
            clean, own = zip(*(self.sample(kind, ids, generator) for kind in pair), strict=True)
            noises = [torch.randn(x.shape, generator=generator, device=x.device) for x in clean]
            meaning = F.normalize(own[0] + own[1], dim=-1)  # (B, D)
        environments = [
            self.nets[DENOISER_OF[kind]].environment_embedding(self.noising.noisy(x, noise, heard), heard)
            for kind, x, noise in zip(pair, clean, noises, strict=True)
        ]
        signal = self.noising.alphas[heard].sqrt()
        flat = [environment[:, 0] for environment in environments]
        pull = sum(((signal * (1 - (f * meaning).sum(-1))).mean() for f in flat), 0.5 * contrastive(flat[0], flat[1], 10.0, ids))
        return (list(clean), noises, ids), environments, pull

    def cleaner(self, timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Timesteps (B,) at which the environment encoders look: half of them the denoisers' own, half uniform below.

        Small latents show their scene later than large ones do. A picture that has only met captions at its own noise level, where
        they are still blank, would learn not to listen; then it could not listen to a sound either, which is heard much earlier."""
        draw = torch.rand(len(timesteps), 2, generator=generator, device=generator.device)
        return torch.where(draw[:, 0] < 0.5, timesteps, (timesteps * draw[:, 1]).long())

    def denoising(
        self, net: UNet, clean: Tensor, noise: Tensor, t: Tensor, context: Tensor, environment: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Weighted epsilon error, scalar; a share `blind` of the rows learns the scene from the environment alone."""
        with torch.no_grad():
            ratio = self.noising.alphas / (1 - self.noising.alphas)
            first = min(SAMPLERS_BEGIN, int((clean[0].numel() * ratio > BLANK).sum()))
            noisy, t, target, weight = self.noising.blinded(clean, noise, t, self.blind, generator, first)
        error = (net(noisy, t, context, environment=environment) - target).square().flatten(1).mean(1)
        return (weight * error).mean()

    def write(self) -> None:
        for name, net in self.nets.items():
            self.workspace.save(name, net)


def _untrained(net: nn.Module) -> bool:
    """Whether the connectors still are as a fresh network has them: silent, for their last layers are zero."""
    return all(not p.any() for name, p in net.named_parameters() if "connecters_in" in name and name.endswith("proj_out.weight"))

"""Stage 4: latent alignment (paper section 3.4). The denoisers are frozen; environment encoders and connectors learn.

Pairs that are trained: image-text, text-audio, audio-video. Every other combination of outputs is composed without training, so
the number of trainings grows linearly with the number of modalities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import DENOISER_OF
from ..denoisers.alignment import alignment_parameters, copy_prompt_attention_into_connectors
from ..worlds import bounce
from .bridging import contrastive
from .denoising import Noising, conditions, jittered, timesteps
from .loop import Objective
from .pools import TextPool, make_pool
from .workspace import Workspace

PAIRS = (("image", "text"), ("audio", "video"), ("text", "audio"), ("audio", "video"))
"""Taken in turns; clips with their sound come twice, for only they must agree in time."""


class LatentAlignment(Objective):
    """Denoising loss of both outputs of a pair, each attending to the other's environment embedding, plus the contrastive loss.

    In the first `head_start` steps the environment encoders learn alone: they are pulled towards the prompt embedding of the clean
    sample, which makes them say in the shared space what a noisy latent shows. Connectors start as copies of the frozen prompt
    attention, which understands that language."""

    batches = {"image": 24, "text": 24, "audio": 24, "video": 12}
    copies = {"image": 60, "audio": 60, "video": 40}
    head_start = 300  # steps
    late, late_start = 0.5, 0.7  # outputs agree or part while they are still mostly noise
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
        self.scenes = bounce.every_scene("exclude", device=space.device)
        self.pools = {kind: make_pool(kind, space, copies, seed=21) for kind, copies in self.copies.items()}

    def sample(self, kind: str, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean latents (B, ...) of scenes and the prompt embeddings (B, D) of those very samples."""
        if kind != "text":
            return self.pools[kind].draw(ids, generator)
        assert self.text.latents is not None
        rows = self.text.draw(self.scenes[ids], generator, full=True)
        return self.text.latents[rows], self.text.embeddings[rows]

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pair = PAIRS[step % len(PAIRS)]
        count = min(self.batches[kind] for kind in pair)
        with torch.no_grad():
            ids = torch.randint(len(self.scenes), (count,), generator=generator, device=generator.device)
            t = timesteps(count, generator, self.late, self.late_start)
            prompts = self.text.embeddings[self.text.draw(self.scenes[ids], generator)]
            context = conditions([(0.4, jittered(prompts, generator))], self.text.empty, generator)
            clean, own = zip(*(self.sample(kind, ids, generator) for kind in pair), strict=True)
            noised = [self.noising(x, t, generator) for x in clean]
        nets = [self.nets[DENOISER_OF[kind]] for kind in pair]
        environments = [net.environment_embedding(x, t) for net, (x, _) in zip(nets, noised, strict=True)]  # (B, 1, C)
        flat = [environment[:, 0] for environment in environments]
        # A latent that is nearly noise cannot name its scene: its pull is weighted down by the signal in it.
        signal = self.noising.alphas[t].sqrt()
        pull = sum((signal * (1 - (f * e).sum(-1))).mean() for f, e in zip(flat, own, strict=True))
        pull = pull + 0.5 * contrastive(flat[0], flat[1], 10.0)
        if step < self.head_start:
            return pull, {"pull": pull}
        weight = self.noising.weight(t)
        losses = [
            (weight * (net(x, t, context, environment=other) - noise).square().flatten(1).mean(1)).mean()
            for net, (x, noise), other in zip(nets, noised, reversed(environments), strict=True)
        ]
        loss = losses[0] + losses[1]
        return loss + 0.1 * pull, {"denoising": loss, "pull": pull}

    def write(self) -> None:
        for name, net in self.nets.items():
            self.workspace.save(name, net)


def _untrained(net: nn.Module) -> bool:
    """Whether the connectors still are as a fresh network has them: silent, for their last layers are zero."""
    return all(not p.any() for name, p in net.named_parameters() if "connecters_in" in name and name.endswith("proj_out.weight"))

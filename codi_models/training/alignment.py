"""Stage 4, second part: latent alignment (paper section 3.4). Denoisers and environment encoders are frozen; connectors learn.

Pairs that are trained: image-text, text-audio, audio-video. Every other combination of outputs is composed without training, so
the number of trainings grows linearly with the number of modalities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..bounce_world import neighbours
from ..config import DENOISER_OF
from ..denoisers.alignment import connector_parameters, copy_prompt_attention_into_connectors
from ..denoisers.unet import UNet
from .denoising import SAMPLERS_BEGIN, conditions, jittered, timesteps
from .environment import EnvironmentEncoding
from .workspace import Workspace

PAIRS = (("image", "text"), ("audio", "video"), ("text", "audio"), ("audio", "video"))
"""Taken in turns; clips with their sound come twice, for only they must agree in time."""

BLANK = 10.0  # signal-to-noise ratio times the number of elements, below which a latent hardly shows its scene


class LatentAlignment(EnvironmentEncoding):
    """Denoising loss of both outputs of a pair, each attending to the other's environment embedding.

    Connectors start as copies of the frozen prompt attention, which understands what environment encoders have learnt to speak."""

    batches = {"image": 24, "text": 24, "audio": 24, "video": 12}
    late, late_start = 0.4, 0.7  # outputs agree or part while they are still mostly noise
    blind = 0.3  # share of the rows whose own latent is noise alone

    def __init__(self, space: Workspace):
        super().__init__(space)
        for net in self.nets.values():
            if _untrained(net):
                copy_prompt_attention_into_connectors(net)

    def trained_of(self, net: UNet) -> list[nn.Parameter]:
        return connector_parameters(net)

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pair = PAIRS[step % len(PAIRS)]
        with torch.no_grad():
            t, clean, noises, context = self.drawn(pair, min(self.batches[kind] for kind in pair), generator)
            cleaner = self.cleaner(t, generator)
            environments = [self.heard(kind, x, noise, cleaner) for kind, x, noise in zip(pair, clean, noises, strict=True)]
        losses = [
            self.denoising(self.nets[DENOISER_OF[kind]], x, noise, t, context, heard, generator)
            for kind, x, noise, heard in zip(pair, clean, noises, reversed(environments), strict=True)
        ]
        return losses[0] + losses[1], dict(zip(pair, losses, strict=True))

    def drawn(self, pair: tuple[str, str], count: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
        """What a step is about: timesteps (B,), of each of the two kinds clean latents (B, ...) and noise of `count` scenes, and the
        prompts (B, 1, D), which are empty for most."""
        t = timesteps(count, generator, self.late, self.late_start)
        ids = neighbours.draw_ids(count, generator, self.near)
        clean = [self.sample(kind, ids, generator)[0] for kind in pair]
        noises = [torch.randn(x.shape, generator=generator, device=x.device) for x in clean]
        prompts = self.text.embeddings[self.text.draw(self.scenes[ids], generator)]
        return t, clean, noises, conditions([(0.4, jittered(prompts, generator))], self.text.empty, generator)

    def cleaner(self, timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Timesteps (B,) at which the environment encoders look: a third of them the denoisers' own, a third uniform below, a third 0.

        Small latents show their scene later than large ones do. A picture that has only met captions at its own noise level, where
        they are still blank, would learn not to listen; then it could not listen to a sound either, which is heard much earlier. What is
        kept, or finished in an earlier turn, is heard clean."""
        draw = torch.rand(len(timesteps), 2, generator=generator, device=generator.device)
        below = torch.where(draw[:, 0] < 2 / 3, (timesteps * draw[:, 1]).long(), 0)
        return torch.where(draw[:, 0] < 1 / 3, timesteps, below)

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


def _untrained(net: nn.Module) -> bool:
    """Whether the connectors still are as a fresh network has them: silent, for their last layers are zero."""
    return all(not p.any() for name, p in net.named_parameters() if "connecters_in" in name and name.endswith("proj_out.weight"))

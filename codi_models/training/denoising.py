"""Stage 3: one latent diffusion model per modality, conditioned on the shared prompt space (paper section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bounce_world import neighbours
from ..diffusion import alphas_cumprod
from .loop import Objective
from .pools import GlidingPool, TextPool, make_pool
from .workspace import Workspace

SAMPLERS_BEGIN = 900
"""Timestep from which on a sampler's first step lies, with ten steps or more."""


class Noising:
    """The forward process q(x_t | x_0), and conditions as the denoisers meet them."""

    def __init__(self, device: torch.device):
        self.alphas = alphas_cumprod().to(device)  # (1000,)

    def weight(self, timesteps: Tensor, limit: float = 30.0) -> Tensor:
        """Weight of the epsilon error, (B,): 1 / alpha-bar, which is the error of v-prediction (Salimans & Ho 2022), up to a limit.

        Where little signal is left, the plain error hardly asks what the prompt says; yet there the prompt decides."""
        return (1 / self.alphas[timesteps]).clamp(max=limit)

    def noisy(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean latents (B, ...) with this noise in them, as much as their timesteps (B,) say."""
        alpha = self.alphas[timesteps].view(-1, *[1] * (clean.ndim - 1))
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def blinded(
        self, clean: Tensor, noise: Tensor, timesteps: Tensor, share: float, generator: torch.Generator, first: int = SAMPLERS_BEGIN
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a network is given and asked: noisy latents (B, ...), timesteps (B,), the epsilon to predict (B, ...), weights (B,).

        A share of the rows is what a sampler starts from, noise alone, at timesteps from `first` on; its epsilon is the one that says
        `clean` of it. The noisiest latent of training still shows its scene faintly, which is easier to read than the prompt; a sampler's
        first latent shows none, and a network that looks for one there finds any. Of noise alone the best guess is the mean of what the
        prompt says."""
        count = int(share * len(clean))
        blank = torch.randint(first, len(self.alphas), (count,), generator=generator, device=generator.device)
        t = torch.cat([blank, timesteps[count:]])
        noisy, target = self.noisy(clean, noise, t), noise.clone()
        noisy[:count] = noise[:count]
        alpha = self.alphas[blank].view(-1, *[1] * (clean.ndim - 1))
        target[:count] = (noise[:count] - alpha.sqrt() * clean[:count]) / (1 - alpha).sqrt()
        return noisy, t, target, torch.cat([self.weight(blank, 100.0), self.weight(t[count:])])


def timesteps(count: int, generator: torch.Generator, late: float = 0.0, start: float = 0.75) -> Tensor:
    """Stratified over 0..999, (count,): every batch sees all noise levels; a share `late` of the rows is drawn from the last ones instead,
    from `start` (0..1) on.

    Small latents still show their scene at noise levels where larger ones are blank: only the last levels have to ask the prompt."""
    offset = torch.rand(count, generator=generator, device=generator.device)
    order = torch.randperm(count, generator=generator, device=generator.device)
    share = (order + offset) / count
    share = torch.where(share < late, start + (1 - start) * share / max(late, 1e-9), (share - late) / (1 - late))
    return (share * 1000).long().clamp(max=999)


def jittered(embeddings: Tensor, generator: torch.Generator, spread: float = 0.15) -> Tensor:
    """Embeddings (B, D) with noise of random size, unit length again: other modalities' embeddings lie near, not on, the text's."""
    size = spread * torch.rand(len(embeddings), 1, generator=generator, device=embeddings.device)
    noise = torch.randn(embeddings.shape, generator=generator, device=embeddings.device) / embeddings.shape[1] ** 0.5
    return F.normalize(embeddings + 4 * size * noise, dim=-1)


def conditions(choices: list[tuple[float, Tensor]], empty: Tensor, generator: torch.Generator, always: Tensor | None = None) -> Tensor:
    """For each row one of the embeddings (B, D) by probability; what is left of the probability is the empty prompt (D,). (B, 1, D)

    always: rows (B,) that never get the empty prompt."""
    count = len(choices[0][1])
    draw = torch.rand(count, 1, generator=generator, device=generator.device)
    if always is not None:
        draw = torch.where(always[:, None], draw * sum(share for share, _ in choices), draw)
    result = empty.expand(count, -1)
    upper = 0.0
    for share, embedding in choices:
        result = torch.where((draw >= upper) & (draw < upper + share), embedding, result)
        upper += share
    return result[:, None]


class Denoising(Objective):
    """Epsilon prediction of one modality's latents; subclasses say what is drawn."""

    component: str
    late = 0.3  # share of timesteps drawn from the noisiest levels
    late_start = 0.75  # where those begin
    blind = 0.1  # share of the rows that hold nothing but noise, as a sampler's first step has it
    near = 0.5  # share of the scenes that are neighbours of the world's: attributes in other company

    def __init__(self, space: Workspace):
        super().__init__()
        self.workspace = space
        self.net: Any = space.network(self.component)
        self.text = TextPool(space)
        self.noising = Noising(space.device)
        self.scenes = neighbours.training_scenes(space.device)
        for name, parameter in self.net.named_parameters():
            if "connecter" in name:  # latent alignment trains these, and only these
                parameter.requires_grad_(False)

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean latents (B, ...) in diffusion space and their context (B, 1, D)."""
        raise TypeError(f"{type(self).__name__} must define draw(step, generator)")

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            clean, context = self.draw(step, generator)
            t = timesteps(len(clean), generator, self.late, self.late_start)
            noise = torch.randn(clean.shape, generator=generator, device=clean.device)
            noisy, t, target, weight = self.noising.blinded(clean, noise, t, self.blind, generator)
        error = (self.net(noisy, t, context) - target).square().flatten(1).mean(1)  # (B,)
        return (weight * error).mean(), {"epsilon": error.mean()}

    def scene_ids(self, count: int, generator: torch.Generator) -> Tensor:
        return neighbours.draw_ids(count, generator, self.near)

    def prompted(self, ids: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
        """Context from a caption of the scene, from the sample's own embedding, or, in the world, from nothing."""
        scenes = self.scenes[ids]
        rows = self.text.draw(scenes, generator)
        captions = jittered(self.text.embeddings[rows], generator)
        return conditions([(0.5, captions), (0.4, jittered(own, generator))], self.text.empty, generator, neighbours.foreign(scenes))

    def write(self) -> None:
        self.workspace.save(self.component, self.net)


class VisionDenoising(Denoising):
    """Images and clips in turns: one UNet for both, whose temporal modules only clips pass through."""

    component = "vision_denoiser"
    batches = {"image": 32, "video": 8}
    late = 0.5
    copies = {"image": 150, "video": 60}

    def __init__(self, space: Workspace):
        super().__init__(space)
        self.pools = {kind: make_pool(kind, space, self.copies[kind], seed=11, foreign=self.near > 0) for kind in self.batches}

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        kind = "video" if step % 3 else "image"
        ids = self.scene_ids(self.batches[kind], generator)
        latents, own = self.pools[kind].draw(ids, generator)
        return latents, self.prompted(ids, own, generator)


class ClipPrompting(VisionDenoising):
    """More of both, mostly at the noise levels where motion and shape are decided, often from noise alone.

    The prompt is the same in all frames, and the norm over frames hides from temporal attention what is the same in all frames: how often
    something bounces is the last thing that a clip learns to take from its prompt."""

    learning_rate = 5e-4
    copies = {"image": 60, "video": 45}
    late_start = 0.7
    blind = 0.25


class PicturePrompting(VisionDenoising):
    """Mostly pictures, at the noise levels where their outline is decided; clips only so that they are not forgotten."""

    learning_rate = 5e-4
    batches = {"image": 48, "video": 8}
    copies = {"image": 150, "video": 15}
    late_start = 0.4

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return super().draw(1 if step % 5 == 0 else 0, generator)


class WorldPrompting(ClipPrompting):
    """More of both with the world's scenes alone, pictures and clips by turns.

    The neighbours teach what a shape is apart from its colour; but a network that makes them too answers an unknown pair of the world
    with the known neighbour that lies next to it, a green star with a green spark. What it no longer makes, it cannot answer with."""

    near = 0.0

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return super().draw(step % 2, generator)  # of which 0 is a picture


class AudioDenoising(Denoising):
    """Log-mel latents of sounds."""

    component = "audio_denoiser"
    batch = 32
    copies = 120

    def __init__(self, space: Workspace):
        super().__init__(space)
        self.pool = make_pool("audio", space, self.copies, seed=12, foreign=self.near > 0)

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = self.scene_ids(self.batch, generator)
        latents, own = self.pool.draw(ids, generator)
        return latents, self.prompted(ids, own, generator)


class TextDenoising(Denoising):
    """Optimus latents of full captions, prompted by text, image, audio or video of the scene (each a text-x pair)."""

    component = "text_denoiser"
    batch = 256
    copies = 40

    def __init__(self, space: Workspace):
        super().__init__(space)
        self.pools = [make_pool(kind, space, self.copies, seed=13, foreign=self.near > 0) for kind in ("image", "audio", "video")]

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert self.text.latents is not None
        ids = self.scene_ids(self.batch, generator)
        scenes = self.scenes[ids]
        rows = self.text.draw(scenes, generator, full=True)
        prompts = self.text.embeddings[self.text.draw(scenes, generator)]
        choices = [(0.3, prompts), *((0.2, pool.draw(ids, generator)[1]) for pool in self.pools)]
        context = conditions([(p, jittered(e, generator)) for p, e in choices], self.text.empty, generator, neighbours.foreign(scenes))
        return self.text.latents[rows], context


class SoundPrompting(AudioDenoising):
    """More of it with the world's scenes alone, for the reason that `WorldPrompting` gives."""

    learning_rate = 5e-4
    near = 0.0


class SoundGliding(SoundPrompting):
    """The world's sounds, prompted as generation prompts them, and sounds between them: what pitch is apart from timbre."""

    between = 0.35  # share of the rows that lie between those of the world
    as_read = 0.3  # share of the prompts that are taken as the encoders give them
    between_copies = 6000

    def __init__(self, space: Workspace):
        super().__init__(space)
        self.facets = space.facets
        self.gliding = GlidingPool(space, self.between_copies, seed=14)

    def prompted(self, ids: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
        read = super().prompted(ids, own, generator)  # (B, 1, D)
        empty = (read[:, 0] == self.text.empty).all(dim=1)
        plain = torch.rand(len(ids), generator=generator, device=generator.device) < self.as_read
        return torch.where((plain | empty)[:, None, None], read, self.facets.whole(self.facets.odds(read)))

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        latents, context = super().draw(step, generator)
        count = int(self.between * len(latents))
        other, prompts = self.gliding.draw(count, generator)
        order = torch.randperm(len(latents), generator=generator, device=generator.device)  # what is blinded comes from the front
        return torch.cat([latents[count:], other])[order], torch.cat([context[count:], prompts[:, None]])[order]


class CaptionPrompting(TextDenoising):
    """More of it with the world's scenes alone, for the reason that `WorldPrompting` gives."""

    learning_rate = 5e-4
    near = 0.0

"""Stage 1: the autoencoders that each latent diffusion model works in (paper section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autoencoders.mel import LogMel
from ..bounce_world import bounce, neighbours, render
from . import variety
from .captions import CaptionTables
from .loop import Objective
from .workspace import Workspace


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence per latent element from the standard normal."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def _sampled(mean: Tensor, logvar: Tensor, generator: torch.Generator, extra: float) -> Tensor:
    """Posterior sample with `extra` noise in units of the batch's spread: decoders must bear what diffusion leaves over."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    spread = (0.5 * logvar).exp().square() + (extra * mean.detach().std()).square()
    return mean + spread.sqrt() * noise


class _WithScale(Objective):
    """An autoencoder stage; the file it writes names the factor that brings its latents to unit variance."""

    component: str

    def __init__(self, space: Workspace):
        super().__init__()
        self.workspace = space
        self.net: Any = space.network(self.component)

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define latents(count, generator)")

    def write(self) -> None:
        device = next(self.net.parameters()).device
        with torch.no_grad():
            scale = 1 / float(self.latents(512, torch.Generator(device).manual_seed(0)).std())
        self.workspace.save(self.component, self.net, scale=scale)


class PictureReconstruction(_WithScale):
    """KL autoencoder of pictures and frames."""

    component = "image_autoencoder"
    batch = 16
    various = 0.4  # share of the pictures that are no scenes
    kl_weight = 2e-4

    def pictures(self, count: int, generator: torch.Generator) -> Tensor:
        few = int(self.various * count)
        scenes = bounce.sample_scenes(count - few, generator=generator)
        own = render.render_image(scenes, bounce.sample_nuisance(count - few, generator=generator))
        return torch.cat([variety.pictures(few, generator), own]) * 2 - 1  # (B, 3, 64, 64)

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        return self.net.encode(self.pictures(count, generator))

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = self.pictures(self.batch, generator)
        mean, logvar = self.net.moments(pixels)
        output = self.net.decode(_sampled(mean, logvar, generator, 0.05))
        error = (output - pixels).abs()
        # The object covers a few percent of the picture; its error must not drown in the background's.
        weight = 1 + 4 * (pixels.amax(1, keepdim=True) > 0.0).float()
        kl = _kl(mean, logvar)
        loss = (weight * error).mean() + (weight * error.square()).mean() + self.kl_weight * kl
        return loss, {"l1": error.mean(), "kl": kl}


class PictureDecoding(PictureReconstruction):
    """The decoder alone, sharpened on latents with noise in them; latents, and what was learnt on them, stay as they are."""

    def __init__(self, space: Workspace):
        super().__init__(space)
        for module in (self.net.encoder, self.net.quant_conv):
            module.requires_grad_(False)

    def write(self) -> None:
        self.workspace.save(self.component, self.net)


class SoundReconstruction(_WithScale):
    """KL autoencoder of log-mel spectrograms."""

    component = "audio_autoencoder"
    batch = 8
    various = 0.3  # share of the sounds that are no scenes
    kl_weight = 2e-4

    def waves(self, count: int, generator: torch.Generator) -> Tensor:
        few = int(self.various * count)
        scenes = neighbours.draw_scenes(count - few, generator, 0.5)
        own = render.render_audio(scenes, bounce.sample_nuisance(count - few, generator=generator))
        return torch.cat([variety.sounds(few, generator), own])  # (B, N)

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        return self.net.encode(self.waves(count, generator))

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            mel = self.net.mel(self.waves(self.batch, generator)).contiguous()  # (B, 1, T, M)
        mean, logvar = self.net.moments(mel)
        error = (self.net.decode(_sampled(mean, logvar, generator, 0.05)) - mel).abs()
        kl = _kl(mean, logvar)
        return error.mean() + self.kl_weight * kl, {"l1": error.mean(), "kl": kl}


class SpectrumFitting(Objective):
    """Vocoder: magnitudes of the spectrum from log-mel, from true ones and, once there is an autoencoder, from its reconstructions."""

    batch = 16
    learning_rate = 2e-3
    floor = 0.05  # a sine of amplitude 0.5 has magnitude 128: below -68 dB of it nothing is told apart
    steepest = 3.0  # log-ratio of powers from which on the divergence grows linearly

    autoencoder: Any

    def __init__(self, space: Workspace):
        super().__init__()
        self.workspace = space
        self.net: Any = space.network("vocoder")
        self.reconstructs = space.has("audio_autoencoder")
        space.hidden(self, "autoencoder", space.network("audio_autoencoder").eval().requires_grad_(False))

    def pairs(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Log-mel (B, 1, T, M) and the magnitudes (B, bins, T) of the same sounds."""
        half = self.batch // 2
        scenes = neighbours.draw_scenes(half, generator, 0.5)
        wave = render.render_audio(scenes, bounce.sample_nuisance(half, generator=generator))
        wave = torch.cat([wave, variety.sounds(self.batch - half, generator)])  # (B, N)
        front: LogMel = self.autoencoder.mel
        mel = front(wave)
        magnitudes = front.magnitude(front.prepare(wave, mel.shape[2], front.config.normalize))[..., : mel.shape[2]]
        if self.reconstructs:
            few = self.batch // 4
            mean, logvar = self.autoencoder.moments(mel[:few].contiguous())
            mel = torch.cat([self.autoencoder.decode(_sampled(mean, logvar, generator, 0.1)), mel[few:]])
        return mel, magnitudes

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            mel, target = self.pairs(generator)
        output = self.net.log_magnitudes(mel)
        # Itakura-Saito divergence of the powers: where the mel leaves a partial's place open, its energy is spread and not lost.
        ratio = 2 * ((target + self.floor).log() - (output.exp() + self.floor).log())
        near = ratio.clamp(max=self.steepest)
        divergence = (near.exp() * (1 + ratio - near) - ratio - 1).mean()
        return divergence, {"divergence": divergence}

    def write(self) -> None:
        self.workspace.save("vocoder", self.net)


class CaptionReconstruction(_WithScale):
    """Optimus on captions: cross-entropy of the teacher-forced decoder, and KL (Li et al. 2020, equation 3)."""

    component = "text_autoencoder"
    batch = 128
    kl_weight = 1e-2

    def __init__(self, space: Workspace):
        super().__init__(space)
        self.tables = CaptionTables(space)

    def rows(self, count: int, generator: torch.Generator) -> Tensor:
        return neighbours.sample_caption_ids(neighbours.draw_scenes(count, generator, 0.5), generator=generator)  # (B,)

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        return self.net.encode(self.tables.encoder[self.rows(count, generator)])

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.rows(self.batch, generator)
        mean, logvar = self.net.moments(self.tables.encoder[rows])
        ids = self.tables.decoder[rows]  # (B, T)
        logits = self.net.logits(_sampled(mean, logvar, generator, 0.3), ids[:, :-1])  # (B, T-1, V)
        error = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=self.tables.pad)
        kl = _kl(mean, logvar)
        return error + self.kl_weight * kl, {"cross_entropy": error, "kl": kl}

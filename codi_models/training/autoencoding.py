"""Autoencoders, one modality each, and the vocoder (paper section 3.2): what carries media, trained before anything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autoencoders.tokenizers import TextTokenizers
from ..errors import CoDiError
from .dataset import Dataset, draw_from
from .loop import Objective
from .sheets import grid, spectrograms
from .workspace import Workspace

KIND_OF = {"image_autoencoder": "image", "audio_autoencoder": "audio", "text_autoencoder": "text"}
ENCODING = ("encoder", "quant_conv", "posterior")  # the parts of an autoencoder that its latents come from
SHOWN = 6  # samples in the log


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Of diagonal normal posteriors from the standard normal distribution, mean over all numbers of the latents."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def contrast(x: Tensor, size: int = 5) -> Tensor:
    """How much images (B, C, H, W) vary around each pixel: (B, 1, H, W), the largest range of a channel in a window of `size`."""
    highest, lowest = F.max_pool2d(x, size, 1, size // 2), -F.max_pool2d(-x, size, 1, size // 2)
    return (highest - lowest).amax(1, keepdim=True)


class Autoencoding(Objective):
    """Reconstruction and KL divergence: of images and video frames, of log-mel spectrograms, or of texts (Li et al. 2020, equation 3)."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        component: str  # image_autoencoder, audio_autoencoder or text_autoencoder
        batch: int
        kl: float = 2e-4  # weight of the KL divergence
        noise: float = 0.05  # standard deviation, in units of the latents' own, of what decoders learn to bear
        detail: float = 0.0  # extra weight of pixels and mel bins where the medium varies
        prompts: float = 0.0  # part of the texts that are prompts
        freeze_encoder: bool = False  # leave the latents as they are: so do all denoisers that have learnt them

    def __init__(self, space: Workspace, data: Dataset, options: Options) -> None:
        super().__init__()
        if options.component not in KIND_OF:
            raise CoDiError(f"{options.component!r} is no autoencoder: give one of {', '.join(KIND_OF)}")
        self.workspace, self.data, self.options = space, data, options
        self.kind = KIND_OF[options.component]
        self.net: Any = space.network(options.component)
        if options.freeze_encoder:
            if not space.has(options.component):
                raise CoDiError(f"freeze_encoder keeps a trained encoder; {space.folder} has no {options.component} yet: train it first")
            for name, parameter in self.net.named_parameters():
                parameter.requires_grad_(name.removeprefix("network.").split(".")[0] not in ENCODING)
        self.tokenizers = TextTokenizers(space.folder, space.config.text_autoencoder) if self.kind == "text" else None

    def batch(self, count: int, generator: torch.Generator) -> Any:
        """Pixels (B, 3, H, W) in -1..1, log-mel (B, 1, T, M), or encoder and decoder ids of texts.

        Where the data have videos and no images, their frames, which the same autoencoder carries."""
        if self.kind == "text":
            return self._texts(count, generator)
        kind = "video" if self.kind == "image" and "image" not in self.data.has else self.kind
        rows = self.data.rows([kind], count, generator).tolist()
        x = self.data.media(kind, rows).to(generator.device)
        if kind == "video":
            frame = torch.randint(x.shape[2], (count,), generator=generator, device=x.device)
            x = x[torch.arange(count, device=x.device), :, frame]  # (B, 3, H, W)
        return self.net.mel(x).contiguous() if self.kind == "audio" else x * 2 - 1

    def _texts(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert self.tokenizers is not None
        rows, rng = self.data.rows(["text"], count, generator).tolist(), draw_from(generator)
        asked = round(self.options.prompts * count)
        texts = [*self.data.prompts(rows[:asked], rng), *self.data.texts(rows[asked:], rng)]
        return self.tokenizers.encode(texts).to(generator.device), self.tokenizers.encode_target(texts).to(generator.device)

    def posterior(self, mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from the posterior, and noise on top: diffusion leaves some over."""
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + ((0.5 * logvar).exp().square() + (self.options.noise * mean.detach().std()).square()).sqrt() * noise

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            batch = self.batch(self.options.batch, generator)
        mean, logvar = (part.float() for part in self.net.moments(batch[0] if self.kind == "text" else batch))
        z, kl = self.posterior(mean, logvar, generator), kl_divergence(mean, logvar)
        if self.kind == "text":
            ids = batch[1]  # (B, T): BOS ... EOS PAD
            logits = self.net.logits(z, ids[:, :-1]).float()  # (B, T - 1, V)
            assert self.tokenizers is not None
            error = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=self.tokenizers.pad)
            return error + self.options.kl * kl, {"cross_entropy": error, "kl": kl}
        error = (self.net.decode(z).float() - batch).abs()
        weight = 1 + self.options.detail * contrast(batch)
        squared = (weight * error.square()).mean() if self.kind == "image" else 0.0
        return (weight * error).mean() + squared + self.options.kl * kl, {"l1": error.mean(), "kl": kl}

    @torch.no_grad()
    def write(self) -> None:
        """The component, and the factor that brings its latents to unit variance."""
        if self.options.freeze_encoder:
            return self.workspace.save_learnt(self.options.component, self.net)
        generator = torch.Generator(self.workspace.device).manual_seed(0)
        parts = [self.batch(64, generator) for _ in range(8)]
        latents = torch.cat([self.net.moments(part[0] if self.kind == "text" else part)[0].flatten() for part in parts])
        self.workspace.save(self.options.component, self.net, scale=1 / float(latents.float().std()))

    def samples(self) -> dict[str, Tensor | list[str]]:
        batch = self.batch(SHOWN, torch.Generator(self.workspace.device).manual_seed(0))
        if self.kind == "text":
            assert self.tokenizers is not None
            ids = self.net.generate(self.net.encode(batch[0]), temperature=0.0)
            pairs = zip(self.tokenizers.decode(batch[1]), self.tokenizers.decode(ids), strict=True)
            return {"reconstruction": [f"{given}: {made}" for given, made in pairs]}
        made = self.net.decode(self.net.encode(batch))
        show = spectrograms if self.kind == "audio" else (lambda x: grid(x / 2 + 0.5))
        return {"reconstruction": torch.cat([show(batch), show(made)], dim=1)}


class Vocoding(Objective):
    """Magnitudes of the spectrum from log-mel, from true ones and from those that the audio autoencoder reconstructs."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        batch: int
        reconstructed: float = 0.5  # part of the log-mels that have been through the autoencoder
        floor: float = 0.05  # magnitude below which nothing is told apart; a sine of amplitude 0.5 has 128
        steepest: float = 3.0  # log-ratio of powers from which on the divergence grows linearly

    autoencoder: Any

    def __init__(self, space: Workspace, data: Dataset, options: Options) -> None:
        super().__init__()
        self.workspace, self.data, self.options = space, data, options
        self.net: Any = space.network("vocoder")
        if not hasattr(self.net, "log_magnitudes"):
            raise CoDiError("a run of the kind vocoder trains a spectrum vocoder; take a HiFi-GAN from a published model instead")
        space.hidden(self, "autoencoder", space.trained("audio_autoencoder"))

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        options, front = self.options, self.autoencoder.mel
        with torch.no_grad():
            wave = self.data.media("audio", self.data.rows(["audio"], options.batch, generator).tolist()).to(generator.device)
            mel = front(wave).contiguous()  # (B, 1, T, M)
            target = front.magnitude(front.prepare(wave, mel.shape[2], front.config.normalize))[..., : mel.shape[2]]  # (B, bins, T)
            if few := round(options.reconstructed * options.batch):
                mean = self.autoencoder.encode(mel[:few])
                mean = mean + 0.1 * mean.std() * torch.randn(mean.shape, generator=generator, device=mean.device)
                mel = torch.cat([self.autoencoder.decode(mean), mel[few:]])
        output = self.net.log_magnitudes(mel)
        # Itakura-Saito divergence of the powers: where the mel leaves a partial's place open, its energy is spread and not lost.
        ratio = 2 * ((target + options.floor).log() - (output.exp() + options.floor).log())
        near = ratio.clamp(max=options.steepest)
        divergence = (near.exp() * (1 + ratio - near) - ratio - 1).mean()
        return divergence, {"divergence": divergence}

    def write(self) -> None:
        self.workspace.save("vocoder", self.net)

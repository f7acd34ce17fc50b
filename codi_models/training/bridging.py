"""Bridging alignment (paper section 3.3). Text is the bridge: text-image, text-audio and text-video pairs only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import CoDiConfig
from ..encoders.preprocess import clip_image, clip_video, repeat_pad, resample
from ..encoders.shared_space import SHARED_SPACE_FILE, SharedSpace
from ..encoders.tokenizer import CLIPTokenizer
from ..errors import CoDiError
from ..modalities import MODALITIES
from .dataset import Dataset, draw_from
from .loop import Objective
from .workspace import Workspace

MEANS_OF, MEANS_AT_ONCE = 2048, 32  # samples that the mean embeddings are taken over, and a batch of those without a number
VISUAL = ("image", "video")  # share an encoder
GAIN = 6.0  # dB by which audio is made louder or softer: what it is of does not depend on it
NOISE = (-80.0, -20.0)  # dB of a recording's background against the loudest sample; a quarter of the audio has none


def contrastive(a: Tensor, b: Tensor, scale: Tensor | float, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE between paired rows of a and b, both (B, D) and L2-normalised.

    same: (B,) ids; rows with equal ids share the target, for a caption that stands twice in a batch is no negative of itself.
    """
    logits = scale * a @ b.T  # (B, B)
    ids = torch.arange(len(a), device=a.device) if same is None else same
    target = (ids[:, None] == ids[None]).to(logits.dtype)
    target = target / target.sum(1, keepdim=True)  # symmetric, so it serves both directions
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def as_recorded(audio: Tensor, generator: torch.Generator) -> Tensor:
    """Audio (B, N) as a microphone or a codec leaves it: louder or softer, most of it with noise from white to brown.

    In decibels nothing is as far from silence as a little noise: an encoder that only heard the one takes the other for sound."""

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(len(audio), 1, device=audio.device).uniform_(low, high, generator=generator)

    white = torch.fft.rfft(torch.randn(audio.shape, generator=generator, device=audio.device))
    frequencies = torch.arange(1, white.shape[1] + 1, device=audio.device)
    noise = torch.fft.irfft(white * frequencies ** draw(-1, 0), n=audio.shape[1])  # (B, N)
    level = 10 ** (draw(*NOISE) / 20) * audio.abs().amax(1, keepdim=True) * (draw(0, 1) < 0.75)
    return (audio + level * noise / noise.abs().amax(1, keepdim=True)) * 10 ** (draw(-GAIN, GAIN) / 20)


def embed(clip: Any, clap: Any, config: CoDiConfig, kind: str, media: Tensor) -> Tensor:
    """Media of a data set -> unit embeddings (B, D), their modality's mean not removed."""
    if kind == "image":
        return clip.encode_image(clip_image(media, config.clip.image_size).to(media.device))[:, 0]
    if kind == "video":
        return clip.encode_video(clip_video(media.transpose(1, 2), config.clip.image_size).to(media.device))[:, 0]
    wave = resample(media, config.mel.sample_rate, config.clap.sample_rate)
    return clap.encode_audio(repeat_pad(wave, clap.clip_samples))[:, 0]


class Bridging(Objective):
    """Contrastive training of CLIP (text, image, video) and CLAP (audio) into one space."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        batch: dict[str, int] = field(default_factory=lambda: {"image": 64, "audio": 32, "video": 32})
        """Pairs of a step of each modality with text; those that the data lack are left out."""
        freeze_text: bool = False  # leave the text encoder as it is: so do all embeddings learnt from text
        decoded: float = 0.0  # part of a batch as the autoencoders give it back: generated media are prompts as well
        every: int = 1  # steps after which each modality has had its turn: 1 for all in every step

    def __init__(self, space: Workspace, data: Dataset, options: Options) -> None:
        super().__init__()
        self.workspace, self.data, self.options, self.config = space, data, options, space.config
        self.kinds = [kind for kind in options.batch if _paired(data, kind)]
        if "text" not in data.has or not self.kinds:
            raise CoDiError(
                "no example has a caption and something else: bridging alignment pulls images, videos and audio towards their texts; "
                f"the data have {', '.join(data.has)}"
            )
        if not 0 <= options.decoded <= 1:
            raise CoDiError(f"decoded {options.decoded} must be 0 to 1: the part of a batch that goes through the autoencoders first")
        names = [MODALITIES[kind].autoencoder for kind in self.kinds] + ["vocoder"] * ("audio" in self.kinds)
        self.decoders: dict[str, Any] = {name: space.trained(name) for name in dict.fromkeys(names)} if options.decoded else {}
        self.clip: Any = space.network("clip")
        self.clap: Any = space.network("clap")
        self.tokenizer = CLIPTokenizer(space.folder, self.config.clip)
        self.clap.requires_grad_("audio" in self.kinds)
        self.visual = any(kind in VISUAL for kind in self.kinds)
        if options.freeze_text:
            for name, parameter in self.clip.named_parameters():
                parameter.requires_grad_(self.visual and name.startswith(("vision_model.", "visual_projection.")))

    def pairs(self, kind: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, D) of media of one kind and of their texts, and ids (B,) that are equal where the texts are."""
        rows = self.data.rows([kind, "text"], count, generator).tolist()
        media = self.data.media(kind, rows).to(generator.device)
        if again := round(self.options.decoded * count):
            media = torch.cat([self.reconstructed(kind, media[:again]), media[again:]])
        if kind == "audio":
            media = as_recorded(media, generator)
        texts = self.data.prompts(rows, draw_from(generator))
        index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        text = self.clip.encode_text(self.tokenizer(texts).to(generator.device))[:, 0]
        same = torch.tensor([index[t] for t in texts], device=generator.device)
        return embed(self.clip, self.clap, self.config, kind, media), text, same

    @torch.no_grad()
    def reconstructed(self, kind: str, media: Tensor) -> Tensor:
        """Media as their autoencoder gives them back, with all traces that it leaves."""
        autoencoder = self.decoders[MODALITIES[kind].autoencoder]
        if kind == "audio":
            return self.decoders["vocoder"](autoencoder.decode(autoencoder.encode(media))).clamp(-1, 1)
        return (autoencoder.decode(autoencoder.encode(media * 2 - 1)) / 2 + 0.5).clamp(0, 1)

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        scale = self.clip.logit_scale.exp().clamp(max=100.0)
        if self.options.freeze_text:
            scale = scale.detach()
        logs = {}
        for number, kind in enumerate(self.kinds):
            if (step + number) % self.options.every == 0:
                other, text, same = self.pairs(kind, self.options.batch[kind], generator)
                logs[kind] = contrastive(other.float(), text.float(), scale, same)
        return sum(logs.values(), torch.zeros((), device=generator.device)), logs

    @torch.no_grad()
    def write(self) -> None:
        """The two encoders, and each modality's mean embedding: subtracting it closes the modality gap.

        A modality's mean comes to lie where its texts' mean does; a text encoder that stays as it is keeps its mean. Images and videos
        share an encoder: the mean of both is taken where one of them has trained it."""
        generator = torch.Generator(self.workspace.device).manual_seed(0)
        sharing = [kind for kind in VISUAL if self.visual and kind not in self.kinds and _paired(self.data, kind)]
        found = {}
        for kind in (*self.kinds, *sharing):
            count = min(self.options.batch.get(kind, MEANS_AT_ONCE), MEANS_OF)
            parts = [self.pairs(kind, count, generator)[:2] for _ in range(0, MEANS_OF if len(self.data) > MEANS_OF else 256, count)]
            found[kind] = [torch.cat(column).float().mean(0).cpu() for column in zip(*parts, strict=True)]
        for name, net in (("clip", self.clip), ("clap", self.clap)):
            if any(p.requires_grad for p in net.parameters()):
                self.workspace.save_learnt(name, net)
        before = self.workspace.space.means
        if self.options.freeze_text and not before:
            return
        texts = torch.stack([text for _, text in found.values()]).mean(0)
        means = dict(before) if before else {m: torch.zeros_like(texts) for m in MODALITIES}
        means["text"] = before["text"] if self.options.freeze_text else texts
        means |= {kind: own - (text - means["text"]) for kind, (own, text) in found.items()}
        if not before and "video" not in found and "image" in found:
            means["video"] = means["image"]
        SharedSpace(means).save(self.workspace.folder / SHARED_SPACE_FILE)


def _paired(data: Dataset, kind: str) -> bool:
    return "text" in data.has and kind in data.has and bool((data.has[kind] & data.has["text"]).any())

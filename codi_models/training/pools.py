"""Latents and own-modality embeddings of many samples, computed once by the frozen encoders, so that a step only draws rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bounce_world import bounce, gliding, neighbours, render
from ..encoders.preprocess import clip_normalize
from .workspace import Workspace

NEIGHBOURS_FEWER = 4  # there are three times as many of them as of the world's scenes


class Pool:
    """Some samples of each training scene, in diffusion space.

    latents: (N, ...); embeddings: (N, D), aligned in the shared space; copies: (S,), how many of each scene; they are adjacent."""

    def __init__(self, latents: Tensor, embeddings: Tensor, copies: Tensor):
        self.latents, self.embeddings, self.copies = latents, embeddings, copies
        self.first = copies.cumsum(0) - copies

    def draw(self, scenes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One random sample of each scene id (B,): latents (B, ...) and embeddings (B, D)."""
        copies = self.copies[scenes]
        rows = self.first[scenes] + (torch.rand(scenes.shape, generator=generator, device=scenes.device) * copies).long()
        return self.latents[rows], self.embeddings[rows]


@torch.no_grad()
def make_pool(kind: str, space: Workspace, copies: int, *, seed: int, foreign: bool = True, chunk: int = 64) -> Pool:
    """Render and encode `copies` samples of every training scene of the world, fewer of its neighbours. kind: image, video or audio;
    foreign: False for no neighbours at all, which then must not be drawn."""
    config, shared = space.config, space.space
    generator = torch.Generator(space.device).manual_seed(seed)
    scenes = neighbours.training_scenes(space.device)
    each = torch.where(neighbours.foreign(scenes), max(1, copies // NEIGHBOURS_FEWER) if foreign else 0, copies)  # (S,)
    rows = torch.arange(len(scenes), device=space.device).repeat_interleave(each)
    sound = kind == "audio"
    autoencoder = space.trained("audio_autoencoder" if sound else "image_autoencoder")
    encoder = space.trained("clap" if sound else "clip")
    scale = (config.audio_autoencoder if sound else config.image_autoencoder).scale
    latents, embeddings = [], []
    for piece in rows.split(chunk if kind != "video" else chunk // 4):
        batch, nuisance = scenes[piece], bounce.sample_nuisance(len(piece), generator=generator)
        if sound:
            wave = render.render_audio(batch, nuisance)
            latent, embedding = autoencoder.encode(wave), encoder.encode_audio(wave)
        elif kind == "video":
            frames = render.render_video(batch, nuisance)  # (B, F, 3, H, W)
            latent = autoencoder.encode(frames.transpose(1, 2) * 2 - 1)  # (B, 4, F, h, w)
            embedding = encoder.encode_video(clip_normalize(frames))
        else:
            pixels = render.render_image(batch, nuisance)
            latent, embedding = autoencoder.encode(pixels * 2 - 1), encoder.encode_image(clip_normalize(pixels))
        latents.append(latent * scale)
        embeddings.append(shared.align(embedding, kind)[:, 0])
    return Pool(torch.cat(latents), torch.cat(embeddings), each)


class GlidingPool:
    """Sounds between those of the world. latents (N, ...) in diffusion space; prompts (N, D) in the shared space."""

    @torch.no_grad()
    def __init__(self, space: Workspace, count: int, *, seed: int, chunk: int = 64):
        autoencoder, scale = space.trained("audio_autoencoder"), space.config.audio_autoencoder.scale
        sounds, waves = gliding.sounds(count, torch.Generator(space.device).manual_seed(seed))
        self.prompts = space.facets.whole(sounds.odds())
        self.latents = torch.cat([autoencoder.encode(part) * scale for part in waves.split(chunk)])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (B, ...) and prompts (B, D) of `count` sounds."""
        rows = torch.randint(len(self.latents), (count,), generator=generator, device=generator.device)
        return self.latents[rows], self.prompts[rows]


class TextPool:
    """Latents of all captions in diffusion space, and their prompt embeddings (the last row is the empty text)."""

    @torch.no_grad()
    def __init__(self, space: Workspace):
        from .captions import CaptionTables

        tables = CaptionTables(space)
        self.embeddings = tables.embeddings(space.trained("clip"), space.space)  # (C + 1, D)
        self.latents: Tensor | None = None
        if space.has("text_autoencoder"):
            self.latents = space.trained("text_autoencoder").encode(tables.encoder) * space.config.text_autoencoder.scale  # (C, L)

    def draw(self, scenes: bounce.Scenes, generator: torch.Generator, full: bool | None = None) -> Tensor:
        """Caption ids (B,) for scenes."""
        return neighbours.sample_caption_ids(scenes, generator=generator, full=full)

    @property
    def empty(self) -> Tensor:
        """Embedding of the unconditional prompt, (D,)."""
        return self.embeddings[-1]

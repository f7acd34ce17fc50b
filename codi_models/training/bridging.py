"""Stage 2: bridging alignment (paper section 3.3). Text is the bridge: text-image, text-audio and text-video pairs only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bounce_world import bounce, gliding, neighbours, render
from ..encoders.preprocess import clip_normalize
from ..encoders.shared_space import SHARED_SPACE_FILE, SharedSpace
from .captions import CaptionTables
from .facets import fit_facets
from .loop import Objective
from .workspace import Workspace


def contrastive(a: Tensor, b: Tensor, scale: Tensor | float, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE between paired rows of a and b, both (B, D) and L2-normalised.

    same: (B,) ids; rows with equal ids share the target, for a caption that stands twice in a batch is no negative of itself.
    """
    logits = scale * a @ b.T  # (B, B)
    ids = torch.arange(len(a), device=a.device) if same is None else same
    target = (ids[:, None] == ids[None]).to(logits.dtype)
    target = target / target.sum(1, keepdim=True)  # symmetric, so it serves both directions
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


class BridgingAlignment(Objective):
    """Contrastive training of CLIP (text, image, video) and CLAP (audio) into one space."""

    batches = {"image": 64, "audio": 32, "video": 32}
    means_of = 2048  # samples that the mean embeddings are taken over
    near = 0.5  # share of the scenes that are neighbours of the world's

    def __init__(self, space: Workspace):
        super().__init__()
        self.workspace = space
        self.clip: Any = space.network("clip")
        self.clap: Any = space.network("clap")
        self.tables = CaptionTables(space)

    def pair(self, kind: str, count: int, generator: torch.Generator, near: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings (B, D) of one kind and of matching captions, the caption ids (B,), and the scenes (B, 3)."""
        scenes = neighbours.draw_scenes(count, generator, near)
        nuisance = bounce.sample_nuisance(count, generator=generator)
        if kind == "audio":
            wave = render.render_audio(scenes, nuisance)
            decibels = torch.empty(count, 1, device=wave.device).uniform_(-10, 4, generator=generator)
            other = self.clap.encode_audio(wave * 10 ** (decibels / 20))
        elif kind == "video":
            other = self.clip.encode_video(clip_normalize(render.render_video(scenes, nuisance)))
        else:
            other = self.clip.encode_image(clip_normalize(render.render_image(scenes, nuisance)))
        rows = neighbours.sample_caption_ids(scenes, generator=generator)
        text = self.clip.encode_text(self.tables.prompt[rows])
        return other[:, 0], text[:, 0], rows, torch.stack([scenes.shape, scenes.colour, scenes.beats], dim=1)

    def kinds(self, step: int) -> dict[str, int]:
        """Which kinds meet text in this step, and in batches of how many; clips, the dearest, come every second step."""
        return {kind: count for kind, count in self.batches.items() if kind != "video" or step % 2 == 0}

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        scale = self.clip.logit_scale.exp().clamp(max=100.0)
        logs = {}
        for kind, count in self.kinds(step).items():
            other, text, rows, _ = self.pair(kind, count, generator, self.near)
            logs[kind] = contrastive(other, text, scale, rows)
        return sum(logs.values(), torch.zeros((), device=generator.device)), logs

    @torch.no_grad()
    def write(self) -> None:
        """The two encoders; each modality's mean embedding, which closes the modality gap when it is subtracted; and the facets."""
        device = next(self.clip.parameters()).device
        generator = torch.Generator(device).manual_seed(0)
        texts: list[Tensor] = []
        media: dict[str, list[tuple[Tensor, Tensor]]] = {"image": [], "audio": [], "video": []}
        for _ in range(0, self.means_of, 128):
            for kind, found in media.items():
                other, text, _, scenes = self.pair(kind, min(128, self.means_of), generator, 0.0)
                found.append((other, scenes))
                texts.append(text.mean(0))
        means = {kind: torch.stack([e.mean(0) for e, _ in found]).mean(0) for kind, found in media.items()}
        shared = SharedSpace({"text": torch.stack(texts).mean(0), **means})
        self.workspace.save("clip", self.clip)
        self.workspace.save("clap", self.clap)
        shared.save(self.workspace.folder / SHARED_SPACE_FILE)
        captions = self.tables.embeddings(self.clip, shared)
        seen = {kind: (torch.cat([e for e, _ in found]), torch.cat([s for _, s in found])) for kind, found in media.items()}
        aligned = {kind: (shared.align(e[:, None], kind)[:, 0], scenes) for kind, (e, scenes) in seen.items()}
        self.workspace.save_facets(fit_facets(captions[:-1], captions[-1], aligned))


class VisionBridging(BridgingAlignment):
    """The vision tower alone, pulled further towards text, which stays as it is: so do all embeddings learnt from text.

    Pictures are cheap and shapes are the hardest to tell, so clips, which also train the temporal modules, come every second step."""

    batches = {"image": 96, "video": 32}

    def __init__(self, space: Workspace):
        super().__init__(space)
        self.clap.requires_grad_(False).eval()
        for name, parameter in self.clip.named_parameters():
            parameter.requires_grad_(name.startswith(("vision_model.", "visual_projection.")))

    def kinds(self, step: int) -> dict[str, int]:
        return self.batches if step % 2 == 0 else {"image": self.batches["image"]}


class SoundBridging(BridgingAlignment):
    """The sound tower alone, pulled further towards text: what a sound is of, heard at any loudness, in larger batches."""

    batches = {"audio": 96}

    def __init__(self, space: Workspace):
        super().__init__(space)
        self.clip.requires_grad_(False).eval()


class SoundGliding(SoundBridging):
    """The sound tower again, with sounds between those of the world: they are pulled to where their prompt lies."""

    learning_rate = 5e-4
    batches = {"audio": 64}
    between, pool = 64, 4096  # sounds between of a step, and of all steps
    pull = 10.0

    def __init__(self, space: Workspace):
        super().__init__(space)
        self.space = space.space
        sounds, self.waves = gliding.sounds(self.pool, torch.Generator(space.device).manual_seed(15))
        self.prompts = space.facets.whole(sounds.odds())

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = super().forward(step, generator)
        rows = torch.randint(len(self.waves), (self.between,), generator=generator, device=generator.device)
        heard = self.space.align(self.clap.encode_audio(self.waves[rows]), "audio")[:, 0]
        logs["between"] = (1 - (heard * self.prompts[rows]).sum(dim=1)).mean()
        return loss + self.pull * logs["between"], logs

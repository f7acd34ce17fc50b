"""A data set as the frozen encoders see it: embeddings and latents, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints import read_weights, save_weights
from ..encoders.shared_space import SHARED_SPACE_FILE
from ..encoders.tokenizer import encode_prompts
from ..errors import CoDiError
from ..files import sha256
from ..modalities import MODALITIES
from ..model import CoDi
from .bridging import embed
from .dataset import Dataset, Progress
from .workspace import Workspace

SHARD = 256  # items of a file in the cache
PART = 32  # items that are encoded at once


@dataclass
class Encoded:
    """Encodings of N items, float16; rows of items that lack a modality are zeros, and `has` says which do not."""

    embeddings: dict[str, Tensor]  # modality -> (N, D), text (N, variants, D): aligned in the shared space
    latents: dict[str, Tensor]  # modality -> (N, ...), in diffusion space
    has: dict[str, Tensor]  # modality -> bool (N,)
    empty: Tensor  # embedding of the empty prompt, (D,)

    def rows(self, kinds: Sequence[str], count: int, generator: torch.Generator) -> Tensor:
        """As `Dataset.rows`."""
        return Dataset.rows(self, kinds, count, generator)  # type: ignore[arg-type]

    def embedding(self, kind: str, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Embeddings (B, D) of items in one modality; of texts one of the variants each."""
        found = self.embeddings[kind]
        if found.ndim == 2:
            return found[rows.to(found.device)].float().to(generator.device)
        variant = torch.randint(found.shape[1], (len(rows),), generator=generator, device=generator.device)
        return found[rows.to(found.device), variant.to(found.device)].float().to(generator.device)

    def latent(self, kind: str, rows: Tensor, device: torch.device) -> Tensor:
        """Latents (B, ...) of items."""
        return self.latents[kind][rows.to(self.latents[kind].device)].to(device).float()


@torch.no_grad()
def encode_dataset(
    space: Workspace, data: Dataset, kinds: Sequence[str], latents: Sequence[str], cache: Path, *,
    variants: int = 1, progress: Progress = lambda *_: None,
) -> Encoded:  # fmt: skip
    """Embed the media of these kinds, `variants` prompts of each item, and make latents of those in `latents`.

    Encodings are read from the folder `cache` where the data, the weights that make them and the numbers of their networks are those they
    were made with. May be interrupted. Raises CoDiError for encodings that are not finite."""
    config = space.config
    model = CoDi.from_pretrained(space.folder, device=space.device, dtype=torch.float32)
    kinds, latents = [k for k in kinds if k in data.has], [k for k in latents if k in data.has]
    jobs: list[tuple[str, str, Callable[[str, list[int], random.Random], Tensor], list[str]]] = []

    def embedded(kind: str, rows: list[int], rng: random.Random) -> Tensor:
        if kind == "text":
            columns = [encode_prompts(model.clip, model.clip_tokenizer, data.prompts(rows, rng))[:, 0] for _ in range(variants)]
            return space_of.align(torch.stack(columns, dim=1), kind)  # (B, variants, D)
        clap = model.clap if kind == "audio" else None
        own = embed(None if clap else model.clip, clap, config, kind, data.media(kind, rows).to(space.device))
        return space_of.align(own.float()[:, None], kind)[:, 0]

    def encoded(kind: str, rows: list[int], rng: random.Random) -> Tensor:
        net: Any = model.component(MODALITIES[kind].autoencoder)
        if kind == "text":
            z = net.encode(model.text_tokenizers.encode(data.texts(rows, rng)).to(space.device))
        else:
            media = data.media(kind, rows).to(space.device)
            z = net.encode(media if kind == "audio" else media * 2 - 1)
        return z.float() * MODALITIES[kind].latent_scale(config)

    space_of = model.space
    for kind in kinds:
        jobs.append(("embedding", kind, embedded, [MODALITIES[kind].encoder]))
    for kind in latents:
        jobs.append(("latent", kind, encoded, [MODALITIES[kind].autoencoder]))
    total, before = sum(int(data.has[kind].sum()) for _, kind, _, _ in jobs), 0
    results: dict[tuple[str, str], Tensor] = {}
    for what, kind, make, components in jobs:
        files = [model.path(name) for name in components] + ([space.folder / SHARED_SPACE_FILE] if what == "embedding" else [])
        versions = [sha256(path) for path in files if path.exists()]
        sizes = [config.sampling.image_size, config.sampling.video_size, config.sampling.frames, config.mel]
        numbers = repr([sizes, *(getattr(config, name) for name in components)])
        words = [what, kind, data.version, data.has[kind].tolist(), variants if kind == "text" else 1, versions, numbers]
        folder = cache / f"{kind}-{what}-{hashlib.sha256(repr(words).encode()).hexdigest()[:16]}"
        there = data.has[kind].nonzero()[:, 0].tolist()
        shards = []
        for start in range(0, len(there), SHARD):
            progress(before + start, total)
            shards.append(_shard(folder / f"{start:08d}.safetensors", kind, there[start : start + SHARD], make))
        before += len(there)
        values = torch.cat(shards)
        full = torch.zeros(len(data), *values.shape[1:], dtype=values.dtype)
        full[data.has[kind]] = values
        results[what, kind] = full
    progress(total, total)
    empty = space_of.align(encode_prompts(model.clip, model.clip_tokenizer, [""]), "text")[0, 0].float().to(space.device)
    has = {kind: data.has[kind] for kind in dict.fromkeys([*kinds, *latents])}
    made: list[dict[str, Tensor]] = [{k: v for (w, k), v in results.items() if w == what} for what in ("embedding", "latent")]
    return Encoded(made[0], made[1], has, empty)


def _shard(path: Path, kind: str, rows: list[int], make: Callable[[str, list[int], random.Random], Tensor]) -> Tensor:
    if path.is_file():
        return read_weights(path)[0]["values"]
    rng = random.Random(rows[0])
    values = torch.cat([make(kind, rows[i : i + PART], rng).half().cpu() for i in range(0, len(rows), PART)])
    if not bool(torch.isfinite(values).all()):
        bad = rows[int((~torch.isfinite(values.flatten(1))).any(1).nonzero()[0])]
        raise CoDiError(f"{kind} of example {bad} is encoded to values that are not finite: look at the file")
    save_weights({"values": values}, path)
    return values


def jittered(embeddings: Tensor, generator: torch.Generator, spread: float) -> Tensor:
    """Embeddings (B, D) with noise of random size, unit length again: other modalities' embeddings lie near, not on, the text's."""
    size = 4 * spread * torch.rand(len(embeddings), 1, generator=generator, device=embeddings.device)
    noise = torch.randn(embeddings.shape, generator=generator, device=embeddings.device) / embeddings.shape[1] ** 0.5
    return F.normalize(embeddings + size * noise, dim=-1)


def draw_prompts(
    encoded: Encoded, rows: Tensor, weights: dict[str, float], generator: torch.Generator,
    *, empty: float, spread: float, mixed: float = 0.0,
) -> Tensor:  # fmt: skip
    """Contexts (B, 1, D): of each item one modality's embedding, or with probability `empty` the empty prompt.

    weights: modality -> how often it is drawn among those that an item has; an item with none of them is asked for by any it has.
    mixed: part of the prompts that are interpolations of two of the item's own at random weights (paper section 3.2). These are shorter
    than unit length, the more so the less the two have in common, as a mixer's are."""
    device, kinds = generator.device, list(encoded.embeddings)
    there = torch.stack([encoded.has[kind][rows.to(encoded.has[kind].device)] for kind in kinds], dim=1).to(device)  # (B, K)
    chance = torch.tensor([weights.get(kind, 0.0) for kind in kinds], device=device) * there
    chance = torch.where(chance.sum(1, keepdim=True) > 0, chance, there.float()).clamp(min=1e-12)

    def one() -> Tensor:
        pick = torch.multinomial(chance, 1, generator=generator)  # (B, 1)
        choices = torch.stack([encoded.embedding(kind, rows, generator) for kind in kinds], dim=1)  # (B, K, D)
        return jittered(choices[torch.arange(len(rows), device=device), pick[:, 0]], generator, spread)

    drawn = one()
    blank, alone, share = torch.rand(3, len(rows), 1, generator=generator, device=device)
    if mixed:
        drawn = torch.lerp(drawn, one(), share.masked_fill(alone >= mixed, 0.0))
    return torch.where(blank < empty, encoded.empty.to(device), drawn)[:, None]

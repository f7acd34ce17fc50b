"""What a cell of the evaluation asks for: recipes of prompts, and the scenes, embeddings and seeds that they stand for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...conditioning import mix
from ...pipeline import CoDiPipeline
from ...prompts import Prompt, encode_prompt, prompted
from .. import render
from .. import world as bounce

SCENES = ("a", "b", "c")
"""Names of the scenes of one sample; those that a recipe uses differ from each other in every attribute."""

_TEMPLATES = {frozenset(n for n in bounce.ATTRIBUTES if "{" + n + "}" in t): t for t in bounce.PARTIAL_TEMPLATES}
_TEMPLATES[frozenset(bounce.ATTRIBUTES)] = bounce.FULL_TEMPLATES[0]


@dataclass(frozen=True)
class Part:
    """One prompt of a mixture. says (text only): the attributes that it names; None for all, () for those of a random partial caption."""

    kind: str
    scene: str = "a"
    says: tuple[str, ...] | None = None
    weight: float = 1.0

    def __str__(self) -> str:
        says = "" if self.says is None else "[" + (" ".join(self.says) or "partly") + "]"
        return self.kind + says + ("" if self.scene == "a" else f" of {self.scene}") + ("" if self.weight == 1 else f" x{self.weight:g}")


@dataclass(frozen=True)
class Recipe:
    """The prompts of every sample of a cell; none for generation without a prompt. held_out as for `bounce.sample_scenes`."""

    parts: tuple[Part, ...] = ()
    held_out: str = "exclude"

    def __str__(self) -> str:
        return (" + ".join(map(str, self.parts)) or "nothing") + ("" if self.held_out == "exclude" else " (held out)")

    @property
    def stream(self) -> str:
        """Name of its random stream: mixtures that differ in weights alone draw the same scenes and noise."""
        return str(replace(self, parts=tuple(replace(part, weight=1.0) for part in self.parts)))

    @property
    def determined(self) -> tuple[str, ...]:
        """Attributes that the prompts show; of partial captions none in general."""
        shown = {a for part in self.parts for a in (bounce.SEEN_IN[part.kind] if part.says is None else part.says)}
        return tuple(a for a in bounce.ATTRIBUTES if a in shown)


@dataclass(frozen=True)
class Asked:
    """A recipe carried out for n samples."""

    scenes: dict[str, Tensor]  # scene name -> (n, 3) indices: shape, colour, beats
    said: Tensor  # (n, 3) as the prompts say it of scene a, -1 where they leave it open
    contexts: Tensor  # (n, 1, D)
    nothing: Tensor | None  # what guidance leads away from; None where there is no prompt
    seeds: list[int]  # of the samples' noise


def of_kinds(*kinds: str, held_out: str = "exclude") -> Recipe:
    """Prompts of these kinds that show the same scene; text names all attributes."""
    return Recipe(tuple(Part(kind) for kind in kinds), held_out)


def stream(*names: object) -> int:
    """Seed of a random stream named by anything that prints, 0 .. 2**40 - 1: adding cells does not change what others draw."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, names)).encode()).digest()[:5], "little")


def draw_scenes(recipe: Recipe, count: int, seed: int) -> tuple[dict[str, Tensor], torch.Generator]:
    """Scenes of `count` samples, (count, 3) each, and the generator that goes on drawing for them. The same for equal arguments."""
    generator = torch.Generator().manual_seed(stream(seed, recipe.stream, "scenes"))
    drawn = {"a": as_rows(bounce.sample_scenes(count, generator=generator, held_out=recipe.held_out))}
    table = as_rows(bounce.every_scene("exclude"))  # (54, 3)
    last = max((SCENES.index(part.scene) for part in recipe.parts), default=0)
    for name in SCENES[1 : last + 1]:
        free = torch.stack([(table[None] != other[:, None]).all(dim=2) for other in drawn.values()]).all(dim=0)  # (count, 54)
        drawn[name] = table[torch.multinomial(free.float(), 1, generator=generator)[:, 0]]
    return drawn, generator


def ask(pipe: CoDiPipeline, recipe: Recipe, count: int, seed: int, composition: str | None = None) -> Asked:
    """Render, caption and embed the prompts of `count` samples."""
    scenes, generator = draw_scenes(recipe, count, seed)
    said = torch.full((count, 3), -1)
    rendered: list[list[Prompt]] = []
    for part in recipe.parts:
        prompts, names = _prompts(part, as_scenes(scenes[part.scene]), generator)
        rendered.append(prompts)
        if part.scene == "a" and part.weight > 0:
            said = torch.where(names, scenes["a"], said)
    first = stream(seed, recipe.stream, "noise")
    wanted, nothing = pipe.condition([])
    if not recipe.parts:
        return Asked(scenes, said, wanted.expand(count, -1, -1), None, list(range(first, first + count)))
    embedded = [torch.cat([encode_prompt(pipe.model, prompt) for prompt in prompts]) for prompts in rendered]
    blend = prompted(pipe.model, mix(embedded, [part.weight for part in recipe.parts]), composition)  # (n, 1, D)
    # The empty text stands for no prompt where the modality gap is closed; else the published rule decides.
    nothing = pipe.condition([prompts[0] for prompts in rendered])[1]
    return Asked(scenes, said, blend, nothing, list(range(first, first + count)))


def _prompts(part: Part, scenes: bounce.Scenes, generator: torch.Generator) -> tuple[list[Prompt], Tensor]:
    """Prompts of one part and which attributes each shows, bool (n, 3)."""
    if part.kind != "text" or part.says is None:
        shows = torch.tensor([a in bounce.SEEN_IN[part.kind] for a in bounce.ATTRIBUTES])
        return rendered_prompts(part.kind, scenes, generator), shows.expand(len(scenes), -1)
    if part.says:
        template = bounce.TEMPLATES.index(_TEMPLATES[frozenset(part.says)])
        ids = bounce.CAPTION_IDS[template, scenes.shape, scenes.colour, scenes.beats]
    else:
        ids = bounce.sample_caption_ids(scenes, generator=generator, full=False)
    return [Prompt("text", bounce.ALL_CAPTIONS[i]) for i in ids.tolist()], bounce.CAPTION_ATTRIBUTES[ids] >= 0


def rendered_prompts(kind: str, scenes: bounce.Scenes, generator: torch.Generator) -> list[Prompt]:
    """Prompts of one kind that show the scenes; text names all attributes."""
    if kind == "text":
        return [Prompt("text", caption) for caption in bounce.captions(scenes, generator=generator, full=True)]
    media = rendered(kind, scenes, generator)
    return [Prompt("audio", (wave, bounce.SAMPLE_RATE)) for wave in media] if kind == "audio" else [Prompt(kind, one) for one in media]


def rendered(kind: str, scenes: bounce.Scenes, generator: torch.Generator) -> Tensor:
    """Media of the scenes with nuisance of their own: image (n, 3, H, W), video (n, F, 3, H, W) or audio (n, N)."""
    nuisance = bounce.sample_nuisance(len(scenes), generator=generator)
    if kind == "audio":
        return render.render_audio(scenes, nuisance)
    return (render.render_image if kind == "image" else render.render_video)(scenes, nuisance)


def as_rows(scenes: bounce.Scenes) -> Tensor:
    """(n, 3): shape, colour, beats."""
    return torch.stack([scenes.shape, scenes.colour, scenes.beats], dim=1)


def as_scenes(rows: Tensor) -> bounce.Scenes:
    """Inverse of `as_rows`."""
    return bounce.Scenes(*rows.unbind(1))

"""Latent alignment (paper section 3.4): environment encoders and connectors, and nothing else.

Pairs that are trained: image-text, text-audio, audio-video. Every other combination of outputs is composed without training, so
the number of trainings grows linearly with the number of modalities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoisers.alignment import alignment_parameters, connector_parameters, copy_prompt_attention_into_connectors, environment_parameters
from ..errors import CoDiError
from ..modalities import MODALITIES, denoisers_of
from .bridging import contrastive
from .dataset import Dataset, Progress
from .denoising import SHOWN, Noising, Noisy, batch_of, prompt_weights, sample_latents
from .encoded import Encoded, draw_prompts, encode_dataset
from .loop import Objective
from .sheets import decoded
from .workspace import Workspace

PAPER_PAIRS = (("image", "text"), ("text", "audio"), ("audio", "video"))
LITTLE = 0.25  # noise level up to which a latent keeps what it shows
SHARPNESS = 15.0  # inverse temperature of the contrastive losses


class _Aligning(Objective):
    """Denoisers that are frozen but for some of their latent alignment."""

    nets: Any

    def __init__(self, space: Workspace, encoded: Encoded, modalities: tuple[str, ...], frozen: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.workspace, self.encoded = space, encoded
        self.config, self.noising = space.config, Noising(space.config)
        self.nets = nn.ModuleDict({name: space.network(name) for name in denoisers_of(modalities)})
        for net in self.nets.values():
            freeze(net, self.trained_of(net), frozen)

    def trained_of(self, net: Any) -> list[nn.Parameter]:
        """What is trained of a denoiser."""
        return alignment_parameters(net)

    def net(self, modality: str) -> Any:
        return self.nets[MODALITIES[modality].denoiser]

    def noisy(self, modality: str, rows: Tensor, level: Tensor, generator: torch.Generator) -> Noisy:
        return self.noising(modality, self.encoded.latent(modality, rows, generator.device), level, generator)

    @torch.no_grad()
    def generated(self, modality: str, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Items (B, ...) as a sampler would leave them: the denoiser's estimates from a little noise, under the items' own prompts.

        Generated latents miss the real ones by more than an environment encoder bears that only ever saw real ones."""
        level = LITTLE * self.noising.levels(len(rows), generator)
        noisy, own = self.noisy(modality, rows, level, generator), self.encoded.embedding(modality, rows, generator)
        return self.noising.estimate(noisy, self.net(modality)(noisy.x, noisy.timesteps, own[:, None]).float())

    def write(self) -> None:
        for name, net in self.nets.items():
            self.workspace.save_learnt(name, net)


class EnvironmentEncoding(_Aligning):
    """Environment embeddings are pulled to where the prompt encoders put the same item, and apart from those of other items.

    Each modality learns from its own latents, their captions and their own embeddings. The denoisers are never run: a step costs next to
    nothing beside one of `LatentAlignment`."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        batch: dict[str, int]  # of each modality, in turns
        pull: float = 1.0  # weight of the distance from the item's own embedding
        generated: float = 0.0  # part of the steps on latents that are the denoiser's own
        variants: int = 8

    def __init__(self, space: Workspace, encoded: Encoded, options: Options) -> None:
        super().__init__(space, encoded, tuple(kind for kind in options.batch if kind in encoded.latents))
        self.options, self.kinds = options, [kind for kind in options.batch if kind in encoded.latents]

    @staticmethod
    def encode(space: Workspace, data: Dataset, options: Options, cache: Path, progress: Progress) -> Encoded:
        """What the run needs of a data set."""
        kinds = [kind for kind in data.has if kind == "text" or kind in options.batch]
        return encode_dataset(space, data, kinds, tuple(options.batch), cache, variants=options.variants, progress=progress)

    def trained_of(self, net: Any) -> list[nn.Parameter]:
        return environment_parameters(net)

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        kind = self.kinds[step % len(self.kinds)]
        with torch.no_grad():
            level = self.noising.levels(self.options.batch[kind], generator)
            rows = self.encoded.rows([kind], len(level), generator)
            if torch.rand((), generator=generator, device=generator.device) < self.options.generated:
                noisy = self.noising(kind, self.generated(kind, rows, generator), torch.zeros_like(level), generator)
            else:
                noisy = self.noisy(kind, rows, level, generator)
            own = self.encoded.embedding(kind, rows, generator)
            text = self.encoded.embedding("text", rows, generator) if "text" in self.encoded.embeddings else own
            signal = (1 + noisy.sigma.square()).rsqrt()  # a latent that is nearly noise cannot name its item
        environment = self.net(kind).environment_embedding(noisy.x, noisy.timesteps)[:, 0].float()  # (B, D)
        pull = (signal * (1 - (environment * F.normalize(own + text, dim=-1)).sum(-1))).mean()
        apart = contrastive(environment, text, SHARPNESS, rows.to(environment.device))
        return self.options.pull * pull + 0.25 * apart, {f"{kind}/pull": pull, f"{kind}/apart": apart}


class LatentAlignment(_Aligning):
    """Denoising error of both outputs of a pair at the same noise level, each attending to the other's environment embedding, plus the
    contrastive loss between embeddings of the two, there at noise levels of their own. In a part of the steps one of them is finished, and
    the other's error counts: outputs of the same level never show how to attend to one that is clear while one's own is not.

    Attention over a single token weighs nothing, so it would never learn to weigh sources against each other. Of the other output come
    up to `sources` draws of the noise, further ones at levels from its own to the highest: like several outputs, each tells what the
    others' noise hides, and some tell less than others (an image no beats); pairs stay all that is seen.

    Connectors that were never trained start as copies of the frozen prompt attention, which reads what environment encoders write."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        batch: int | dict[str, int]  # examples of every pair, or of each modality: a pair takes the smaller number of its two
        pairs: tuple[tuple[str, str], ...] = ()  # in turns; those of the paper that the data have, else all that they have
        empty: float = 0.6
        finished: float = 0.0  # part of the steps with one output made already, as in completion and sequential schedules
        sources: int = 1  # the most embeddings that an output attends to, 1 to 3; each number in as many steps
        contrastive: float = 0.02  # weight of the contrastive loss
        variants: int = 8
        spread: float = 0.15
        half: bool = False  # keep frozen weights in bfloat16

    def __init__(self, space: Workspace, encoded: Encoded, options: Options) -> None:
        if not 1 <= options.sources < len(MODALITIES):
            raise CoDiError(f"sources {options.sources} must be 1 to {len(MODALITIES) - 1}: an output has no more others")
        self.pairs = options.pairs or pairs_of(encoded.has)
        for pair in self.pairs:
            if denoisers_of(pair[:1]) == denoisers_of(pair[1:]):
                raise CoDiError(f"{pair[0]} and {pair[1]} share a denoiser: they cannot be aligned with each other")
            Dataset.rows(encoded, pair, 1, torch.Generator())  # type: ignore[arg-type]
        frozen = torch.bfloat16 if options.half else torch.float32
        super().__init__(space, encoded, tuple(kind for pair in self.pairs for kind in pair), frozen)
        self.options, self.batches = options, [batch_of(options.batch, pair) for pair in self.pairs]
        for net in self.nets.values():
            if _untrained(net) and net.config.connector_dim == net.config.context_dim:
                copy_prompt_attention_into_connectors(net)

    @staticmethod
    def encode(space: Workspace, data: Dataset, options: Options, cache: Path, progress: Progress) -> Encoded:
        """What the run needs of a data set."""
        kinds = tuple(dict.fromkeys(kind for pair in options.pairs or pairs_of(data.has) for kind in pair))
        prompts = [kind for kind in data.has if kind == "text" or kind in kinds]
        return encode_dataset(space, data, prompts, kinds, cache, variants=options.variants, progress=progress)

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        options, turn = self.options, step % len(self.pairs)
        with torch.no_grad():
            chance = torch.rand(3, generator=generator, device=generator.device)
            further = int(chance[2] * options.sources)
            pair = self.pairs[turn] if chance[1] < 0.5 else self.pairs[turn][::-1]
            level = self.noising.levels(self.batches[turn], generator)
            rows = self.encoded.rows(pair, len(level), generator)
            weights = {k: w for kind in pair for k, w in prompt_weights(kind).items() if k in ("text", *pair)}
            context = draw_prompts(self.encoded, rows, weights, generator, empty=options.empty, spread=options.spread)
        if chance[0] < options.finished:
            return self._beside_a_finished(*pair, rows, level, context, further, generator)
        return self._together(self.pairs[turn], rows, level, context, further, generator)

    def _draws(self, kind: str, rows: Tensor, level: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        """Environment embeddings (B, 1, C) of an output, of `count` draws of its noise, each at levels from `level` (B,) to 1."""
        levels = [level + (1 - level) * torch.rand(level.shape, generator=generator, device=level.device) for _ in range(count)]
        draws = [self.noisy(kind, rows, higher, generator) for higher in levels]
        return [self.net(kind).environment_embedding(noisy.x, noisy.timesteps) for noisy in draws]

    def _together(
        self, pair: tuple[str, str], rows: Tensor, level: Tensor, context: Tensor, further: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        nets = [self.net(kind) for kind in pair]
        noisy = [self.noisy(kind, rows, level, generator) for kind in pair]
        first = [net.environment_embedding(n.x, n.timesteps) for net, n in zip(nets, noisy, strict=True)]  # (B, 1, C)
        more = [self._draws(kind, rows, level, further, generator) for kind in pair]
        environment = [torch.cat([one, *others], dim=1) for one, others in zip(first, more, strict=True)]  # (B, 1 + further, C)
        errors = [
            (net(n.x, n.timesteps, context, environment=other).float() - n.target).square().mean()
            for net, n, other in zip(nets, noisy, reversed(environment), strict=True)
        ]
        # Told from others by what it shows: at the level that the two share, the level alone would tell. The first of a pair costs less.
        again = self.noisy(pair[0], rows, self.noising.levels(len(level), generator), generator)
        own = nets[0].environment_embedding(again.x, again.timesteps)
        apart = contrastive(own[:, 0].float(), environment[1][:, 0].float(), SHARPNESS, rows.to(level.device))
        logs = {f"{kind} of {'+'.join(pair)}": error for kind, error in zip(pair, errors, strict=True)}
        return errors[0] + errors[1] + self.options.contrastive * apart, {**logs, "contrastive": apart}

    def _beside_a_finished(
        self, target: str, source: str, rows: Tensor, level: Tensor, context: Tensor, further: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Others that are being made beside a finished one know less than it."""
        made, noisy = self.generated(source, rows, generator), self.noisy(target, rows, level, generator)
        finished = self.net(source).environment_embedding(made, torch.zeros_like(level))
        environment = [finished, *self._draws(source, rows, level, further, generator)]  # each (B, 1, C)
        predicted = self.net(target)(noisy.x, noisy.timesteps, context, environment=torch.cat(environment, dim=1))
        error = (predicted.float() - noisy.target).square().mean()
        return error, {f"{target} beside {source}": error}

    def samples(self) -> dict[str, Tensor | list[str]]:
        """Pairs made together without a prompt, so that they can only agree by latent alignment."""
        made: dict[str, Tensor | list[str]] = {}
        context = self.encoded.empty.to(self.workspace.device).expand(SHOWN, 1, -1)
        for pair in dict.fromkeys(self.pairs):
            shapes = {kind: self.encoded.latents[kind].shape[1:] for kind in pair}
            for kind, z in sample_latents(dict(self.nets.items()), self.config, shapes, context, cfg=1.0).items():
                if (shown := decoded(self.workspace, kind, z)) is not None:
                    made[f"{'+'.join(pair)}/{kind}"] = shown
        return made


def freeze(net: Any, trained: list[nn.Parameter], dtype: torch.dtype = torch.float32) -> None:
    """Leave gradients to these parameters of a network alone; the other weights are stored in `dtype`."""
    learning = {id(parameter) for parameter in trained}
    for parameter in net.parameters():
        parameter.requires_grad_(id(parameter) in learning)
        if id(parameter) not in learning:
            parameter.data = parameter.data.to(dtype)


def pairs_of(has: dict[str, Tensor]) -> tuple[tuple[str, str], ...]:
    """The paper's three pairs, as far as the data have them; else all pairs that they have. Raises CoDiError where there is none."""

    def there(pair: tuple[str, str]) -> bool:
        return all(kind in has for kind in pair) and bool((has[pair[0]] & has[pair[1]]).any())

    kinds = list(has)
    every = [(a, b) for i, a in enumerate(kinds) for b in kinds[i + 1 :] if denoisers_of([a]) != denoisers_of([b])]
    found = [pair for pair in PAPER_PAIRS if there(pair)] or [pair for pair in every if there(pair)]
    if not found:
        raise CoDiError(f"no two of {', '.join(kinds) or 'no kinds'} stand in one example: latent alignment learns from pairs")
    return tuple(found)


def _untrained(net: Any) -> bool:
    """Whether the connectors still are as they were drawn: their last layers are zero."""
    last = [p for (n, p) in net.named_parameters() if "connecters_in." in n and n.endswith("proj_out.weight")]
    return bool(connector_parameters(net)) and all(not bool(p.any()) for p in last)

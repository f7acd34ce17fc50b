"""The paper's stages on a user's own pairs: bridging alignment, one denoiser, latent alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import read_weights, save_weights
from ..config import DENOISER_OF
from ..denoisers.alignment import alignment_parameters
from ..encoders.shared_space import SHARED_SPACE_FILE, SharedSpace
from ..errors import CoDiError
from .bridging import contrastive
from .denoising import Noising, conditions, timesteps
from .encoded import Encoded
from .loop import Objective
from .workspace import Workspace

EMPTY_SHARE = 0.1  # of prompts that are left out, for classifier-free guidance
PAPER_PAIRS = (("image", "text"), ("text", "audio"), ("audio", "video"))


class Prompts:
    """What the records are prompted with, and the empty prompt: the interface that sample sheets read."""

    def __init__(self, embeddings: Tensor, empty: Tensor) -> None:
        self.embeddings = torch.cat([embeddings, empty[None]])  # (N + 1, D)

    @property
    def empty(self) -> Tensor:
        """Embedding of the unconditional prompt, (D,)."""
        return self.embeddings[-1]


class _OnPairs(Objective):
    """Encoded records, and how batches, noise and prompts are drawn from them."""

    def __init__(self, space: Workspace, encoded: Encoded, empty: Tensor, batch: int) -> None:
        super().__init__()
        self.workspace, self.batch = space, batch
        self.encoded = encoded.to(space.device)
        stacked = torch.stack(list(self.encoded.embeddings.values()))  # (K, N, D)
        mask = torch.stack(list(self.encoded.has.values()))[..., None]  # (K, N, 1)
        mean = nn.functional.normalize((stacked * mask).sum(0), dim=-1)
        self.text = Prompts(mean, empty.to(space.device))
        self.noising = Noising(space.device)

    def rows(self, kinds: Sequence[str], count: int, generator: torch.Generator) -> Tensor:
        """Random records (B,) that have all these kinds."""
        usable = torch.stack([self.encoded.has[kind] for kind in kinds]).all(0).nonzero()[:, 0]
        return usable[torch.randint(len(usable), (count,), generator=generator, device=generator.device)]

    def prompts(self, rows: Tensor, made: Sequence[str], generator: torch.Generator) -> Tensor:
        """Contexts (B, 1, D): of each record one of its media at random, rather another than those that are made, or nothing."""
        kinds = list(self.encoded.embeddings)
        chance = torch.rand(len(kinds), len(rows), generator=generator, device=generator.device)
        there = torch.stack([self.encoded.has[kind][rows] for kind in kinds])  # (K, B)
        other = torch.tensor([kind not in made for kind in kinds], device=rows.device)[:, None]
        pick = (chance + there.float() * (2 + 2 * other)).argmax(0)  # (B,)
        chosen = torch.stack([self.encoded.embeddings[kind][rows] for kind in kinds])[pick, torch.arange(len(rows), device=rows.device)]
        return conditions([(1 - EMPTY_SHARE, chosen)], self.text.empty, generator)

    def noised(self, clean: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noisy latents and the noise in them, both like `clean` (B, ...)."""
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        return self.noising.noisy(clean, noise, t), noise


class OwnDenoising(_OnPairs):
    """One denoiser, conditioned on whatever else the records show; connectors stay as they are."""

    learning_rate = 1e-4

    def __init__(self, space: Workspace, encoded: Encoded, empty: Tensor, batch: int, component: str) -> None:
        super().__init__(space, encoded, empty, batch)
        self.component = component
        self.kinds = [kind for kind, name in DENOISER_OF.items() if name == component and kind in encoded.latents]
        if not self.kinds:
            raise CoDiError(f"no example has what {component} makes; the data have {', '.join(encoded.has)}")
        self.net: Any = space.network(component)
        for parameter in alignment_parameters(self.net):
            parameter.requires_grad_(False)

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        kind = self.kinds[step % len(self.kinds)]
        with torch.no_grad():
            rows = self.rows([kind], self.batch, generator)
            t = timesteps(self.batch, generator)
            context = self.prompts(rows, [kind], generator)
            noisy, noise = self.noised(self.encoded.latents[kind][rows], t, generator)
        error = (self.net(noisy, t, context).float() - noise).square().mean()
        return error, {kind: error}

    def write(self) -> None:
        write_learnt(self.workspace, self.component, self.net)


class OwnAlignment(_OnPairs):
    """Latent alignment: both outputs of a pair attend to each other's environment embedding, plus the contrastive loss between the two
    (paper section 3.4). Only environment encoders and connectors learn; the frozen weights are kept in `frozen_dtype`."""

    learning_rate = 1e-4

    def __init__(
        self, space: Workspace, encoded: Encoded, empty: Tensor, batch: int, pairs: Sequence[tuple[str, str]] = (),
        *, frozen_dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__(space, encoded, empty, batch)
        self.pairs = tuple(pairs) or pairs_of(encoded)
        for pair in self.pairs:
            if not all(kind in encoded.has for kind in pair) or not (encoded.has[pair[0]] & encoded.has[pair[1]]).any():
                raise CoDiError(f"no example has both {pair[0]} and {pair[1]}; the data have {', '.join(encoded.has)}")
        self.nets: Any = nn.ModuleDict(
            {name: space.network(name) for name in sorted({DENOISER_OF[k] for pair in self.pairs for k in pair})}
        )
        for net in self.nets.values():
            freeze_but_alignment(net, frozen_dtype)

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pair = self.pairs[step % len(self.pairs)]
        with torch.no_grad():
            rows = self.rows(pair, self.batch, generator)
            t = timesteps(self.batch, generator)
            context = self.prompts(rows, pair, generator)
            noised = [self.noised(self.encoded.latents[kind][rows], t, generator) for kind in pair]
        nets = [self.nets[DENOISER_OF[kind]] for kind in pair]
        heard = [net.environment_embedding(x, t) for net, (x, _) in zip(nets, noised, strict=True)]  # (B, 1, C)
        losses = [
            (net(x, t, context, environment=other).float() - noise).square().mean()
            for net, (x, noise), other in zip(nets, noised, reversed(heard), strict=True)
        ]
        together = contrastive(heard[0][:, 0].float(), heard[1][:, 0].float(), 10.0, rows)
        return losses[0] + losses[1] + 0.05 * together, {pair[0]: losses[0], pair[1]: losses[1], "contrastive": together}

    def write(self) -> None:
        for name, net in self.nets.items():
            write_learnt(self.workspace, name, net)


def write_learnt(space: Workspace, component: str, net: nn.Module) -> None:
    """Write a component in the dtype that its file has; what did not learn stays in it bit for bit."""
    path = space.folder / f"{component}.safetensors"
    tensors, metadata = read_weights(path)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    learnt = {
        name: value.detach().to("cpu", tensors[name].dtype)
        for name, value in net.state_dict().items()
        if name in tensors and name not in frozen
    }
    save_weights({**tensors, **learnt}, path, metadata=metadata)


def freeze_but_alignment(net: Any, frozen_dtype: torch.dtype = torch.float32) -> None:
    """Leave gradients to environment encoder and connectors alone; the other weights are stored in `frozen_dtype`."""
    net.requires_grad_(False)
    trained = {id(p) for p in alignment_parameters(net)}
    for parameter in net.parameters():
        if id(parameter) in trained:
            parameter.requires_grad_(True)
        else:
            parameter.data = parameter.data.to(frozen_dtype)


def pairs_of(encoded: Encoded) -> tuple[tuple[str, str], ...]:
    """The paper's three pairs, as far as the data have them; else all pairs that they have. Raises CoDiError where there is none."""

    def there(pair: tuple[str, str]) -> bool:
        return all(kind in encoded.has for kind in pair) and bool((encoded.has[pair[0]] & encoded.has[pair[1]]).any())

    kinds = list(encoded.has)
    every = [(a, b) for i, a in enumerate(kinds) for b in kinds[i + 1 :]]
    found = [pair for pair in PAPER_PAIRS if there(pair)] or [pair for pair in every if there(pair)]
    if not found:
        raise CoDiError(f"no two of {', '.join(kinds) or 'no kinds'} stand in one example: latent alignment learns from pairs")
    return tuple(found)


class OwnBridging(Objective):
    """Contrastive training of the encoders of picture, clip and sound towards the text encoder, which stays as it is (paper section 3.3).

    inputs: kind -> what its encoder takes (N, ...); texts: (N, D) unit embeddings without their mean removed; has: kind -> bool (N,)."""

    learning_rate = 1e-5

    def __init__(self, space: Workspace, inputs: dict[str, Tensor], texts: Tensor, has: dict[str, Tensor], batch: int) -> None:
        super().__init__()
        self.workspace, self.batch = space, batch
        self.inputs, self.texts, self.has = inputs, texts.to(space.device), has
        self.clip: Any = space.network("clip")
        self.clap: Any = space.network("clap")
        visual = bool({"image", "video"} & set(inputs))
        for name, parameter in self.clip.named_parameters():
            parameter.requires_grad_(visual and name.startswith(("vision_model.", "visual_projection.")))
        self.clap.requires_grad_("audio" in inputs)

    def _embed(self, kind: str, rows: Tensor) -> Tensor:
        values = self.inputs[kind][rows.cpu()].to(self.texts.device, torch.float32)
        encode = {"image": self.clip.encode_image, "video": self.clip.encode_video, "audio": self.clap.encode_audio}[kind]
        return encode(values)[:, 0]

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        kind = list(self.inputs)[step % len(self.inputs)]
        usable = self.has[kind].nonzero()[:, 0].to(generator.device)
        rows = usable[torch.randint(len(usable), (self.batch,), generator=generator, device=generator.device)]
        scale = self.clip.logit_scale.detach().exp().clamp(max=100.0)
        loss = contrastive(self._embed(kind, rows).float(), self.texts[rows], scale, rows)
        return loss, {kind: loss}

    @torch.no_grad()
    def write(self) -> None:
        """The encoders that were trained, and the centres of their kinds: each kind's mean comes to lie where its texts' mean does."""
        for name, net in (("clip", self.clip), ("clap", self.clap)):
            if any(p.requires_grad for p in net.parameters()):
                write_learnt(self.workspace, name, net)
        shared = self.workspace.space
        if not shared.means:
            return
        for kind in self.inputs:
            rows = self.has[kind].nonzero()[:, 0]
            own = torch.cat([self._embed(kind, part) for part in rows.split(32)]).float().mean(0).cpu()
            shared.means[kind] = own - (self.texts[rows].mean(0).cpu() - shared.means["text"])
        SharedSpace(shared.means).save(self.workspace.folder / SHARED_SPACE_FILE)

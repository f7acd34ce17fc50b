"""Joint denoising of any subset of outputs (paper section 3.4): one step of all denoisers with latent alignment between them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from .alignment import Alignment
from .denoisers.hooks import PLAIN, Hooks
from .denoisers.layers import Context, Weighted
from .denoisers.unet import UNet
from .errors import CoDiError
from .modalities import MODALITIES

Contexts = Context | Mapping[str, Context]
Timesteps = Tensor | Mapping[str, Tensor]


class JointDenoiser(nn.Module):
    """Denoisers of some modalities, run in lock-step.

    denoisers: "vision_denoiser", "audio_denoiser", "text_denoiser", or some of them. Image and video share the vision denoiser and may
    both be outputs. With `register=False` the denoisers stay out of the module tree: their owner moves and saves them."""

    def __init__(self, denoisers: Mapping[str, nn.Module], *, register: bool = True) -> None:
        super().__init__()
        known = {row.denoiser for row in MODALITIES.values()}
        if unknown := sorted(set(denoisers) - known):
            raise CoDiError(f"unknown denoisers {unknown}; a joint denoiser is composed of {sorted(known)}")
        self._denoisers = dict(denoisers)
        if register:
            for name, denoiser in denoisers.items():
                self.add_module(name, denoiser)

    def denoiser(self, modality: str) -> UNet:
        """The denoiser of a modality. Raises CoDiError where it is not composed."""
        if modality not in MODALITIES:
            raise CoDiError(f"unknown modality {modality!r}; CoDi makes {', '.join(MODALITIES)}")
        name = MODALITIES[modality].denoiser
        if name not in self._denoisers:
            raise CoDiError(f"output {modality!r} needs {name}, but only {sorted(self._denoisers)} are composed. Add it, or ask for less")
        return cast(UNet, self._modules.get(name) or self._denoisers[name])

    def fold_contexts(self, contexts: Contexts, modalities: Iterable[str]) -> dict[str, Context]:
        """Prompt of every modality with its attention branches computed ahead: once per run, not per step. Folded ones stay as they are."""
        return {m: self.denoiser(m).fold_context(cast(Context, _of(contexts, m, "prompt"))) for m in modalities}

    def environment_embeddings(self, latents: Mapping[str, Tensor], timesteps: Timesteps) -> dict[str, Tensor]:
        """Environment embedding V(z_t) of every latent, each (B, 1, connector_dim), L2-normalised."""
        return {m: self.denoiser(m).environment_embedding(x, _of(timesteps, m, "timestep")) for m, x in latents.items()}

    def forward(
        self, latents: Mapping[str, Tensor], timesteps: Timesteps, contexts: Contexts, *,
        alignment: Alignment | None = None, targets: Collection[str] | None = None, given: Mapping[str, Tensor] | None = None,
        hooks: Mapping[str, Hooks] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Predict the noise, or v, of all outputs: modality -> (B, ...), shaped like its latent.

        latents: modality -> noisy latent at unit variance. timesteps: (B,), 0..999, or modality -> (B,).
        contexts: prompt (B, n, context_dim) for all, or modality -> prompt; plain or folded by `fold_contexts`.
        alignment: which output attends to which; its range and its guidance are the sampler's affair. By default the paper's.
        targets: outputs to predict, all by default; the others are sources only. given: modality -> environment embedding
        (B, 1, connector_dim) that is known already: of finished outputs, or of latents here. hooks: modality -> what is changed on the
        way through its UNet.
        Raises CoDiError for no latent and for a modality whose denoiser is not composed."""
        if not latents:
            raise CoDiError(f"no output asked for; ask for some of {', '.join(MODALITIES)}")
        alignment, given, hooks = alignment or Alignment(), given or {}, hooks or {}
        active = [m for m in latents if targets is None or m in targets]
        prompts = {m: cast(Context, _of(contexts, m, "prompt")) for m in active if hooks.get(m, PLAIN).unfolded}
        prompts |= self.fold_contexts(contexts, [m for m in active if m not in prompts])
        sources = {m: alignment.sources(m, {**latents, **given}) for m in active}
        needed = {source for strengths in sources.values() for source in strengths}
        noisy = {m: x for m, x in latents.items() if m in needed and m not in given}
        embeddings = {**self.environment_embeddings(noisy, timesteps), **given}

        def predict(m: str, sources: Mapping[str, float]) -> Tensor:
            environment, strength = _environment(embeddings, sources)
            return self.denoiser(m)(
                latents[m], _of(timesteps, m, "timestep"), prompts[m], environment=environment,
                strength=alignment.strength * strength, hooks=hooks.get(m, PLAIN),
            )  # fmt: skip

        predictions = {}
        for m in active:
            if alignment.combine == "attention" or len(sources[m]) < 2:
                predictions[m] = predict(m, sources[m])
            else:
                alone = predict(m, {})
                predictions[m] = alone + torch.stack([predict(m, {s: strength}) - alone for s, strength in sources[m].items()]).sum(0)
        return predictions


def _environment(embeddings: Mapping[str, Tensor], sources: Mapping[str, float]) -> tuple[Tensor | Weighted | None, float]:
    """What a target attends to, (B, m, connector_dim), and how strongly.

    Of sources of unequal strength, the strongest sets the strength of the connectors, and the others get less of the attention."""
    if not sources:
        return None, 1.0
    tokens, most = torch.cat([embeddings[source] for source in sources], dim=1), max(sources.values())
    equal = len(set(sources.values())) == 1
    return (tokens if equal else Weighted(tokens, tuple(strength / most for strength in sources.values()))), most


_Value = TypeVar("_Value")


def _of(value: _Value | Mapping[str, _Value], modality: str, what: str) -> _Value:
    if not isinstance(value, Mapping):
        return value
    if modality not in value:
        raise CoDiError(f"no {what} for output {modality!r}; there are some for {sorted(value)}")
    return value[modality]

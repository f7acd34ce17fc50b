"""Joint denoising of any subset of outputs: latent alignment (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .config import DENOISER_OF
from .coupling import Coupling, Pairs
from .denoisers.faceted import Prompted
from .denoisers.layers import Weighted
from .denoisers.unet import UNet
from .errors import CoDiError
from .facets import Composition

Contexts = Prompted | Mapping[str, Prompted]


class JointDenoiser(nn.Module):
    """Denoisers of some modalities, run together.

    denoisers: "vision_denoiser", "audio_denoiser", "text_denoiser", or some of them. Pictures and clips share the vision denoiser
    and may both be outputs. With `register=False` the denoisers stay out of the module tree: their owner moves and saves them.
    composition: takes the prompts of pictures and clips apart. emphasis: output -> factor of the alignment guidance, see `reach`; else 1.
    """

    def __init__(
        self, denoisers: Mapping[str, nn.Module], *, register: bool = True, composition: Composition | None = None,
        emphasis: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if unknown := sorted(set(denoisers) - set(DENOISER_OF.values())):
            raise CoDiError(f"unknown denoisers {unknown}; a joint denoiser is composed of {sorted(set(DENOISER_OF.values()))}")
        self._denoisers, self.composition, self.emphasis = dict(denoisers), composition, dict(emphasis or {})
        if register:
            for name, denoiser in denoisers.items():
                self.add_module(name, denoiser)

    def denoiser(self, modality: str) -> UNet:
        """The denoiser of a modality. Raises CoDiError where it is not composed."""
        if modality not in DENOISER_OF:
            raise CoDiError(f"unknown modality {modality!r}; CoDi makes {', '.join(DENOISER_OF)}")
        name = DENOISER_OF[modality]
        if name not in self._denoisers:
            raise CoDiError(f"output {modality!r} needs {name}, but only {sorted(self._denoisers)} are composed. Add it, or ask for less")
        return cast(UNet, self._modules.get(name) or self._denoisers[name])

    def fold_contexts(self, contexts: Contexts, modalities: Any) -> dict[str, Prompted]:
        """Prompt of every modality, taken apart where it is to be, with its prompt branches computed ahead.

        Do this once per run, not per step: folded contexts come back as they are."""
        folded: dict[str, Prompted] = {}
        for m in modalities:
            context = _of(contexts, m)
            if self.composition is not None and DENOISER_OF[m] == "vision_denoiser" and isinstance(context, Tensor):
                context = self.composition(context)
            folded[m] = self.denoiser(m).fold_context(context)
        return folded

    def reach(self, prompt: Tensor, alignment_guidance: float) -> dict[str, Tensor]:
        """How much of the alignment guidance reaches each output under a prompt (B, n, D): output -> (B,) on the CPU.

        It counts as far as the prompt leaves open what the output shows: outputs that are told what to show agree by themselves, and
        guidance would lead an unknown scene to the known one beside it. Where the prompt says something, it counts `emphasis` times, to
        hold its own beside the guidance by the prompt; in pictures and clips only where one of the facets that they are asked for apart
        is open too. A guidance below 1, which weakens the coupling, reaches all alike."""
        everywhere = torch.ones(len(prompt))
        shares, counts = dict.fromkeys(DENOISER_OF, everywhere), dict.fromkeys(DENOISER_OF, everywhere)
        if alignment_guidance <= 1:
            return shares
        if self.composition is not None:
            unsaid = self.composition.facets.left_open(prompt)
            shares = dict.fromkeys(DENOISER_OF, torch.stack([*unsaid.values()]).amax(dim=0))
            apart = torch.stack([unsaid[name] for name in self.composition.names]).amax(dim=0)
            shares["image"] = apart
            said = 1 - torch.stack([*unsaid.values()]).prod(dim=0)  # (B,)
            counts = {m: said * apart if name == "vision_denoiser" else said for m, name in DENOISER_OF.items()}
        return {m: share * (1 + (self.emphasis.get(m, 1.0) - 1) * counts[m]) for m, share in shares.items()}

    def environment_embeddings(self, latents: Mapping[str, Tensor], timesteps: Tensor) -> dict[str, Tensor]:
        """Environment embedding of every output, each (B, 1, connector_dim), L2-normalised."""
        return {m: self.denoiser(m).environment_embedding(x, timesteps) for m, x in latents.items()}

    def forward(
        self, latents: Mapping[str, Tensor], timesteps: Tensor, contexts: Contexts, *,
        wiring: str = "cross", alignment: float | Tensor = 1.0, alignment_guidance: float = 1.0,
        window: tuple[float, float] = (0.0, 1.0), pairs: Pairs | None = None, only: Collection[str] | None = None,
        push: Tensor | Mapping[str, Tensor] | None = None, spoken: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Predict the noise of all outputs.

        latents: modality -> latent in diffusion space. timesteps: (B,), shared by all outputs.
        contexts: prompt (B, n, context_dim) for all, or modality -> prompt; plain or folded.
        wiring: "cross": the connectors of an output attend to the environment embeddings of all the others (the paper);
        "self": to its own (as published, nothing crosses between outputs); "off": connectors are left out.
        alignment: strength of the connectors, a number or (B,). alignment_guidance g: eps = off + g * (on - off), where `off` is
        without connectors and `on` with them; 1 needs one pass. A single output has no connectors.
        window: part of the run in which outputs listen, see `Coupling`. pairs: (listener, speaker) -> strength in wiring cross.
        Of several speakers of unequal strength, the strongest sets the strength of the connectors; the others get less attention.
        only: outputs whose noise is wanted; the others still speak, their noise is returned as zeros.
        push: share (B,) of the alignment guidance that each sample gets, for all outputs or for each, see `guidance_shares`; all of
        it by default. spoken: modality -> environment embedding (B, 1, connector_dim) of what is given and not denoised here: it is
        heard like an output's, as it is, at every step.
        Raises CoDiError for a modality whose denoiser is not composed and for settings that `Coupling` refuses.
        """
        coupling = Coupling(wiring, alignment, alignment_guidance, *window, pairs or {})
        if not latents:
            raise CoDiError(f"no output asked for; ask for some of {', '.join(DENOISER_OF)}")
        wanted = [m for m in latents if only is None or m in only]
        folded = self.fold_contexts(contexts, wanted)
        strength = coupling.at(timesteps)
        awake = isinstance(strength, Tensor) or strength != 0
        given = spoken or {}
        shares = dict(push) if isinstance(push, Mapping) else dict.fromkeys(wanted, push)
        heard = {m: coupling.heard(m, {**latents, **given}) if awake else {} for m in wanted}
        speakers = {m: x for m, x in latents.items() if m not in given and any(m in of for of in heard.values())}
        embeddings = {**self.environment_embeddings(speakers, timesteps), **given}
        noise = {m: torch.zeros_like(x) for m, x in latents.items()}
        for m in wanted:
            denoiser, x, share = self.denoiser(m), latents[m], shares[m]
            pushed = alignment_guidance != 1 and (share is None or bool(share.any()))
            if not heard[m] or pushed:
                noise[m] = denoiser(x, timesteps, folded[m])
            if heard[m]:
                most = max(heard[m].values())
                environment = _tokens([embeddings[s] for s in heard[m]], [s / most for s in heard[m].values()])
                on = denoiser(x, timesteps, folded[m], environment=environment, alignment=strength if most == 1 else strength * most)
                if pushed:
                    extra = alignment_guidance - 1
                    by = extra if share is None else (extra * share).to(on).view(-1, *[1] * (on.ndim - 1))
                    on = on + by * (on - noise[m])
                noise[m] = on
        return noise


def guidance_shares(with_prompt: Sequence[bool], cfg: float, reach: Tensor | None = None) -> Tensor:
    """Share of the alignment guidance that each sample of a batch gets under classifier-free guidance, (B,) on the CPU.

    Samples without the prompt get none: what they hear is subtracted, and more of it would lead away from what the outputs agree on.
    Those with it get 1 / cfg, so that after eps = u + cfg * (c - u) the guidance counts once: eps + (g - 1) * (c - c_alone).
    reach: factor (B,) of the output, see `JointDenoiser.reach`."""
    shares = torch.tensor([1 / max(cfg, 1.0) if prompted else 0.0 for prompted in with_prompt])
    return shares if reach is None else shares * reach


def _tokens(embeddings: list[Tensor], weights: list[float]) -> Tensor | Weighted:
    """Environment embeddings (B, 1, D) as one context; with weights where they differ."""
    tokens = torch.cat(embeddings, dim=1)
    return tokens if set(weights) == {1.0} else Weighted(tokens, tuple(weights))


def _of(contexts: Contexts, modality: str) -> Prompted:
    if not isinstance(contexts, Mapping):
        return contexts
    if modality not in contexts:
        raise CoDiError(f"no prompt for output {modality!r}; there are prompts for {sorted(contexts)}")
    return contexts[modality]

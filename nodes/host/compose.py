"""Several denoisers in lock-step as one MODEL (paper section 3.4): latent alignment under the stock samplers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ...codi_models.config import DENOISER_OF, MODALITIES, SamplingConfig
from ...codi_models.errors import CoDiError
from ...codi_models.joint import JointDenoiser
from .handle import CoDiHandle
from .latent_model import LatentModel, wrap_sampling
from .lora import MEMBERS, JointPatcher, joint_state_dict
from .parts import modalities_of

WIRINGS = ("cross", "self", "off")
_KEY = "codi_alignment"


@dataclass(frozen=True)
class Alignment:
    """How outputs listen to each other; carried by the MODEL, so that every sampler node sees it.

    wiring: cross (each output attends to all others, the paper), self (to itself, as published), off.
    strength: of the connectors. guidance g: noise = off + g * (on - off)."""

    wiring: str = "cross"
    strength: float = 1.0
    guidance: float = 1.0

    @staticmethod
    def default(sampling: SamplingConfig) -> Alignment:
        """What a model's configuration recommends."""
        return Alignment(sampling.wiring, sampling.alignment, sampling.alignment_guidance)

    def put(self, patcher: Any) -> Any:
        """A clone of a joint MODEL that carries these settings. Raises CoDiError for any other MODEL."""
        if not isinstance(getattr(patcher, "model", None), JointModel):
            raise CoDiError("alignment needs a joint MODEL: give one from Load CoDi (joint) or CoDi Compose")
        if self.wiring not in WIRINGS:
            raise CoDiError(f"unknown wiring {self.wiring!r}: choose one of {', '.join(WIRINGS)}")
        clone = patcher.clone()
        clone.model_options.setdefault("transformer_options", {})[_KEY] = asdict(self)
        return clone


class JointNetwork(nn.Module):
    """Weightless: steps the members' networks together. They stay outside its module tree, the host moves each by itself."""

    codi: CoDiHandle
    joint: JointDenoiser
    components: tuple[str, ...]

    def __init__(self, model: LatentModel, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        object.__setattr__(self, "codi", model.codi)
        object.__setattr__(self, "joint", JointDenoiser(networks, register=False))
        object.__setattr__(self, "components", tuple(networks))
        for component, network in networks.items():  # the keys of a joint MODEL lead to its members' weights
            object.__setattr__(self, component, network)

    def forward(
        self, x: Any, timesteps: Tensor, context: Any = None, control: Any = None, transformer_options: Any = None, **_: Any
    ) -> Any:
        """List of latents in diffusion space -> list of predicted noise, same shapes; one tensor where one was given."""
        parts = x if isinstance(x, list) else [x]
        names = modalities_of([p.shape for p in parts], self.codi.config)
        latents = {n: p.squeeze(-1) if n == "text" else p for n, p in zip(names, parts, strict=True)}
        settings = (transformer_options or {}).get(_KEY) or asdict(Alignment.default(self.codi.config.sampling))
        noise = self.joint(
            latents,
            timesteps,
            context,
            wiring=settings["wiring"],
            alignment=settings["strength"],
            alignment_guidance=settings["guidance"],
        )
        out = [noise[n].unsqueeze(-1) if n == "text" else noise[n] for n in names]
        return out if len(out) > 1 else out[0]


class JointModel(LatentModel):
    """LatentModel of several members."""

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """What patches of a joint MODEL may name: see `JointPatcher`."""
        network: JointNetwork = self.diffusion_model
        return joint_state_dict({c: getattr(network, c) for c in network.components})


def compose(models: Sequence[Any], alignment: Alignment) -> Any:
    """Joint MODEL of one to three denoiser MODELs. Patches on a member (LoRA) stay in force.

    Raises CoDiError for MODELs that are no CoDi denoisers, are given twice, or belong to different models."""
    members: dict[str, Any] = {}
    for patcher in models:
        model = getattr(patcher, "model", None)
        if not isinstance(model, LatentModel) or isinstance(model, JointModel):
            raise CoDiError(f"CoDi Compose takes MODELs from CoDi Denoiser, not {type(model).__name__}")
        component = DENOISER_OF[model.outputs[0]]
        if component in members:
            raise CoDiError(f"two MODELs of the {component} were given to CoDi Compose: it takes each denoiser once")
        members[component] = patcher.clone()
    members = {name: members[name] for name in dict.fromkeys(DENOISER_OF.values()) if name in members}
    if not members:
        raise CoDiError("CoDi Compose needs at least one MODEL from CoDi Denoiser")
    handles = {id(p.model.codi): p.model.codi for p in members.values()}
    if len(handles) > 1:
        raise CoDiError(f"the denoisers of {' and '.join(h.name for h in handles.values())} cannot be composed: load all from one model")
    first = next(iter(members.values())).model
    outputs = [m for m in MODALITIES if DENOISER_OF[m] in members]
    networks = {name: p.model.diffusion_model for name, p in members.items()}
    dtype: torch.dtype = first.compute_dtype
    joint = JointModel(first.codi, outputs, lambda **_: JointNetwork(first, networks), dtype=dtype, device=mm.unet_offload_device())
    patcher = JointPatcher(joint, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
    patcher.set_additional_models(MEMBERS, list(members.values()))
    return alignment.put(wrap_sampling(patcher))

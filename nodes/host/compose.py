"""Several denoisers in lock-step as one MODEL (paper section 3.4): latent alignment under the stock samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ...codi_models.config import DENOISER_OF, MODALITIES, SamplingConfig
from ...codi_models.coupling import Coupling
from ...codi_models.errors import CoDiError
from ...codi_models.joint import JointDenoiser, guidance_shares
from .denoiser import usual_composition
from .handle import CoDiHandle
from .latent_model import LatentModel, wrap_sampling
from .lora import MEMBERS, JointPatcher, joint_state_dict
from .parts import modalities_of

COUPLING = "codi_coupling"
"""Key of transformer_options under which a MODEL carries its Coupling, so that every sampler node sees it."""

ONLY = "codi_only"
"""Key of transformer_options for the modalities whose noise a pass is wanted for; absent: all."""


def coupling_of(model_options: Mapping[str, Any], sampling: SamplingConfig) -> Coupling:
    """How the outputs of a MODEL with these options listen to each other: as set, else as its configuration recommends."""
    carried = (model_options.get("transformer_options") or {}).get(COUPLING)
    return carried or Coupling(sampling.wiring, sampling.alignment, sampling.alignment_guidance)


def couple(patcher: Any, **changes: Any) -> Any:
    """A clone of a joint MODEL with some fields of its Coupling changed. Raises CoDiError for any other MODEL and for unusable values."""
    if not isinstance(getattr(patcher, "model", None), JointModel):
        raise CoDiError("alignment needs a joint MODEL: give one from Load CoDi (joint) or CoDi Compose")
    clone = patcher.clone()
    changed = replace(coupling_of(clone.model_options, clone.model.codi.config.sampling), **changes)
    clone.model_options.setdefault("transformer_options", {})[COUPLING] = changed
    return clone


class JointNetwork(nn.Module):
    """Weightless: steps the members' networks together. They stay outside its module tree, the host moves each by itself."""

    codi: CoDiHandle
    joint: JointDenoiser
    components: tuple[str, ...]
    cfg: float = 1.0  # scale of the run, which the guidance of the alignment is shared out by

    def __init__(self, model: LatentModel, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        object.__setattr__(self, "codi", model.codi)
        object.__setattr__(self, "joint", JointDenoiser(networks, register=False, composition=usual_composition(model.codi),
                                                        emphasis=model.codi.model.emphasis))  # fmt: skip
        object.__setattr__(self, "components", tuple(networks))
        for component, network in networks.items():  # the keys of a joint MODEL lead to its members' weights
            object.__setattr__(self, component, network)

    def forward(
        self,
        x: Any,
        timesteps: Tensor,
        context: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        codi_frames: Tensor | None = None,
        codi_kept: tuple[str, ...] = (),
        codi_spoken: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """List of latents in diffusion space -> list of predicted noise, same shapes; one tensor where one was given.

        codi_frames: prompts of the frames of a clip, (B, F, n, D). codi_kept: outputs that are given, whose noise is not needed (zeros
        are returned); codi_spoken: their environment embeddings, (B, kept, C)."""
        parts = x if isinstance(x, list) else [x]
        names = modalities_of([p.shape for p in parts], self.codi.config)
        latents = {n: _own_form(n, p) for n, p in zip(names, parts, strict=True)}
        spoken = {} if codi_spoken is None else {m: codi_spoken[:, i : i + 1].to(parts[0]) for i, m in enumerate(codi_kept)}
        options = transformer_options or {}
        coupling = coupling_of({"transformer_options": options}, self.codi.config.sampling)
        kinds = options.get("cond_or_uncond") or [0]  # of equal parts of the batch; 1 is without the prompt
        reach = self.joint.reach(context, coupling.guidance)
        prompted = [kind != 1 for kind in kinds for _ in range(len(timesteps) // len(kinds))]
        noise = self.joint(
            latents,
            timesteps,
            {n: codi_frames if n == "video" and codi_frames is not None else context for n in names},
            wiring=coupling.wiring,
            alignment=coupling.strength,
            alignment_guidance=coupling.guidance,
            window=(coupling.start, coupling.end),
            pairs=coupling.pairs,
            only=[n for n in options.get(ONLY, names) if n not in codi_kept],
            spoken=spoken,
            push={n: guidance_shares(prompted, self.cfg, reach[n]) for n in names},  # also where the host asks for both sides one by one
        )
        out = [noise[n].unsqueeze(-1) if n == "text" else noise[n] for n in names]
        return out if len(out) > 1 else out[0]


def _own_form(modality: str, part: Tensor) -> Tensor:
    """A part as the networks take it: text is (B, D, 1) in the host."""
    return part.squeeze(-1) if modality == "text" else part


class JointModel(LatentModel):
    """LatentModel of several members."""

    _spoken: Tensor | None = None  # of the run that is under way

    def begin(self, guider: Any) -> None:
        self.diffusion_model.cfg = float(getattr(guider, "cfg", 1.0))
        self._spoken = None

    def spoken(self, given: Mapping[str, Tensor]) -> Tensor | None:
        if self._spoken is None:  # the host asks once for every CONDITIONING
            parts = {m: _own_form(m, part).to(self.compute_dtype) for m, part in given.items()}
            first = next(iter(parts.values()))
            clean = torch.zeros(len(first), dtype=torch.long, device=first.device)
            joint: JointDenoiser = self.diffusion_model.joint
            self._spoken = torch.cat(list(joint.environment_embeddings(parts, clean).values()), dim=1)
        return self._spoken

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """What patches of a joint MODEL may name: see `JointPatcher`."""
        network: JointNetwork = self.diffusion_model
        return joint_state_dict({c: getattr(network, c) for c in network.components})


def compose(models: Sequence[Any], coupling: Coupling | None = None) -> Any:
    """Joint MODEL of one to three denoiser MODELs, coupled as given or as their model recommends. Patches on a member (LoRA) stay in force.

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
    patcher = wrap_sampling(patcher)
    return patcher if coupling is None else couple(patcher, **vars(coupling))

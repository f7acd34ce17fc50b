"""Several denoisers in lock-step as one MODEL (paper section 3.4): latent alignment under the stock samplers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ...codi_models.alignment import Alignment
from ...codi_models.components import COMPONENTS
from ...codi_models.config import SamplingConfig
from ...codi_models.diffusion import NoiseSchedule
from ...codi_models.errors import CoDiError
from ...codi_models.joint import JointDenoiser
from ...codi_models.modalities import MODALITIES, denoisers_of
from .alignment import aligned, alignment_of
from .block_patches import KNOWN, block_hooks, patched
from .handle import CoDiHandle
from .latent_model import LatentModel
from .lora import MEMBERS, JointPatcher, joint_state_dict
from .model_sampling import own_timesteps
from .parts import host_form, modalities_of, network_form
from .said import say
from .sampling import wrap_sampling
from .streamwise import REMEMBERED
from .targets import TARGETS
from .wrappers import through_wrappers


def sampling_of(patcher: Any) -> SamplingConfig:
    """Defaults of a joint MODEL. Raises CoDiError for any other MODEL."""
    if not isinstance(getattr(patcher, "model", None), JointModel):
        raise CoDiError("alignment needs a joint MODEL: give one from Load CoDi (joint) or CoDi Compose")
    return patcher.model.codi.config.sampling


def align(patcher: Any, **changes: Any) -> Any:
    """A clone of a joint MODEL with some fields of its Alignment changed. Raises CoDiError for any other MODEL and for unusable values."""
    usual, clone = sampling_of(patcher), patcher.clone()
    aligned(clone.model_options, usual, **changes)
    return clone


class JointNetwork(nn.Module):
    """Weightless: steps the members' networks together. They stay outside its module tree, the host moves each by itself."""

    codi: CoDiHandle
    joint: JointDenoiser
    schedule: NoiseSchedule
    snr_scales: dict[str, float]
    components: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, model: LatentModel, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        object.__setattr__(self, "codi", model.codi)
        object.__setattr__(self, "schedule", NoiseSchedule(model.codi.config.diffusion))
        object.__setattr__(self, "snr_scales", model.snr_scales)
        object.__setattr__(self, "joint", JointDenoiser(networks, register=False))
        object.__setattr__(self, "components", tuple(networks))
        object.__setattr__(self, "outputs", tuple(m for m, row in MODALITIES.items() if row.denoiser in networks))
        for component, network in networks.items():  # the keys of a joint MODEL lead to its members' weights
            object.__setattr__(self, component, network)

    def __getattr__(self, name: str) -> Any:
        """Layers that are asked for without a component (bypassed LoRA) are the first member's: the vision denoiser's."""
        found = self.__dict__.get(self.__dict__.get("components", ("",))[0])
        if found is None or name not in found._modules:
            return super().__getattr__(name)
        return found._modules[name]

    @property
    def in_channels(self) -> int:
        """As many as any part has: patches take them all."""
        return max(self.joint.denoiser(m).config.in_channels for m in self.outputs)

    def forward(
        self, x: Any, timesteps: Tensor, context: Any = None, control: Any = None, transformer_options: Any = None, **kw: Any
    ) -> Any:
        """As `step`, through the host's wrappers."""
        return through_wrappers(self.step, x, timesteps, context, control, transformer_options or {}, kw)

    def step(
        self, x: Any, timesteps: Tensor, context: Any, options: dict[str, Any], *,
        codi_frames: Tensor | None = None, codi_given: tuple[str, ...] = (), codi_given_embeddings: Tensor | None = None, **_: Any,
    ) -> Any:  # fmt: skip
        """List of latents at unit variance -> list of predictions, same shapes; one tensor where one was given.

        codi_frames: prompts of the frames of a video, (B, F, n, D). codi_given: outputs that are given, which nothing is predicted for
        (zeros are returned); codi_given_embeddings: their environment embeddings, (B, given, C)."""
        parts = x if isinstance(x, list) else [x]
        names = modalities_of([p.shape for p in parts], self.codi.config)
        latents = {n: network_form(n, p) for n, p in zip(names, parts, strict=True)}
        alignment = alignment_of({"transformer_options": options}, self.codi.config.sampling)
        if alignment.start > 0 or alignment.end < 1:
            alignment = alignment.at(float(timesteps[0]))
        own = {n: own_timesteps(self.schedule, self.snr_scales[n], timesteps, options) for n in names}
        targets = [n for n in options.get(TARGETS, names) if n in latents and n not in codi_given]
        given = {} if codi_given_embeddings is None else {
            m: codi_given_embeddings[:, i : i + 1].to(parts[0]) for i, m in enumerate(codi_given)
        }  # fmt: skip
        given |= self._environment(latents, own, targets, alignment, given, len(options.get("cond_or_uncond") or [0]))
        contexts = {n: codi_frames if n == "video" and codi_frames is not None else context for n in names}
        if patched(options) & KNOWN and any(MODALITIES[n].denoiser != "vision_denoiser" for n in targets):
            say("model patches of blocks act on image and video only: they go to the vision denoiser")
        remembered = options.get(REMEMBERED)
        hooks = {
            n: block_hooks(options, lambda n=n: remembered and remembered.of(n))  # type: ignore[misc]
            for n in targets if MODALITIES[n].denoiser == "vision_denoiser"
        }  # fmt: skip
        predictions = self.joint(latents, own, contexts, alignment=alignment, targets=targets, given=given, hooks=hooks)
        out = [host_form(n, predictions[n] if n in predictions else torch.zeros_like(latents[n])) for n in names]
        return out if len(out) > 1 else out[0]

    def _environment(
        self, latents: Mapping[str, Tensor], timesteps: Mapping[str, Tensor], targets: Collection[str], alignment: Alignment,
        given: Mapping[str, Tensor], sides: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Environment embeddings of what the targets attend to. The host stacks the sides of its guidance, with the same latents in each:
        one side is enough."""
        needed = {s for n in targets for s in alignment.sources(n, {**latents, **given})} & set(latents) - set(given)
        rows = len(next(iter(latents.values()))) // sides
        found = self.joint.environment_embeddings({n: latents[n][:rows] for n in needed}, {n: timesteps[n][:rows] for n in needed})
        return {n: embedding.repeat(sides, 1, 1) for n, embedding in found.items()}


class JointModel(LatentModel):
    """LatentModel of several members."""

    _given: Tensor | None = None  # environment embeddings of the run that is under way

    def begin(self, shapes: Sequence[tuple[int, ...]], options: Mapping[str, Any]) -> None:
        super().begin(shapes, options)
        self._given = None

    def environment_embeddings(self, given: Mapping[str, Tensor]) -> Tensor | None:
        if self._given is None:  # the host asks once for every CONDITIONING
            parts = {m: network_form(m, part).to(self.compute_dtype) for m, part in given.items()}
            first = next(iter(parts.values()))
            clean = torch.zeros(len(first), dtype=torch.long, device=first.device)
            joint: JointDenoiser = self.diffusion_model.joint
            self._given = torch.cat(list(joint.environment_embeddings(parts, clean).values()), dim=1)
        return self._given

    def _published(self, weights: dict[str, Any] | None) -> dict[str, Any]:
        networks = {c: getattr(self.diffusion_model, c) for c in self.diffusion_model.components}
        leads = {c: COMPONENTS[c].published_prefix for c in networks}
        return {leads[c] + key: value for c, network in networks.items() for key, value in network.state_dict().items()}

    def _weights(self, *_: Any, **__: Any) -> dict[str, Any]:
        """What patches of a joint MODEL may name: see `JointPatcher`."""
        network: JointNetwork = self.diffusion_model
        return joint_state_dict({c: getattr(network, c) for c in network.components})


def compose(models: Sequence[Any]) -> Any:
    """Joint MODEL of one to three denoiser MODELs, aligned as their model recommends. Patches on a member (LoRA) stay in force.

    Raises CoDiError for MODELs that are no CoDi denoisers, are given twice, or belong to different models."""
    members: dict[str, Any] = {}
    for patcher in models:
        model = getattr(patcher, "model", None)
        if not isinstance(model, LatentModel) or isinstance(model, JointModel):
            raise CoDiError(f"CoDi Compose takes MODELs from CoDi Denoiser, not {type(model).__name__}")
        component = MODALITIES[model.outputs[0]].denoiser
        if component in members:
            raise CoDiError(f"two MODELs of the {component} were given to CoDi Compose: it takes each denoiser once")
        members[component] = patcher.clone()
    members = {name: members[name] for name in denoisers_of(MODALITIES) if name in members}
    if not members:
        raise CoDiError("CoDi Compose needs at least one MODEL from CoDi Denoiser")
    handles = {id(p.model.codi): p.model.codi for p in members.values()}
    if len(handles) > 1:
        raise CoDiError(f"the denoisers of {' and '.join(h.name for h in handles.values())} cannot be composed: load all from one model")
    first = next(iter(members.values())).model
    outputs = [m for m, row in MODALITIES.items() if row.denoiser in members]
    networks = {name: p.model.diffusion_model for name, p in members.items()}
    dtype: torch.dtype = first.compute_dtype
    joint = JointModel(first.codi, outputs, lambda **_: JointNetwork(first, networks), dtype=dtype, device=mm.unet_offload_device())
    patcher = JointPatcher(joint, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
    patcher.set_additional_models(MEMBERS, list(members.values()))
    return wrap_sampling(patcher)

"""Guidance with a scale for every modality, under the host's custom samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...codi_models.diffusion import rescaled
from ...codi_models.errors import CoDiError
from ...codi_models.joint import JointDenoiser
from .compose import COUPLING, ONLY, coupling_of
from .latent_model import LatentModel


class ModalityGuider(comfy.samplers.CFGGuider):
    """Classifier-free guidance and guidance on the alignment, each in as few passes as its scales need.

    x0 = u + cfg_m (c - u) + (g - 1) r_m (c - alone), for every modality m: c with the prompt, u with the negative one, both coupled;
    alone with the prompt and without coupling; r_m how far the guidance reaches (`JointDenoiser.reach`). A modality with cfg 1 takes no
    part in the pass for u; without coupling, in a step outside of its range, with g = 1 or r_m = 0, there is no pass for `alone`."""

    def __init__(self, patcher: Any, cfg: Mapping[str, float], *, rescale: float, alignment_guidance: float) -> None:
        if not isinstance(getattr(patcher, "model", None), LatentModel):
            raise CoDiError("CoDi Guider needs a MODEL of CoDi: give one from Load CoDi (joint), CoDi Compose or CoDi Denoiser")
        if not 0 <= rescale <= 1:
            raise CoDiError(f"cfg_rescale {rescale} must be between 0 and 1")
        super().__init__(patcher)
        self.scales, self.rescale, self.alignment_guidance = dict(cfg), rescale, alignment_guidance

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None) -> Tensor:
        """Denoised latent, packed like x."""
        options = model_options or {}
        model, positive, negative = self.inner_model, self.conds.get("positive"), self.conds.get("negative")
        shapes = model.latent_shapes or [x.shape]
        names = model.check(shapes)
        coupling = coupling_of(options, model.codi.config.sampling)
        coupled = _with(options, {COUPLING: replace(coupling, guidance=1.0)})
        guided = [n for n in names if self.scales[n] != 1 or options.get("disable_cfg1_optimization")]
        if len(guided) == len(names):
            conds = [positive, negative]
            out = _predict(model, conds, x, timestep, coupled)
        else:
            conds = [positive, negative if guided else None]
            (c,) = _predict(model, [positive], x, timestep, coupled)
            u = _predict(model, [negative], x, timestep, _with(coupled, {ONLY: guided}))[0] if guided else c
            out = [c, torch.where(_each(shapes, [n in guided for n in names], x) > 0, u, c)]
        scale = _each(shapes, [self.scales[n] for n in names], x)
        for function in options.get("sampler_pre_cfg_function", []):
            given = {"conds": conds, "conds_out": out, "cond_scale": scale, "timestep": timestep, "input": x, "sigma": timestep}
            out = function({**given, "model": model, "model_options": options})
        c = out[0]
        strength = coupling.at(model.model_sampling.timestep(timestep))
        awake = isinstance(strength, Tensor) or strength != 0
        listening = [n for n in names if awake and coupling.heard(n, names)] if self.alignment_guidance != 1 else []
        push = self._push(model, positive) if listening else {}
        listening = [n for n in listening if bool(push[n].any())]
        alone = None
        if listening:
            apart = _with(options, {COUPLING: replace(coupling, wiring="off"), ONLY: listening})
            (alone,) = _predict(model, [positive], x, timestep, apart)

        def finish(args: dict) -> Tensor:
            denoised = args["denoised"]
            if alone is not None:
                denoised = denoised + _each(shapes, [push[n] if n in listening else 0.0 for n in names], x) * (c - alone)
            return _rescaled(x, denoised, c, shapes, self.rescale) if self.rescale else denoised

        after = {**options, "sampler_post_cfg_function": [finish, *options.get("sampler_post_cfg_function", [])]}
        return comfy.samplers.cfg_function(model, c, out[1], scale, x, timestep, model_options=after, cond=positive, uncond=conds[1])

    def _push(self, model: LatentModel, conds: list) -> dict[str, Tensor]:
        """(g - 1) r_m of every output, (B,) or (1,); of several prompts, in areas or parts of the run, the one that it reaches farthest."""
        joint: JointDenoiser = model.diffusion_model.joint
        prompts = [cond["model_conds"]["c_crossattn"].cond for cond in conds]
        each = [joint.reach(prompt, self.alignment_guidance) for prompt in prompts]
        reach = {n: torch.stack(torch.broadcast_tensors(*[shares[n] for shares in each])).amax(dim=0) for n in model.outputs}
        return {n: (self.alignment_guidance - 1) * share for n, share in reach.items()}


def _with(options: dict, changes: dict[str, Any]) -> dict:
    """Model options with other transformer options; the host's own dictionaries stay as they are."""
    return {**options, "transformer_options": {**(options.get("transformer_options") or {}), **changes}}


def _predict(model: Any, conds: list, x: Tensor, timestep: Tensor, options: dict) -> list[Tensor]:
    if (function := options.get("sampler_calc_cond_batch_function")) is not None:
        return function({"conds": conds, "input": x, "sigma": timestep, "model": model, "model_options": options})
    return comfy.samplers.calc_cond_batch(model, conds, x, timestep, options)


def _each(shapes: list, values: Sequence[float | Tensor], x: Tensor) -> Tensor:
    """One number for every element of each part, or one for each sample (B,), shaped to multiply the packed x."""
    if len(shapes) == 1:
        return x.new_tensor(float(values[0]))
    counts = [torch.Size(shape[1:]).numel() for shape in shapes]
    columns = [torch.as_tensor(value).to(x).view(-1, 1, 1) for value in values]
    return torch.cat([column.expand(len(x), 1, count) for column, count in zip(columns, counts, strict=True)], dim=-1)


def _rescaled(x: Tensor, denoised: Tensor, prompted: Tensor, shapes: list, share: float) -> Tensor:
    """Denoised latent whose noise is brought back towards the spread it has without guidance, part by part."""
    parts = [comfy.utils.unpack_latents(t, shapes) if len(shapes) > 1 else [t] for t in (x - denoised, x - prompted)]
    done = [rescaled(guided, plain, share) for guided, plain in zip(*parts, strict=True)]
    return x - (comfy.utils.pack_latents(done)[0] if len(shapes) > 1 else done[0])

"""Guidance with a scale for every modality, under the host's custom samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...codi_models.errors import CoDiError
from .alignment import predict
from .parts import weighted
from .targets import TARGETS, with_options


class ModalityGuider(comfy.samplers.CFGGuider):
    """Classifier-free guidance in as few passes as its scales need. rescale: takes the place of the MODEL's own.

    A modality with cfg 1 takes no part in the unconditional pass."""

    def __init__(self, patcher: Any, cfg: Mapping[str, float], *, rescale: float) -> None:
        if not 0 <= rescale <= 1:
            raise CoDiError(f"cfg_rescale {rescale} must be between 0 and 1")
        super().__init__(patcher)
        self.scales, self.cfg_rescale = dict(cfg), rescale

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None) -> Tensor:
        """Denoised latent, packed like x, with classifier-free guidance."""
        options = model_options or {}
        model, positive, negative = self.inner_model, self.conds.get("positive"), self.conds.get("negative")
        shapes = model.latent_shapes or [x.shape]
        names = model.check(shapes)
        guided = [n for n in names if self.scales[n] != 1 or options.get("disable_cfg1_optimization")]
        conds = [positive, negative if guided else None]
        if len(guided) == len(names):
            out = predict(model, conds, x, timestep, options)
        else:
            (c,) = predict(model, [positive], x, timestep, options)
            u = predict(model, [negative], x, timestep, with_options(options, **{TARGETS: guided}))[0] if guided else c
            out = [c, torch.where(weighted(shapes, [float(n in guided) for n in names], x) > 0, u, c)]
        scale = weighted(shapes, [self.scales[n] for n in names], x)
        for function in options.get("sampler_pre_cfg_function", []):
            given = {"conds": conds, "conds_out": out, "cond_scale": scale, "timestep": timestep, "input": x, "sigma": timestep}
            out = function({**given, "model": model, "model_options": options})
        return comfy.samplers.cfg_function(
            model, out[0], out[1], scale, x, timestep, model_options=options, cond=positive, uncond=conds[1]
        )  # fmt: skip

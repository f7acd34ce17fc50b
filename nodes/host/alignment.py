"""Latent alignment of a joint MODEL: its settings travel on the MODEL, and its guidance counts once under every guider of the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import comfy.utils
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...codi_models.alignment import Alignment
from ...codi_models.config import SamplingConfig
from ...codi_models.guidance import alignment_term, rescaled
from .parts import weighted
from .streamwise import REMEMBERED, streamwise
from .targets import TARGETS, with_options

ALIGNMENT = "codi_alignment"
"""Key of transformer_options under which a MODEL carries its Alignment, so that every sampler node sees it."""


def alignment_of(model_options: Mapping[str, Any], sampling: SamplingConfig) -> Alignment:
    """Alignment of a MODEL with these options: as set, else as its configuration recommends."""
    carried = (model_options.get("transformer_options") or {}).get(ALIGNMENT)
    return carried or Alignment(sampling.wiring, sampling.alignment, sampling.alignment_guidance, combine=sampling.alignment_combine)


def predict(model: Any, conds: list, x: Tensor, timestep: Tensor, options: dict) -> list[Tensor]:
    """The host's prediction of clean latents, one for each CONDITIONING."""
    if (function := options.get("sampler_calc_cond_batch_function")) is not None:
        asked = [*conds, *[None] * (2 - len(conds))]  # such functions expect both sides
        args = {"conds": asked, "input": x, "sigma": timestep, "model": model, "model_options": options}
        return list(function(args))[: len(conds)]
    return comfy.samplers.calc_cond_batch(model, conds, x, timestep, options)


def around_predict_noise(executor: Any, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None) -> Tensor:
    """PREDICT_NOISE wrapper: adds (g - 1) (c - c_off) to what a guider makes of its own passes, whatever that is, and rescales the sum.

    c is caught on its way from the network to the guider, so only c_off costs a pass, of the outputs that attend to others."""
    guider, options = executor.class_obj, model_options or {}
    model, positive = guider.inner_model, guider.conds.get("positive")
    shapes = model.latent_shapes or [x.shape]
    options = streamwise(model, with_options(options, **{REMEMBERED: model.remembered}), guider.model_options, x, timestep)
    alignment = model.alignment_at(timestep, options)
    names = model.check(shapes)
    rescale = getattr(guider, "cfg_rescale", model.codi.config.sampling.cfg_rescale)
    targets = [] if alignment.guidance == 1 else [m for m in names if alignment.sources(m, names)]
    if positive is None or not (targets or rescale):
        return executor(x, timestep, options, seed)
    off = with_options(options, **{ALIGNMENT: alignment.off()})
    if targets and alignment.guidance == 0 and _is_conditional_alone(guider, options):
        return executor(x, timestep, off, seed)
    caught: list[Tensor] = []

    def catch(inner: Any, model: Any, conds: list, *rest: Any, **more: Any) -> list[Tensor]:
        predictions = inner(model, conds, *rest, **more)
        caught.extend(part for cond, part in zip(conds, predictions, strict=True) if cond is positive)
        return predictions

    watched = create_model_options_clone(options)
    comfy.patcher_extension.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "codi", catch, watched, is_model_options=True)
    guided = executor(x, timestep, watched, seed)
    c = caught[0] if caught else predict(model, [positive], x, timestep, options)[0]
    if targets:
        (c_off,) = predict(model, [positive], x, timestep, with_options(off, **{TARGETS: targets}))
        guided = guided + weighted(shapes, [float(m in targets) for m in names], x) * alignment_term(c, c_off, alignment.guidance)
    return _rescaled(guided, c, x, shapes, rescale) if rescale else guided


def _rescaled(guided: Tensor, c: Tensor, x: Tensor, shapes: Sequence[tuple[int, ...]], fraction: float) -> Tensor:
    """Clean latents packed like x, the spread of each part's noise brought back towards that of c."""
    parts = [comfy.utils.unpack_latents(t, shapes) if len(shapes) > 1 else [t] for t in (x - guided, x - c)]
    done = [rescaled(noise, plain, fraction) for noise, plain in zip(*parts, strict=True)]
    return x - (comfy.utils.pack_latents(done)[0] if len(shapes) > 1 else done[0])


def _is_conditional_alone(guider: Any, options: Mapping[str, Any]) -> bool:
    """Whether a guider makes nothing of the unconditional side: then c has weight 0 at guidance 0, and c_off takes its place."""
    if options.get("disable_cfg1_optimization"):
        return False
    if (scales := getattr(guider, "scales", None)) is not None:  # our own guider's
        return all(scale == 1 for scale in scales.values())
    return type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise and math.isclose(guider.cfg, 1.0)


def aligned(model_options: dict[str, Any], sampling: SamplingConfig, **changes: Any) -> None:
    """Change some fields of the Alignment that model options carry, in place. Raises CoDiError for unusable values."""
    changed = replace(alignment_of(model_options, sampling), **changes)
    model_options.setdefault("transformer_options", {})[ALIGNMENT] = changed

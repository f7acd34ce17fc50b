"""Alignment through the prompt encoders (wiring `prompt`) under the host's samplers: see `codi_models.prompt_alignment`.

What the others show is read off each prediction that a guider makes, and goes to the network beside the user's prompt, with the positive
CONDITIONING alone. The encoders and autoencoders that read are additional models of the MODEL: the host counts and loads them with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.conds
import comfy.patcher_extension
import comfy.utils
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...codi_models.alignment import Alignment
from ...codi_models.prompt_alignment import PromptAlignment, share
from ...codi_models.reading import LatentReader
from .handle import CoDiHandle
from .parts import network_form

HEARD, SHARE = "codi_heard", "codi_heard_share"
"""Keys of what the network gets: points (B, parts, D) that each part hears, and their share of the prompt (B, parts, 1), 0 for none."""

_READERS = "codi_readers"
_KEY = "codi_heard"


def ready(patcher: Any, codi: CoDiHandle, alignment: Alignment, names: Sequence[str]) -> PromptAlignment | None:
    """What a run of these outputs hears, where its alignment is one through prompts; `patcher` then takes the readers along."""
    patcher.remove_additional_models(_READERS)
    if alignment.wiring != "prompt" or alignment.disabled or len(names) < 2:
        return None
    needed = dict.fromkeys(component for name in names for component in LatentReader.components(name))
    patcher.set_additional_models(_READERS, [codi.model.patcher(component) for component in needed])
    return PromptAlignment(LatentReader(codi.model))


def telling(model: Any, positive: Any, alignment: Alignment, timestep: Tensor) -> Callable[[dict], dict]:
    """Turns model options into those with which the positive CONDITIONING brings what each part hears, and any other nothing."""
    heard: PromptAlignment = model.heard
    names = model.check(model.latent_shapes)
    points = {m: heard.heard(m, alignment) for m in names}
    if not (known := [p for p in points.values() if p is not None]):
        return lambda options: options
    told = torch.cat([torch.zeros_like(known[0]) if (p := points[m]) is None else p for m in names], dim=1)  # (B, parts, D)
    hearing = told.new_tensor([points[m] is not None for m in names]).view(1, -1, 1).expand(len(told), -1, -1)
    part = hearing * share(alignment, float(model.model_sampling.timestep(timestep).flatten()[0])).to(told)
    none = torch.zeros_like(part)

    def tell(inner: Any, model: Any, conds: list, *rest: Any, **more: Any) -> list[Tensor]:
        return inner(model, [_with(cond, told, part if cond is positive else none) for cond in conds], *rest, **more)

    def aligning(options: dict) -> dict:
        watched = create_model_options_clone(options)
        comfy.patcher_extension.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _KEY, tell, watched, is_model_options=True)
        return watched

    return aligning


def _with(conds: Any, told: Tensor, part: Tensor) -> Any:
    added = {HEARD: comfy.conds.CONDRegular(told), SHARE: comfy.conds.CONDRegular(part)}
    return conds and [{**cond, "model_conds": {**cond["model_conds"], **added}} for cond in conds]


def note(model: Any, packed: Tensor, alignment: Alignment) -> None:
    """Read the guided prediction of a step, a latent as the sampler has it."""
    shapes = model.latent_shapes
    parts = comfy.utils.unpack_latents(packed, shapes)
    clean = {m: network_form(m, part) / model.snr_scales[m] for m, part in zip(model.check(shapes), parts, strict=True)}
    model.heard.update({m: part.float() for m, part in clean.items()}, alignment)

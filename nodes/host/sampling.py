"""What surrounds a whole run of a CoDi MODEL: shapes, checks, what is kept, and the parts in reach of previews."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...codi_models.errors import CoDiError
from .alignment import around_predict_noise
from .block_patches import OVERRIDE
from .latent_model import LatentModel
from .model_sampling import ShiftedSampling
from .parts import modalities_of
from .said import forget, say

_READ = {"patches", "patches_replace", "wrappers", "callbacks", "sample_sigmas", OVERRIDE}  # transformer_options


def around_sampling(
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Any = None,
    callback: Any = None,
    *rest: Any,
    **kw: Any,
) -> Tensor:
    """OUTER_SAMPLE wrapper: tells the model the shapes of the packed parts, and refuses what would fail obscurely later."""
    guider, shapes = executor.class_obj, kw.get("latent_shapes") or [latent_image.shape]
    model = guider.model_patcher.model
    model.check(shapes)
    _check_patches(model, guider)
    model.begin(shapes, guider.model_options)
    _check_room(model, noise.shape, guider.model_patcher.load_device)
    if any("area" in c or "mask" in c for conds in guider.conds.values() for c in conds):
        raise CoDiError("CONDITIONING with an area or a mask cannot be used with CoDi: its prompts are one vector for the whole output")
    if noise.shape != latent_image.shape and not torch.any(noise):
        noise = torch.zeros_like(latent_image)  # hosts before 0.32 make "no noise" for the first part only
    if denoise_mask is not None and not torch.any(noise):
        noise = _noise_of_kept(latent_image, denoise_mask, shapes, kw.get("seed", rest[1] if len(rest) > 1 else None))
    to_the_end = float(sigmas[-1]) == 0  # asked before sampling: uni_pc overwrites the last sigma
    try:
        out = executor(noise, latent_image, sampler, sigmas, denoise_mask, _showing(callback, model, shapes), *rest, **kw)
    finally:
        model.end()
    if denoise_mask is not None:  # some samplers leave kept parts off by up to a tenth; where noise is left, the next pass keeps them
        mask, given = denoise_mask.to(out), latent_image.to(out)
        out = torch.where(mask == 0, given, out * mask + given * (1 - mask) if to_the_end else out)
    if not bool(torch.isfinite(out).all()):
        raise CoDiError("the latents became infinite or NaN while sampling: lower cfg or the alignment, or load the model as fp32")
    return out


def _noise_of_kept(latent: Tensor, mask: Tensor, shapes: Sequence[tuple[int, ...]], seed: int | None) -> Tensor:
    """Noise of a pass that adds none, (B, 1, N) as the latent: none where it generates, for there the pass before left some.

    What is kept comes clean from pass to pass, and is shown to the networks at each noise level as in a single pass of that seed."""
    parts = comfy.utils.unpack_latents(latent, shapes) if len(shapes) > 1 else [latent]
    with torch.random.fork_rng(devices=[]):
        drawn = [comfy.sample.prepare_noise(NestedTensor(parts) if len(parts) > 1 else latent, seed or 0)]
    drawn = list(drawn[0].unbind()) if drawn[0].is_nested else drawn
    noise = comfy.utils.pack_latents(drawn)[0] if len(shapes) > 1 else drawn[0]
    return torch.where(mask.to(noise) == 0, noise, torch.zeros_like(noise)).to(latent)


def _check_patches(model: LatentModel, guider: Any) -> None:
    """Says which options of the MODEL nothing reads. Raises CoDiError for noise levels of another model where ours have shifts."""
    forget()
    own = guider.model_patcher.get_model_object("model_sampling")  # the host replaces it only when it loads the model
    if model.codi.config.diffusion.shifts and not isinstance(own, ShiftedSampling):
        raise CoDiError(
            f"the noise levels of {model.codi.name} cannot be replaced: each of its outputs has its own. Take the ModelSampling node out"
        )
    told = guider.model_options.get("transformer_options") or {}
    foreign = any(key != "codi" for kind in (told.get("wrappers") or {}).values() for key in kind)
    unread = [key for key in told if key not in _READ and not key.startswith("codi_")]
    if unread and not foreign:
        say(f"the MODEL's options {', '.join(unread)} have no effect: nothing in CoDi reads them, they are made for another network")


def _check_room(model: LatentModel, shape: Sequence[int], device: torch.device) -> None:
    """Raises CoDiError where one call of the network would not fit the machine. A GPU tells by itself, a processor is killed."""
    if mm.is_device_cpu(device):
        needed, memory = model.memory_required(shape), mm.get_total_memory(device)
        if needed > memory:
            raise CoDiError(
                f"sampling {shape[0]} samples of this size at once takes about {needed / 1e9:.0f} GB, and this machine has "
                f"{memory / 1e9:.0f}: use smaller batches (CoDi Select from Batch), fewer frames or a smaller size"
            )


def _showing(callback: Any, model: LatentModel, shapes: Sequence[tuple[int, ...]]) -> Any:
    """The callback, with all parts of the sampler's guess in reach of the previewer: the host hands it the first part only."""
    if callback is None:
        return None

    def step(number: int, x0: Tensor, x: Tensor, total: int) -> None:
        parts = comfy.utils.unpack_latents(x0, shapes) if len(shapes) > 1 else [x0]
        names = modalities_of([p.shape for p in parts], model.codi.config)
        model.seen = [part / model.snr_scales[m] for m, part in zip(names, parts, strict=True)]
        try:
            callback(number, x0, x, total)
        finally:
            model.seen = None

    return step


def wrap_sampling(patcher: Any) -> Any:
    """Adds our wrappers to a patcher, once."""
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "codi", around_sampling)
    patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "codi", around_predict_noise)
    return patcher

"""The host's wrappers of a diffusion model (EasyCache and its like) around CoDi's networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.utils
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from .said import say
from .targets import TARGETS


def through_wrappers(
    step: Callable[..., Any], x: Any, timesteps: Tensor, context: Any, control: Any, options: dict[str, Any], more: dict[str, Any]
) -> Any:
    """`step(x, timesteps, context, options, **more)` inside the wrappers, which see the parts of a joint latent packed, (B, 1, N).

    Passes of some outputs only are left alone: wrappers that remember what a CONDITIONING led to would take them for those of a run."""
    if control is not None:
        say("a ControlNet has no effect: CoDi's networks take none")
    wrappers = [] if TARGETS in options else get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
    if not wrappers:
        return step(x, timesteps, context, options, **more)
    joint = isinstance(x, list) and len(x) > 1
    packed, shapes = comfy.utils.pack_latents(x) if joint else (x[0] if isinstance(x, list) else x, [])

    def inner(x: Tensor, t: Tensor, context: Any = None, y: Any = None, control: Any = None, options: Any = None, **kw: Any) -> Tensor:
        made = step(comfy.utils.unpack_latents(x, shapes) if joint else x, t, context, options or {}, **kw)
        return comfy.utils.pack_latents(made)[0] if joint else made

    executor = WrapperExecutor.new_class_executor(inner, getattr(step, "__self__", None), wrappers)
    made = executor.execute(packed, timesteps, context, None, control, options, **more)
    return comfy.utils.unpack_latents(made, shapes) if joint else made

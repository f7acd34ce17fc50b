"""What guidance leads away from where nothing is connected as negative: as in a run without a host, each kind of prompt has its own."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ...codi_models.conditioning import absent, encode_prompt
from .handle import CoDiHandle

UNCOND = "codi_uncond"
"""Key of CONDITIONING for what guidance leads away from, (1, 1, D): a prompt's own, or the mixture of those of its parts."""
_TIMES = ("start_percent", "end_percent")


def uncond(codi: CoDiHandle, kind: str) -> Tensor:
    """The embedding (1, 1, D) of no prompt of this kind, see `conditioning.absent`; encoded once while the model is open."""
    prompt = absent(codi.model, kind)
    if prompt.kind not in codi.unconds:
        codi.unconds[prompt.kind] = encode_prompt(codi.model, prompt).to(mm.intermediate_device())
    return codi.unconds[prompt.kind]


def marked(codi: CoDiHandle, prompt: Tensor, kind: str) -> list:
    """CONDITIONING of a prompt (B, 1, D) that knows what guidance leads away from; where all kinds share that, the sampler knows."""
    return [[prompt, {} if codi.model.space.means else {UNCOND: uncond(codi, kind)}]]


def negative_of(codi: CoDiHandle, positive: Any) -> list:
    """What guidance leads away from, entry by entry; the empty text where an entry does not tell, as of nodes of others."""
    entries = []
    for _, extra in positive:
        own = extra.get(UNCOND)
        times = {key: extra[key] for key in _TIMES if key in extra}
        entries.append([uncond(codi, "text") if own is None else own, times])
    return entries

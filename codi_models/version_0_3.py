"""Names of version 0.3 and before, where model folders, manifests and command lines still use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SETTINGS = {"order": "schedule", "denoise": "strength", "alignment_pairs": "alignment_directions"}
_SAMPLERS = {
    "ddpm": ("euler_ancestral", "sgm_uniform"),
    "ddim_trailing": ("ddim", "sgm_uniform"),
    "dpmpp_2m_karras": ("dpmpp_2m", "karras"),
    "unipc": ("dpmpp_2m", "sgm_uniform"),
}
"""Former sampler -> sampler and scheduler; of these alone, the name told the noise levels too."""

_COMPONENTS = {"picture_autoencoder": "image_autoencoder", "sound_autoencoder": "audio_autoencoder"}
_DROPPED = ("alignment_emphasis", "cfg_each", "composition", "facets", "facets_from")


def schedule(order: Any) -> Any:
    """Stages of an order of outputs. One in parentheses was made even where it was not asked for, which no schedule does any more."""
    if not isinstance(order, str):
        return order
    return "sequential" if order.strip() == "in turn" else order.replace("(", "").replace(")", "")


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run by today's names; `composition` has no effect any more. Those of today stay as they are."""
    found = {_SETTINGS.get(name, name): value for name, value in given.items() if name != "composition"}
    if "schedule" in found:
        found["schedule"] = schedule(found["schedule"])
    sampler = found.get("sampler")
    if isinstance(sampler, str) and sampler in _SAMPLERS:
        found["sampler"], scheduler = _SAMPLERS[sampler]
        found["scheduler"] = found.get("scheduler") or scheduler
    return found


def config(data: Any) -> Any:
    """The content of a config.json by today's names; what is none comes back as it is."""
    if not isinstance(data, dict):
        return data
    data = {_COMPONENTS.get(name, name): value for name, value in data.items()}
    if isinstance(given := data.get("sampling"), dict):
        sampling = settings({name: value for name, value in given.items() if name not in _DROPPED})
        if sampling.get("sampler", "ddim") != "ddim":
            sampling.setdefault("scheduler", "sgm_uniform")  # what all but the published sampler ran with
        data["sampling"] = sampling
    return data

"""A model folder of codi-mini's sizes with synthetic weights in which every path takes part (fresh networks predict zero)."""

import torch
from codi.codi_models.bounce_world.world import ALL_CAPTIONS
from codi.codi_models.components import save_component
from codi.codi_models.model import CoDi
from codi.codi_models.parity.recipe import fill
from small import small_config


def random_model(folder):
    """Write the folder; returns it."""
    model = CoDi.create(small_config(), folder, captions=ALL_CAPTIONS)
    for name in ("vision_denoiser", "audio_denoiser", "text_denoiser", "clip"):
        save_component(name, fill(model.component(name), "random model"), model.config, folder)
    return folder


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Distance of two sets of weights as a whole: a single one whose gradient is all rounding may move by a step either way."""
    return torch.stack([(value.float() - second[key].float()).norm() for key, value in first.items()]).norm().item()

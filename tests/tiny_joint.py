"""A joint denoiser of next to no layers, drawn at random, and latents and prompts for it."""

from __future__ import annotations

from typing import Any

import torch
from codi.codi_models.denoisers.unet2d import UNet2D
from codi.codi_models.denoisers.unet_text import TextUNet
from codi.codi_models.joint import JointDenoiser
from host.tiny import tiny_config
from torch import Tensor, nn

CONFIG = tiny_config()
SHAPES = {"video": (4, 3, 8, 8), "image": (4, 8, 8), "text": (64,), "audio": (8, 8, 8)}
TIME = torch.tensor([500, 500])


def tiny_joint() -> JointDenoiser:
    """Every path of it takes part."""
    nets: dict[str, Any] = {
        "vision_denoiser": UNet2D(CONFIG.vision_denoiser),
        "audio_denoiser": UNet2D(CONFIG.audio_denoiser),
        "text_denoiser": TextUNet(CONFIG.text_denoiser),
    }
    generator = torch.Generator().manual_seed(3)
    for net in nets.values():
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        net.eval().requires_grad_(False)
    return JointDenoiser(nets)


def latents(*names: str, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Noise of each output's shape."""
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.randn(batch, *SHAPES[m], generator=generator) for m in names}


def prompt(*shape: int, batch: int = 2, seed: int = 1) -> Tensor:
    """(B, *shape, 128), unit length."""
    return nn.functional.normalize(torch.randn(batch, *shape, 128, generator=torch.Generator().manual_seed(seed)), dim=-1)

"""What latents show, as points of the shared space: decoded as far as an encoder needs it, and read."""

from __future__ import annotations

import torch
from torch import Tensor

from .encoders.from_mel import power_mel
from .encoders.preprocess import clip_image, clip_video
from .encoders.tokenizer import encode_prompts
from .latents import decode_logmel, decode_pixels, decode_text
from .modalities import MODALITIES
from .model import CoDi


class LatentReader:
    """Latents (B, ...) of a modality in diffusion space -> points (B, 1, D), unit length. Sounds are read without the vocoder."""

    def __init__(self, model: CoDi) -> None:
        self.model = model

    @staticmethod
    def components(modality: str) -> list[str]:
        """Networks that reading takes."""
        return [MODALITIES[modality].autoencoder, MODALITIES[modality].encoder]

    @torch.inference_mode()
    def __call__(self, modality: str, latents: Tensor) -> Tensor:
        model = self.model
        if modality == "text":
            points = encode_prompts(model.clip, model.clip_tokenizer, decode_text(model, latents, range(len(latents))))
        elif modality == "audio":
            logmel = torch.cat(list(decode_logmel(model, latents)))
            points = model.clap.encode_decibels(power_mel(logmel, model.config.mel, model.config.clap).to(model.dtype))
        else:
            pixels, size = decode_pixels(model, latents), model.config.clip.image_size
            if modality == "image":
                points = model.clip.encode_image(clip_image(pixels, size).to(model.device, model.dtype))
            else:
                points = model.clip.encode_video(clip_video(pixels, size).to(model.device, model.dtype))
        return model.space.align(points.float(), modality)

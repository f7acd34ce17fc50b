"""Media to latents: the counterpart of decoding.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .encoders.preprocess import resample, resize_clip, rgb, spread
from .model import CoDi
from .prompts import Prompt

ENCODERS = {"image": "picture_autoencoder", "video": "picture_autoencoder", "audio": "sound_autoencoder", "text": "text_autoencoder"}
"""Component that makes the latent of a modality."""


@torch.inference_mode()
def encode_media(model: CoDi, prompt: Prompt) -> Tensor:
    """The latent of a read prompt (see `Prompt`) in diffusion space, float32, of the model's own sizes, without batch axis:
    image (C, h, w), video (C, F, h, w), audio (C, T, M), text (D,).

    Pictures and frames are cut to their middle square; of a clip `frames` are taken, the last repeated where it has fewer; sound of
    any rate is resampled, then cut or filled up with silence. Raises CoDiError for values that are no such media."""
    config = model.config
    value: Any = prompt.value
    device, dtype = model.device, model.dtype
    if prompt.kind == "text":
        latent = model.text_autoencoder.encode(model.text_tokenizers.encode([str(value)]).to(device))
        return latent[0].float() * config.text_autoencoder.scale
    if prompt.kind == "audio":
        wave, rate = value
        samples = config.mel.frames * config.mel.hop_length
        wave = resample(wave[None].float(), int(rate), config.mel.sample_rate)[:, :samples]
        wave = torch.nn.functional.pad(wave, (0, samples - wave.shape[1]))
        return model.sound_autoencoder.encode(wave.to(device))[0].float() * config.sound_autoencoder.scale
    size = config.sampling.image_size if prompt.kind == "image" else config.sampling.video_size
    frames = value if prompt.kind == "video" else value[None]
    frames = resize_clip(rgb(frames, "clip"), size)  # (F, 3, H, W)
    if prompt.kind == "video":
        count = config.sampling.frames
        frames = spread(frames[None], count)[0]
        frames = torch.cat([frames, frames[-1:].expand(count - len(frames), -1, -1, -1)])
        pixels = frames.transpose(0, 1)[None]  # (1, 3, F, H, W)
    else:
        pixels = frames
    latent = model.picture_autoencoder.encode((pixels * 2 - 1).to(device, dtype))
    return latent[0].float() * config.picture_autoencoder.scale

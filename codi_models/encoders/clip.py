"""CLIP (Radford et al. 2021) of the transformers library, its vision tower extended to video (paper section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ..config import CLIPConfig
from ..errors import CoDiError
from ..libraries import Borrowed, building
from .clip_temporal import TemporalModule


def library_config(config: CLIPConfig) -> transformers.CLIPConfig:
    """The library's configuration of both towers."""
    towers = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=config.projection_dim)
    text = dict(
        vocab_size=config.vocab_size, hidden_size=config.text_dim, intermediate_size=config.text_mlp,
        num_hidden_layers=config.text_layers, num_attention_heads=config.text_heads, max_position_embeddings=config.text_positions,
        bos_token_id=config.vocab_size - 2, eos_token_id=config.vocab_size - 1, pad_token_id=config.vocab_size - 1,
    )  # fmt: skip
    vision = dict(
        hidden_size=config.vision_dim, intermediate_size=config.vision_mlp, num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads, image_size=config.image_size, patch_size=config.patch_size,
    )  # fmt: skip
    return transformers.CLIPConfig(text_config=text | towers, vision_config=vision | towers, projection_dim=config.projection_dim)


class VideoLayer(nn.Module):
    """A layer of the library's vision tower that attends along time between its own attention and its MLP."""

    def __init__(self, layer: Any, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.layer_norm1 = layer.self_attn, layer.layer_norm1
        self.mlp, self.layer_norm2 = layer.mlp, layer.layer_norm2
        self.temporal_self_attn = TemporalModule(dim, heads)

    def forward(self, x: Tensor, frames: int | None) -> Tensor:
        """Tokens (B * frames, T, C), the frames of a clip next to each other, to the same; no temporal module where None."""
        x = x + self.self_attn(self.layer_norm1(x))[0]
        if frames is not None:
            tokens, dim = x.shape[1:]
            clip = x.view(-1, frames, tokens, dim).transpose(1, 2).reshape(-1, frames, dim)  # (B * T, F, C)
            x = self.temporal_self_attn(clip).view(-1, tokens, frames, dim).transpose(1, 2).reshape(-1, tokens, dim)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(Borrowed):
    """Prompts of text, image and video as unit vectors (B, 1, D) of the shared space.

    Weights have the library's names, which are those of the published checkpoint below `clip.model.`; every layer of the vision
    tower has a module `temporal_self_attn` besides. `operations` are not used: the towers are the library's."""

    def __init__(self, config: CLIPConfig, *, operations: Any = None, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        self.config = config
        with building(self, dtype, device):
            clip = transformers.CLIPModel(library_config(config))
            self.logit_scale = clip.logit_scale  # log of 1 / temperature
            self.text_model, self.vision_model = clip.text_model, clip.vision_model
            self.visual_projection, self.text_projection = clip.visual_projection, clip.text_projection
            layers = self.vision_model.encoder.layers
            for i, layer in enumerate(layers):
                layers[i] = VideoLayer(layer, config.vision_dim, config.vision_heads)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids (B, T), T <= text_positions, each row with an end token, to (B, 1, D)."""
        return F.normalize(self.text_projection(self.text_features(ids)), dim=-1)[:, None]

    def text_features(self, ids: Tensor) -> Tensor:
        """Token ids as for `encode_text` to what is projected, (B, C)."""
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.text_positions:
            raise CoDiError(f"CLIP text ids have shape {tuple(ids.shape)}; it takes (batch, 1..{self.config.text_positions})")
        tokens = self.text_model(input_ids=ids).last_hidden_state  # (B, T, C)
        # The end token has the largest id. The layers are causal, so what follows its first occurrence changes nothing.
        return tokens[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]

    def encode_image(self, pixels: Tensor) -> Tensor:
        """CLIP-normalised pixels (B, 3, S, S) to (B, 1, D)."""
        if pixels.ndim != 4:
            raise CoDiError(f"CLIP image pixels have shape {tuple(pixels.shape)}; it takes (batch, 3, height, width)")
        return self._encode_frames(pixels, None)

    def encode_video(self, frames: Tensor, *, still_as_image: bool = True) -> Tensor:
        """CLIP-normalised frames (B, F, 3, S, S), F >= 1, to (B, 1, D).

        A clip of one frame is an image, as in the published conditioning; with `still_as_image=False` it too passes the temporal
        modules. Clips of two frames work but are poorly conditioned: the norm over frames is then nearly a sign function.
        """
        if frames.ndim != 5 or frames.shape[1] < 1:
            raise CoDiError(f"CLIP video frames have shape {tuple(frames.shape)}; it takes (batch, frames >= 1, 3, height, width)")
        still = frames.shape[1] == 1 and still_as_image
        return self._encode_frames(frames.flatten(0, 1), None if still else frames.shape[1])

    def _encode_frames(self, pixels: Tensor, frames: int | None) -> Tensor:
        """Pixels (B * frames, 3, S, S), the frames of a clip next to each other, to (B, 1, D); no temporal modules where None."""
        size = self.config.image_size
        if tuple(pixels.shape[1:]) != (3, size, size):
            given = " x ".join(map(str, pixels.shape[1:]))
            raise CoDiError(f"CLIP pixels are {given}; this model takes 3 x {size} x {size} (prepare them with encoders.preprocess)")
        tower = self.vision_model
        x = tower.pre_layrnorm(tower.embeddings(pixels.to(self.dtype)))  # (B * F, T, C), spelt as in the checkpoint
        for layer in tower.encoder.layers:
            x = layer(x, frames)
        pooled = x[:, 0].unflatten(0, (-1, frames or 1)).mean(dim=1)  # the class token of a clip is the mean of its frames'
        return F.normalize(self.visual_projection(tower.post_layernorm(pooled)), dim=-1)[:, None]

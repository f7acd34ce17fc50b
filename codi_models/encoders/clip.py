"""CLIP text and vision towers (Radford et al. 2021), the vision tower extended to video (paper section 3.1)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CLIPConfig
from ..errors import CoDiError
from .clip_temporal import TemporalModule


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases on every projection."""

    def __init__(self, dim: int, heads: int, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = operations.Linear(dim, dim, **factory)
        self.v_proj = operations.Linear(dim, dim, **factory)
        self.q_proj = operations.Linear(dim, dim, **factory)
        self.out_proj = operations.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, causal: bool) -> Tensor:  # (B, T, C)
        b, tokens, dim = x.shape
        q, k, v = (p(x).view(b, tokens, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        x = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (B, heads, T, C / heads)
        return self.out_proj(x.transpose(1, 2).reshape(b, tokens, dim))


class MLP(nn.Module):
    """Two linear layers with the quick GELU x * sigmoid(1.702 x)."""

    def __init__(self, dim: int, hidden: int, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.fc1 = operations.Linear(dim, hidden, **factory)
        self.fc2 = operations.Linear(hidden, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Layer(nn.Module):
    """Pre-norm transformer layer; with `temporal`, a clip also attends along time between attention and MLP."""

    def __init__(self, dim: int, heads: int, hidden: int, temporal: bool, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads, operations=operations, **factory)
        self.layer_norm1 = operations.LayerNorm(dim, eps=1e-5, **factory)
        self.mlp = MLP(dim, hidden, operations=operations, **factory)
        self.layer_norm2 = operations.LayerNorm(dim, eps=1e-5, **factory)
        self.temporal_self_attn = TemporalModule(dim, heads, operations=operations, **factory) if temporal else None

    def forward(self, x: Tensor, *, causal: bool = False, frames: int | None = None) -> Tensor:
        """Tokens (B, T, C), or (B * frames, T, C) with the frames of a clip next to each other; no temporal module where None."""
        x = x + self.self_attn(self.layer_norm1(x), causal)
        if self.temporal_self_attn is not None and frames is not None:
            tokens, dim = x.shape[1:]
            clip = x.view(-1, frames, tokens, dim).transpose(1, 2).reshape(-1, frames, dim)  # (B*T, F, C)
            x = self.temporal_self_attn(clip).view(-1, tokens, frames, dim).transpose(1, 2).reshape(-1, tokens, dim)
        return x + self.mlp(self.layer_norm2(x))


class Transformer(nn.Module):
    """A stack of layers."""

    def __init__(self, dim: int, layers: int, heads: int, hidden: int, temporal: bool, **factory: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, hidden, temporal, **factory) for _ in range(layers))

    def forward(self, x: Tensor, *, causal: bool = False, frames: int | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, causal=causal, frames=frames)
        return x

    def initialise(self, dim: int) -> None:
        """Normal weights, smaller where a layer writes to the residual stream, as CLIP was trained."""
        out_scale = (2 * len(self.layers)) ** -0.5
        layer: Any
        for layer in self.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                _normal(projection, dim**-0.5)
            _normal(attention.out_proj, dim**-0.5 * out_scale)
            _normal(mlp.fc1, (2 * dim) ** -0.5)
            _normal(mlp.fc2, dim**-0.5 * out_scale)
            if layer.temporal_self_attn is not None:
                layer.temporal_self_attn.initialise()


def _normal(layer: nn.Module, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)  # type: ignore[arg-type]
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class TextEmbeddings(nn.Module):
    """Token plus position."""

    def __init__(self, config: CLIPConfig, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.token_embedding = operations.Embedding(config.vocab_size, config.text_dim, **factory)
        self.position_embedding = operations.Embedding(config.text_positions, config.text_dim, **factory)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, C)
        return self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1], device=ids.device))


class TextTower(nn.Module):
    """Causal transformer, read at the first end token."""

    def __init__(self, config: CLIPConfig, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config, operations=operations, **factory)
        self.encoder = Transformer(
            config.text_dim, config.text_layers, config.text_heads, config.text_mlp, False, operations=operations, **factory
        )
        self.final_layer_norm = operations.LayerNorm(config.text_dim, eps=1e-5, **factory)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, C)
        x = self.encoder(self.embeddings(ids), causal=True)
        # The end token has the largest id. The layers are causal, so what follows it changes nothing.
        x = x[torch.arange(x.shape[0], device=x.device), ids.argmax(dim=-1)]
        return self.final_layer_norm(x)


class VisionEmbeddings(nn.Module):
    """Class token and patches, plus position."""

    def __init__(self, config: CLIPConfig, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        factory = dict(dtype=dtype, device=device)
        dim, patch = config.vision_dim, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(dim, **factory))
        self.patch_embedding = operations.Conv2d(3, dim, patch, stride=patch, bias=False, **factory)
        self.position_embedding = operations.Embedding((config.image_size // patch) ** 2 + 1, dim, **factory)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, 1 + patches, C)
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x).expand(x.shape[0], 1, -1), x], dim=1)
        return x + self.position_embedding(torch.arange(x.shape[1], device=x.device))


class VisionTower(nn.Module):
    """Vision transformer with a temporal module in every layer, read at the class token."""

    def __init__(self, config: CLIPConfig, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config, operations=operations, **factory)
        self.pre_layrnorm = operations.LayerNorm(config.vision_dim, eps=1e-5, **factory)  # spelt as in the checkpoint
        self.encoder = Transformer(
            config.vision_dim, config.vision_layers, config.vision_heads, config.vision_mlp, True, operations=operations, **factory
        )
        self.post_layernorm = operations.LayerNorm(config.vision_dim, eps=1e-5, **factory)

    def forward(self, pixels: Tensor, frames: int | None = None) -> Tensor:
        """Pixels (B * frames, 3, S, S) to features (B, C); a clip is the mean of its frames before the last norm."""
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), frames=frames)[:, 0]  # (B*F, C)
        return self.post_layernorm(x.view(-1, frames or 1, x.shape[-1]).mean(dim=1))


class CLIPEncoder(nn.Module):
    """Prompts of text, image and video as unit vectors (B, 1, D) of the shared space.

    State-dict keys are those of the published checkpoint below `clip.model.`.
    """

    def __init__(self, config: CLIPConfig, *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        factory: dict[str, Any] = dict(dtype=dtype, device=device)
        self.config = config
        self.logit_scale = nn.Parameter(torch.full((), math.log(1 / 0.07), **factory))  # log of 1 / temperature
        self.text_model = TextTower(config, operations=operations, **factory)
        self.vision_model = VisionTower(config, operations=operations, **factory)
        self.visual_projection = operations.Linear(config.vision_dim, config.projection_dim, bias=False, **factory)
        self.text_projection = operations.Linear(config.text_dim, config.projection_dim, bias=False, **factory)
        if operations is nn:  # injected operations leave their weights for a checkpoint to fill
            self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights from torch's default generator."""
        text, vision, config = self.text_model, self.vision_model, self.config
        _normal(text.embeddings.token_embedding, 0.02)
        _normal(text.embeddings.position_embedding, 0.01)
        nn.init.normal_(vision.embeddings.class_embedding, std=config.vision_dim**-0.5)
        _normal(vision.embeddings.position_embedding, config.vision_dim**-0.5)
        text.encoder.initialise(config.text_dim)
        vision.encoder.initialise(config.vision_dim)
        _normal(self.text_projection, config.text_dim**-0.5)
        _normal(self.visual_projection, config.vision_dim**-0.5)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids (B, T), T <= text_positions, each row with an end token, to (B, 1, D)."""
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.text_positions:
            raise CoDiError(f"CLIP text ids have shape {tuple(ids.shape)}; it takes (batch, 1..{self.config.text_positions})")
        return F.normalize(self.text_projection(self.text_model(ids)), dim=-1)[:, None]

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
        size = self.config.image_size
        if tuple(pixels.shape[1:]) != (3, size, size):
            given = " x ".join(map(str, pixels.shape[1:]))
            raise CoDiError(f"CLIP pixels are {given}; this model takes 3 x {size} x {size} (prepare them with encoders.preprocess)")
        pixels = pixels.to(self.vision_model.embeddings.patch_embedding.weight.dtype)  # type: ignore[union-attr]
        return F.normalize(self.visual_projection(self.vision_model(pixels, frames)), dim=-1)[:, None]

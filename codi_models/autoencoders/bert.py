"""BERT encoder with a Gaussian head: token ids to the posterior of a text latent (Optimus, Li et al. 2020, section 3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import OptimusConfig

NORM_EPS = 1e-12


class Embeddings(nn.Module):
    """Word, position and segment embeddings, normalised. Optimus has one segment."""

    def __init__(self, config: OptimusConfig, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.word_embeddings = operations.Embedding(config.encoder_vocab, config.encoder_dim, **factory)
        self.position_embeddings = operations.Embedding(config.encoder_positions, config.encoder_dim, **factory)
        self.token_type_embeddings = operations.Embedding(2, config.encoder_dim, **factory)
        self.LayerNorm = operations.LayerNorm(config.encoder_dim, eps=NORM_EPS, **factory)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        first_segment = torch.zeros_like(positions)
        x = self.word_embeddings(ids) + self.position_embeddings(positions) + self.token_type_embeddings(first_segment)
        return self.LayerNorm(x)  # (B, T, C)


class SelfAttention(nn.Module):
    """Multi-head attention without its output projection."""

    def __init__(self, dim: int, heads: int, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.query = operations.Linear(dim, dim, **factory)
        self.key = operations.Linear(dim, dim, **factory)
        self.value = operations.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))  # (B, h, T, C/h)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)  # (B, T, C)


class AddAndNorm(nn.Module):
    """LayerNorm(residual + dense(x))."""

    def __init__(self, in_dim: int, dim: int, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.dense = operations.Linear(in_dim, dim, **factory)
        self.LayerNorm = operations.LayerNorm(dim, eps=NORM_EPS, **factory)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dense(x))


class Layer(nn.Module):
    """Post-norm transformer layer with exact GELU. Attribute names are the checkpoint's keys."""

    def __init__(self, config: OptimusConfig, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        dim, mlp = config.encoder_dim, config.encoder_mlp
        shared = dict(factory, operations=operations)
        attention = SelfAttention(dim, config.encoder_heads, **shared)
        self.attention = nn.ModuleDict({"self": attention, "output": AddAndNorm(dim, dim, **shared)})
        self.intermediate = nn.ModuleDict({"dense": operations.Linear(dim, mlp, **factory)})
        self.output = AddAndNorm(mlp, dim, **shared)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class BertEncoder(nn.Module):
    """Token ids (B, T), 0 where padded, to mean and log variance (B, latent_dim) each."""

    def __init__(self, config: OptimusConfig, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.embeddings = Embeddings(config, operations=operations, **factory)
        layers = nn.ModuleList(Layer(config, operations=operations, **factory) for _ in range(config.encoder_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.pooler = nn.ModuleDict({"dense": operations.Linear(dim, dim, **factory)})
        self.linear = operations.Linear(dim, 2 * config.latent_dim, bias=False, **factory)

    def hidden(self, ids: Tensor) -> Tensor:
        """Last hidden states (B, T, C)."""
        mask = (ids > 0)[:, None, None, :]  # (B, 1, 1, T)
        x = self.embeddings(ids)
        for layer in self.encoder["layer"].children():
            x = layer(x, mask)
        return x

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        pooled = torch.tanh(self.pooler["dense"](self.hidden(ids)[:, 0]))  # (B, C)
        mean, logvar = self.linear(pooled).chunk(2, dim=1)
        return mean, logvar

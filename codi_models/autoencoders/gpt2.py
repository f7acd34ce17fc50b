"""GPT-2 decoder that a latent conditions twice: as an embedding added to every token, and as one memory slot
in front of every layer's keys and values (Optimus, Li et al. 2020, section 3.2)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import OptimusConfig

NORM_EPS = 1e-5
MEMORY = 1  # the memory slot takes position 0, so tokens stand at 1, 2, ...


class Conv1D(nn.Module):
    """Linear layer whose weight lies as (in, out), as GPT-2's checkpoints have it."""

    def __init__(self, in_dim: int, out_dim: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_dim, out_dim, **factory))
        self.bias = nn.Parameter(torch.empty(out_dim, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x).t(), self.bias.to(x))


class Attention(nn.Module):
    """Causal attention; keys and values start with the memory slot."""

    def __init__(self, dim: int, heads: int, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Conv1D(dim, 3 * dim, **factory)
        self.c_proj = Conv1D(dim, dim, **factory)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, heads, T, C / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, C), memory (B, 1, C) used both as key and as value, mask (T, T + 1)."""
        q, k, v = self.c_attn(x).chunk(3, dim=2)
        memory = memory.to(k)
        q, k, v = self.split(q), self.split(torch.cat([memory, k], dim=1)), self.split(torch.cat([memory, v], dim=1))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, slot: int) -> Tensor:
        """One token (B, 1, C) against a cache (B, heads, slots, C / heads) whose slots up to `slot` it fills and sees."""
        q, k, v = (self.split(part) for part in self.c_attn(x).chunk(3, dim=2))
        keys[:, :, slot], values[:, :, slot] = k[:, :, 0], v[:, :, 0]
        seen = slice(0, slot + 1)
        return self.c_proj(F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen]).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer layer with tanh GELU."""

    def __init__(self, config: OptimusConfig, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.ln_1 = operations.LayerNorm(dim, eps=NORM_EPS, **factory)
        self.attn = Attention(dim, config.decoder_heads, **factory)
        self.ln_2 = operations.LayerNorm(dim, eps=NORM_EPS, **factory)
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(dim, 4 * dim, **factory), "c_proj": Conv1D(4 * dim, dim, **factory)})

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        return self.feed_forward(x + self.attn(self.ln_1(x), memory, mask))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, slot: int) -> Tensor:
        return self.feed_forward(x + self.attn.step(self.ln_1(x), keys, values, slot))


class Transformer(nn.Module):
    """Embeddings, layers and the two projections of the latent. Attribute names are the checkpoint's keys."""

    def __init__(self, config: OptimusConfig, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        dim, layers = config.decoder_dim, config.decoder_layers
        self.wte = operations.Embedding(config.decoder_vocab, dim, **factory)
        self.wpe = operations.Embedding(config.decoder_positions, dim, **factory)
        self.h = nn.ModuleList(Block(config, operations=operations, **factory) for _ in range(layers))
        self.ln_f = operations.LayerNorm(dim, eps=NORM_EPS, **factory)
        self.linear = operations.Linear(config.latent_dim, layers * dim, bias=False, **factory)
        self.linear_emb = operations.Linear(config.latent_dim, dim, bias=False, **factory)

    def layers(self) -> list[Block]:
        """The blocks, in order."""
        return cast("list[Block]", list(self.h))

    def memories(self, z: Tensor) -> list[Tensor]:
        """One memory slot (B, 1, C) for every layer."""
        return [m[:, None] for m in self.linear(z).chunk(len(self.h), dim=1)]

    def embed(self, ids: Tensor, z: Tensor, first: int) -> Tensor:
        """ids (B, T) of which the first stands at token index `first` -> (B, T, C)."""
        positions = torch.arange(first + MEMORY, first + MEMORY + ids.shape[1], device=ids.device)
        return self.wte(ids).to(z.dtype) + self.wpe(positions).to(z.dtype) + self.linear_emb(z)[:, None]


class Cache:
    """Keys and values of every layer, (layers, B, heads, slots, C / heads); slot 0 is the memory."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0


class GPT2Decoder(nn.Module):
    """Latent and token ids to next-token logits. The output head is the token embedding (tied)."""

    def __init__(self, config: OptimusConfig, *, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config, operations=operations, **factory)

    def forward(self, z: Tensor, ids: Tensor) -> Tensor:
        """z (B, latent_dim), ids (B, T) -> logits (B, T, V); the logits at t see ids up to and including t."""
        net = self.transformer
        length = ids.shape[1]
        mask = torch.ones(length, length + MEMORY, dtype=torch.bool, device=ids.device).tril(MEMORY)
        x = net.embed(ids, z, 0)
        for block, memory in zip(net.layers(), net.memories(z), strict=True):
            x = block(x, memory, mask)
        return self._head(x)

    def start(self, z: Tensor, tokens: int) -> Cache:
        """An empty cache for up to `tokens` tokens."""
        net = self.transformer
        memory = torch.stack(
            [block.attn.split(m) for block, m in zip(net.layers(), net.memories(z), strict=True)]
        )  # (layers, B, h, 1, C/h)
        keys = memory.new_zeros(*memory.shape[:3], tokens + MEMORY, memory.shape[4])
        keys[:, :, :, :MEMORY] = memory
        return Cache(keys, keys.clone())

    def step(self, z: Tensor, ids: Tensor, cache: Cache) -> Tensor:
        """The next token of every sample, ids (B,), -> logits (B, V) of the one after it; extends the cache."""
        net = self.transformer
        x = net.embed(ids[:, None], z, cache.length)
        slot = cache.length + MEMORY
        for i, block in enumerate(net.layers()):
            x = block.step(x, cache.keys[i], cache.values[i], slot)
        cache.length += 1
        return self._head(x)[:, 0]

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(self.transformer.ln_f(x), self.transformer.wte.weight.to(x))

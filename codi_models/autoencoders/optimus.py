"""Text autoencoder (paper section 3.2): Optimus, a BERT encoder and a GPT-2 decoder around one latent vector (Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OptimusConfig
from ..errors import CoDiError
from .bert import BertEncoder
from .gpt2 import Conv1D, GPT2Decoder
from .kl import sample_posterior

INIT_STD = 0.02
DERIVED_KEYS = ("decoder.lm_head.weight", ".attn.bias")
"""Endings of published keys that hold nothing of their own: the tied output head, and GPT-2's causal masks."""


def special_ids(config: OptimusConfig) -> tuple[int, int, int]:
    """PAD, BOS and EOS of the decoder: the last three ids of its vocabulary."""
    return config.decoder_vocab - 3, config.decoder_vocab - 2, config.decoder_vocab - 1


class TextAutoencoder(nn.Module):
    """Token ids of the encoder's vocabulary to a latent (B, latent_dim), and a latent to token ids of the decoder's vocabulary."""

    def __init__(
        self,
        config: OptimusConfig,
        *,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = BertEncoder(config, operations=operations, dtype=dtype, device=device)
        self.decoder = GPT2Decoder(config, operations=operations, dtype=dtype, device=device)
        if operations is nn:  # injected operations get their weights from a file
            self.apply(_initialise)

    def moments(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, T) of the encoder, 0 where padded -> mean and log variance, (B, latent_dim) each. Raises CoDiError for other shapes."""
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.encoder_positions:
            raise CoDiError(f"text ids must be (B, T) with 1 to {self.config.encoder_positions} tokens, got {tuple(ids.shape)}")
        return self.encoder(ids)

    def encode(self, ids: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Posterior mean (as published), or one draw from the posterior with `sample`. Errors as in `moments`."""
        mean, logvar = self.moments(ids)
        return sample_posterior(mean, logvar, generator) if sample else mean

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Teacher forcing: z (B, latent_dim) and decoder ids (B, T), BOS first -> logits (B, T, V) of the ids one place later."""
        self._check(z)
        if ids.ndim != 2 or not 0 < ids.shape[1] < self.config.decoder_positions:
            raise CoDiError(f"decoder ids must be (B, T) with 1 to {self.config.decoder_positions - 1} tokens, got {tuple(ids.shape)}")
        return self.decoder(z, ids)

    @torch.no_grad()
    def generate(
        self,
        z: Tensor,
        *,
        temperature: float | None = None,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        bos: int | None = None,
        eos: int | None = None,
        max_tokens: int | None = None,
    ) -> list[list[int]]:
        """z (B, latent_dim) -> one list of ids a sample, from BOS to EOS, at most `max_tokens` with both.
        The last is always EOS, as published.

        temperature 0 takes the likeliest token; above 0 tokens are drawn from the smallest set of tokens whose probability reaches `top_p`.
        `seeds`: one a sample; then a sample's text does not depend on the batch it is in. Other defaults come from the configuration.
        Raises CoDiError for settings out of range."""
        self._check(z)
        cfg = self.config
        temperature = cfg.temperature if temperature is None else temperature
        limit = cfg.max_tokens if max_tokens is None else max_tokens
        bos = special_ids(cfg)[1] if bos is None else bos
        eos = special_ids(cfg)[2] if eos is None else eos
        if not 2 <= limit < cfg.decoder_positions:
            raise CoDiError(f"max_tokens must be 2 to {cfg.decoder_positions - 1}, got {limit}")
        if not temperature >= 0 or not 0 < top_p <= 1:
            raise CoDiError(f"temperature must be 0 or more and top_p above 0 up to 1, got {temperature} and {top_p}")
        draws = _draws(len(z), limit, seeds, z.device) if temperature > 0 else None
        cache = self.decoder.start(z, limit)
        token = torch.full((len(z),), bos, dtype=torch.long, device=z.device)
        ended = torch.zeros_like(token, dtype=torch.bool)
        rows = [token]
        for i in range(limit - 2):
            logits = self.decoder.step(z, token, cache).float()  # (B, V)
            token = logits.argmax(dim=1) if draws is None else _pick(logits / temperature, top_p, draws[:, i])
            ended = ended | (token == eos)
            rows.append(token)
            if bool(ended.all()):
                break
        ids = torch.stack(rows, dim=1).tolist()
        return [row[: row.index(eos, 1)] + [eos] if eos in row[1:] else row + [eos] for row in ids]

    def _check(self, z: Tensor) -> None:
        if z.ndim != 2 or z.shape[1] != self.config.latent_dim:
            raise CoDiError(f"text latents must be (B, {self.config.latent_dim}), got {tuple(z.shape)}")


def _draws(batch: int, tokens: int, seeds: Sequence[int] | None, device: torch.device) -> Tensor:
    """Uniform numbers (B, tokens) in 0..1, drawn on the CPU at once: the same on every device, and nothing to wait for later."""
    if seeds is None:
        return torch.rand(batch, tokens, dtype=torch.float64).to(device, torch.float32)
    if len(seeds) != batch:
        raise CoDiError(f"{batch} text latents need {batch} seeds, got {len(seeds)}")
    rows = [torch.rand(tokens, generator=torch.Generator().manual_seed(int(seed)), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows).to(device, torch.float32)


def _pick(logits: Tensor, top_p: float, draw: Tensor) -> Tensor:
    """Nucleus sampling (Holtzman et al. 2020) by inverting the cumulative distribution: logits (B, V), draw (B,) -> ids (B,)."""
    probability, order = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    before = probability.cumsum(dim=1) - probability  # likelier mass in front of each token
    kept = probability.masked_fill(before >= top_p, 0.0).cumsum(dim=1)  # (B, V)
    rank = torch.searchsorted(kept, (draw[:, None] * kept[:, -1:]).contiguous(), right=True)
    within = (before < top_p).sum(dim=1, keepdim=True) - 1
    return order.gather(1, torch.minimum(rank, within))[:, 0]


def _initialise(module: nn.Module) -> None:
    """Normal weights of BERT and GPT-2 (standard deviation 0.02), zero biases."""
    if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, (nn.Linear, Conv1D)) and module.bias is not None:
        nn.init.zeros_(module.bias)

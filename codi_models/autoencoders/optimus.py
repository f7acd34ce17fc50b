"""Text autoencoder (paper section 3.2): Optimus, BERT and GPT-2 of the transformers library around one latent vector (Li et al. 2020).

The latent conditions the decoder twice (Optimus, section 3.2): as an embedding added to every token, and as one memory slot in front of
every layer's keys and values, which takes position 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ..config import OptimusConfig
from ..errors import CoDiError
from ..libraries import Borrowed, building
from .kl import sample_posterior
from .tokenizers import special_ids


class TextAutoencoder(Borrowed):
    """Token ids of the encoder's vocabulary to a latent (B, latent_dim), and a latent to token ids of the decoder's vocabulary.

    Files have the published keys. `operations` are not used: BERT and GPT-2 are the library's, without dropout."""

    def __init__(
        self,
        config: OptimusConfig,
        *,
        operations: Any = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        bert = transformers.BertConfig(
            vocab_size=config.encoder_vocab, hidden_size=config.encoder_dim, num_hidden_layers=config.encoder_layers,
            num_attention_heads=config.encoder_heads, intermediate_size=config.encoder_mlp, hidden_act="gelu", type_vocab_size=2,
            max_position_embeddings=config.encoder_positions, layer_norm_eps=1e-12, pad_token_id=0,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        gpt2 = transformers.GPT2Config(
            vocab_size=config.decoder_vocab, n_positions=config.decoder_positions, n_embd=config.decoder_dim,
            n_layer=config.decoder_layers, n_head=config.decoder_heads, activation_function="gelu_new", layer_norm_epsilon=1e-5,
            bos_token_id=special_ids(config)[1], eos_token_id=special_ids(config)[2], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        with building(self, dtype, device):
            self.encoder, self.decoder = transformers.BertModel(bert), transformers.GPT2Model(gpt2)
            self.posterior = nn.Linear(config.encoder_dim, 2 * config.latent_dim, bias=False)
            self.memory = nn.Linear(config.latent_dim, config.decoder_layers * config.decoder_dim, bias=False)
            self.embedding = nn.Linear(config.latent_dim, config.decoder_dim, bias=False)
            for layer in (self.posterior, self.memory, self.embedding):
                nn.init.normal_(layer.weight, std=0.02)  # as the library draws the others

    def published_key(self, key: str) -> str | None:
        own = {"posterior": "encoder.linear", "memory": "decoder.transformer.linear", "embedding": "decoder.transformer.linear_emb"}
        first, _, rest = key.partition(".")
        return f"{own[first]}.{rest}" if first in own else key.replace("decoder.", "decoder.transformer.", 1)

    def moments(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, T) of the encoder, 0 where padded -> mean and log variance, (B, latent_dim) each. Raises CoDiError for other shapes."""
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.encoder_positions:
            raise CoDiError(f"text ids must be (B, T) with 1 to {self.config.encoder_positions} tokens, got {tuple(ids.shape)}")
        pooled = self.encoder(input_ids=ids, attention_mask=(ids > 0).long()).pooler_output  # (B, C)
        mean, logvar = self.posterior(pooled).chunk(2, dim=1)
        return mean, logvar

    def encode(self, ids: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Posterior mean (as published), or one draw from the posterior with `sample`. Errors as in `moments`."""
        mean, logvar = self.moments(ids)
        return sample_posterior(mean, logvar, generator) if sample else mean

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Teacher forcing: z (B, latent_dim) and decoder ids (B, T), BOS first -> logits (B, T, V) of the ids one place later."""
        self._check(z)
        if ids.ndim != 2 or not 0 < ids.shape[1] < self.config.decoder_positions:
            raise CoDiError(f"decoder ids must be (B, T) with 1 to {self.config.decoder_positions - 1} tokens, got {tuple(ids.shape)}")
        return self._step(z, ids, self._memory(z))[0]

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
        Raises CoDiError for settings out of range, and where a network's numbers are not finite."""
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
        past = self._memory(z)
        token = torch.full((len(z),), bos, dtype=torch.long, device=z.device)
        ended = torch.zeros_like(token, dtype=torch.bool)
        finite, rows = ~ended.any(), [token]
        for i in range(limit - 2):
            logits, past = self._step(z, token[:, None], past)  # (B, 1, V)
            logits = logits[:, 0].float()
            finite = finite & torch.isfinite(logits).all()
            token = logits.argmax(dim=1) if draws is None else _pick(logits / temperature, top_p, draws[:, i])
            ended = ended | (token == eos)
            rows.append(token)
            if bool(ended.all()):
                break
        if not bool(finite):
            raise CoDiError("the decoded text is NaN or infinite, which its latent was not: use fp32 (--dtype fp32), or other weights")
        ids = torch.stack(rows, dim=1).tolist()
        return [row[: row.index(eos, 1)] + [eos] if eos in row[1:] else row + [eos] for row in ids]

    def _memory(self, z: Tensor) -> transformers.DynamicCache:
        """A cache of one slot, the memory, which every layer has both as key and as value."""
        past = transformers.DynamicCache()
        heads = self.memory(z.to(self.dtype)).view(len(z), self.config.decoder_layers, self.config.decoder_heads, 1, -1)
        for layer, slot in enumerate(heads.unbind(1)):  # (B, heads, 1, C / heads)
            past.update(slot, slot, layer)
        return past

    def _step(self, z: Tensor, ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        """ids (B, T) that follow `past` -> logits (B, T, V) of the ids one place later, and the past with these."""
        x = self.decoder.wte(ids) + self.embedding(z.to(self.dtype))[:, None]
        # By position: the library calls the second argument `past_key_values` in some versions and `cache` in others.
        hidden, past = self.decoder(None, past, inputs_embeds=x, use_cache=True)[:2]
        return F.linear(hidden, self.decoder.wte.weight), past  # the output head is the token embedding

    def _check(self, z: Tensor) -> None:
        if z.ndim != 2 or z.shape[1] != self.config.latent_dim:
            raise CoDiError(f"text latents must be (B, {self.config.latent_dim}), got {tuple(z.shape)}")


def _draws(batch: int, tokens: int, seeds: Sequence[int] | None, device: torch.device) -> Tensor:
    """Uniform numbers (B, tokens) in 0..1, drawn on the CPU at once: the same on every device, and nothing to wait for later."""
    if seeds is None:
        return torch.rand(batch, tokens, dtype=torch.float64).to(device, torch.float32)
    if len(seeds) != batch:
        raise CoDiError(f"{batch} text latents need {batch} seeds, got {len(seeds)}")
    rows = [torch.rand(tokens, generator=torch.Generator().manual_seed(int(seed) % (1 << 64)), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows).to(device, torch.float32)


def _pick(logits: Tensor, top_p: float, draw: Tensor) -> Tensor:
    """Nucleus sampling (Holtzman et al. 2020) by inverting the cumulative distribution: logits (B, V), draw (B,) -> ids (B,)."""
    probability, order = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    before = probability.cumsum(dim=1) - probability  # likelier mass in front of each token
    kept = probability.masked_fill(before >= top_p, 0.0).cumsum(dim=1)  # (B, V)
    rank = torch.searchsorted(kept, (draw[:, None] * kept[:, -1:]).contiguous(), right=True)
    within = (before < top_p).sum(dim=1, keepdim=True) - 1
    return order.gather(1, torch.minimum(rank, within))[:, 0]

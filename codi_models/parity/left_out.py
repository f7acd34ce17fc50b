"""Entries of a published state dict that our networks do not have: the reason, and the shape that follows from the configuration."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..config import CoDiConfig
from ..diffusion import TIMESTEPS

SCHEDULE = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights",
)  # fmt: skip
"""Tables that the published network keeps as buffers."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LeftOut:
    """A kind of entry: `pattern` matches the end of its key."""

    pattern: str
    reason: str
    shape: Callable[[CoDiConfig, re.Match[str]], Shape | None] = lambda config, match: None


def _mask_shape(config: CoDiConfig, match: re.Match[str]) -> Shape:
    clap = config.clap
    side = clap.spec_size // clap.patch_size // 2 ** int(match["stage"])
    window = min(clap.window_size, side)
    return ((side // window) ** 2, window**2, window**2)


def _index_shape(config: CoDiConfig, match: re.Match[str]) -> Shape:
    clap = config.clap
    window = min(clap.window_size, clap.spec_size // clap.patch_size // 2 ** int(match["stage"]))
    return (window**2, window**2)


def _positions(config: CoDiConfig, match: re.Match[str]) -> Shape:
    clip = config.clip
    return (1, clip.text_positions if match["tower"] == "text" else (clip.image_size // clip.patch_size) ** 2 + 1)


def _fourier(config: CoDiConfig, match: re.Match[str]) -> Shape:
    return (2 * (config.mel.n_fft // 2 + 1), 1, config.mel.n_fft)


def _causal(config: CoDiConfig, match: re.Match[str]) -> Shape:
    return (1, 1, config.text_autoencoder.decoder_positions, config.text_autoencoder.decoder_positions)


LEFT_OUT = (
    LeftOut(rf"^({'|'.join(SCHEDULE)})$", "noise schedule: computed by codi_models.diffusion", lambda c, m: (TIMESTEPS,)),
    LeftOut(r"fn_STFT\.mel_basis$", "mel bank: computed from MelConfig", lambda c, m: (c.mel.n_mels, c.mel.n_fft // 2 + 1)),
    LeftOut(r"fn_STFT\.stft_fn\.(forward|inverse)_basis$", "windowed Fourier basis: torch.stft needs none", _fourier),
    LeftOut(r"decoder\.transformer\.h\.\d+\.attn\.bias$", "causal mask: follows from the length of the text", _causal),
    LeftOut(
        r"decoder\.lm_head\.weight$", "tied to decoder.transformer.wte.weight, the same tensor",
        lambda c, m: (c.text_autoencoder.decoder_vocab, c.text_autoencoder.decoder_dim),
    ),
    LeftOut(r"(?P<tower>text|vision)_model\.embeddings\.position_ids$", "0, 1, 2, ...: follows from the length", _positions),
    LeftOut(r"layers\.(?P<stage>\d+)\.blocks\.\d+\.attn\.relative_position_index$", "offsets within a window: computed", _index_shape),
    LeftOut(r"layers\.(?P<stage>\d+)\.blocks\.\d+\.attn_mask$", "mask of shifted windows: computed", _mask_shape),
    LeftOut(r"(spectrogram|logmel)_extractor\.", "CLAP's front end, built at its first use: computed from CLAPConfig"),
)  # fmt: skip


def left_out(key: str) -> tuple[LeftOut, re.Match[str]] | None:
    """Why our networks have no entry `key`; None for an entry that they must have."""
    for entry in LEFT_OUT:
        if match := re.search(entry.pattern, key):
            return entry, match
    return None

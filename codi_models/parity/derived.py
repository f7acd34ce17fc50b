"""Shapes of published entries that hold no weights of their own: what follows from our configuration must be what is published."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..config import CoDiConfig
from ..diffusion import TIMESTEPS
from .schedules import schedule_tables

Shape = tuple[int, ...]


def derived_shape(key: str, config: CoDiConfig) -> Shape | None:
    """Shape of a published entry that our networks do not have; None where nothing is known of it."""
    if key in schedule_tables():
        return (TIMESTEPS,)
    for pattern, shape in _SHAPES:
        if match := re.fullmatch(pattern, key):
            return shape(config, match)
    return None


def _window(config: CoDiConfig, stage: str) -> tuple[int, int]:
    """Tokens of a window, and windows of a map, in a stage of HTSAT."""
    side = config.clap.spec_size // config.clap.patch_size // 2 ** int(stage)
    window = min(config.clap.window_size, side)
    return window**2, (side // window) ** 2


def _index(config: CoDiConfig, match: re.Match[str]) -> Shape:
    tokens, _ = _window(config, match[1])
    return (tokens, tokens)


def _mask(config: CoDiConfig, match: re.Match[str]) -> Shape:
    tokens, windows = _window(config, match[1])
    return (windows, tokens, tokens)


def _positions(config: CoDiConfig, match: re.Match[str]) -> Shape:
    clip = config.clip
    return (1, clip.text_positions if match[1] == "text" else (clip.image_size // clip.patch_size) ** 2 + 1)


def _causal(config: CoDiConfig, match: re.Match[str]) -> Shape:
    positions = config.text_autoencoder.decoder_positions
    return (1, 1, positions, positions)


_SHAPES: tuple[tuple[str, Callable[[CoDiConfig, re.Match[str]], Shape]], ...] = (
    (r"audioldm\.fn_STFT\.mel_basis", lambda c, m: (c.mel.n_mels, c.mel.n_fft // 2 + 1)),
    (r"audioldm\.fn_STFT\.stft_fn\.(forward|inverse)_basis", lambda c, m: (2 * (c.mel.n_fft // 2 + 1), 1, c.mel.n_fft)),
    (r"optimus\.decoder\.transformer\.h\.\d+\.attn\.bias", _causal),
    (r"optimus\.decoder\.lm_head\.weight", lambda c, m: (c.text_autoencoder.decoder_vocab, c.text_autoencoder.decoder_dim)),
    (r"clip\.model\.(text|vision)_model\.embeddings\.position_ids", _positions),
    (r"clap\.model\.audio_branch\.layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_index", _index),
    (r"clap\.model\.audio_branch\.layers\.(\d+)\.blocks\.\d+\.attn_mask", _mask),
)

"""CLAP's audio branch of the transformers library as the audio prompt encoder (paper section 3.1): HTSAT (Chen et al. 2022), projected."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ..config import CLAPConfig
from ..errors import CoDiError
from ..libraries import Borrowed, building
from .log_mel import PowerMel

_NAMES = (
    (r"unread\.(tscam_conv|head)\b", r"model.audio_branch.\1"),
    (r"unread\.transform(\d)\b", r"model.audio_transform.sequential.\1"),
    (r"audio_model\.audio_encoder\.batch_norm\b", "model.audio_branch.bn0"),
    (r"audio_model\.audio_encoder\b", "model.audio_branch"),
    (r"audio_projection\.linear1\b", "model.audio_projection.0"),
    (r"audio_projection\.linear2\b", "model.audio_projection.2"),
    (r"\.attention\.self\.(?:query|key|value)\.", ".attn.qkv."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\b", ".attn.proj"),
    (r"\.layernorm_before\b", ".norm1"),
    (r"\.layernorm_after\b", ".norm2"),
    (r"\.intermediate\.dense\b", ".mlp.fc1"),
    (r"\.output\.dense\b", ".mlp.fc2"),
)
"""The library's names as patterns, and the published ones."""


def library_config(config: CLAPConfig, window: int) -> transformers.ClapAudioConfig:
    """The library's configuration, with a window of so many tokens a side. Without dropout, as it serves frozen."""
    return transformers.ClapAudioConfig(
        window_size=window, num_mel_bins=config.n_mels, spec_size=config.spec_size, patch_size=config.patch_size,
        patch_stride=[config.patch_size] * 2, num_classes=config.num_classes, projection_dim=config.projection_dim,
        hidden_size=config.embed_dim * 2 ** (len(config.depths) - 1), patch_embeds_hidden_size=config.embed_dim,
        depths=list(config.depths), num_attention_heads=list(config.num_heads), num_hidden_layers=len(config.depths),
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0, enable_fusion=False, layer_norm_eps=1e-5,
    )  # fmt: skip


def _unread_heads(config: CLAPConfig) -> nn.ModuleDict:
    """What the published network stores and never evaluates: the classifier of HTSAT and a second projection."""
    width, folds = config.embed_dim * 2 ** (len(config.depths) - 1), config.spec_size // config.n_mels
    rows = config.spec_size // config.patch_size // 2 ** (len(config.depths) - 1) // folds
    return nn.ModuleDict({
        "tscam_conv": nn.Conv2d(width, config.num_classes, (rows, 3), padding=(0, 1)),
        "head": nn.Linear(config.num_classes, config.num_classes),
        "transform0": nn.Linear(config.projection_dim, config.projection_dim),
        "transform3": nn.Linear(config.projection_dim, config.projection_dim),
    })  # fmt: skip


class MelBatchNorm(nn.BatchNorm2d):
    """Batch norm of decibels over mel bins, computed in float32 whatever its weights are stored in; the result has their type."""

    def forward(self, x: Tensor) -> Tensor:  # (B, mel, T, 1)
        assert self.running_mean is not None and self.running_var is not None
        if self.training:
            return super().forward(x)
        mean, var, weight, bias = (t.float().view(1, -1, 1, 1) for t in (self.running_mean, self.running_var, self.weight, self.bias))
        return ((x - mean) * torch.rsqrt(var + self.eps) * weight + bias).to(self.weight.dtype)


class CLAPEncoder(Borrowed):
    """Audio prompts as unit vectors (B, 1, D) of the shared space.

    Files have the keys of the published checkpoint below `clap.`. `operations` are not used: the network is the library's."""

    def __init__(self, config: CLAPConfig, *, operations: Any = None, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        self.config = config
        self.mel = PowerMel(config)
        with building(self, dtype, device):
            self.network = transformers.ClapAudioModelWithProjection(library_config(config, config.window_size))
            branch = self.network.audio_model.audio_encoder
            branch.batch_norm = MelBatchNorm(config.n_mels)
            # The library gives every stage a bias table of the whole window; a map smaller than that has one of its own size.
            for i in range(len(config.depths)):
                side = config.spec_size // config.patch_size // 2**i
                if side < config.window_size:
                    small = transformers.ClapAudioModelWithProjection(library_config(config, side))
                    branch.layers[i] = small.audio_model.audio_encoder.layers[i]
            if config.hidden_dim != config.projection_dim:
                projection = self.network.audio_projection
                projection.linear1 = nn.Linear(projection.linear1.in_features, config.hidden_dim)
                projection.linear2 = nn.Linear(config.hidden_dim, config.projection_dim)
            self.unread = _unread_heads(config)

    def published_key(self, key: str) -> str | None:
        if key.endswith("relative_position_index"):
            return None
        key = key.removeprefix("network.")
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        return key

    @property
    def clip_samples(self) -> int:
        """Samples of the one clip length that the network sees."""
        return round(self.config.clip_seconds * self.config.sample_rate)

    def encode_audio(self, waveform: Tensor) -> Tensor:
        """Mono waveform (B, clip_samples) at the config's sample rate, -1..1, to (B, 1, D).

        Any other length or rate: `encoders.preprocess.encode_audio`.
        """
        if waveform.ndim != 2 or waveform.shape[1] != self.clip_samples:
            raise CoDiError(
                f"CLAP got a waveform of shape {tuple(waveform.shape)}; it takes (batch, {self.clip_samples}): "
                f"{self.config.clip_seconds} s at {self.config.sample_rate} Hz (encoders.preprocess.encode_audio takes any length)"
            )
        decibels = self.mel(waveform)[:, None]  # (B, 1, T, n_mels), float32
        return F.normalize(self.network(input_features=decibels).audio_embeds, dim=-1)[:, None]

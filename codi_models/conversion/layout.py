"""Keys and shapes of the published checkpoint, derived from the networks themselves, and what of it is left out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..components import COMPONENTS, build_component
from ..config import CoDiConfig
from ..libraries import stored_state

PREFIXES = {name: entry.published_prefix for name, entry in COMPONENTS.items()}
"""What stands before a component's keys in the published files."""

ENCODERS_FILE = COMPONENTS["clip"].published_file

TIED = {"optimus.decoder.lm_head.weight": "optimus.decoder.transformer.wte.weight"}
"""Published keys that are second copies of another: they must be equal, and only the other is kept."""

_SCHEDULES = (
    "betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod|"
    "sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|posterior_log_variance_clipped|"
    "posterior_mean_coef1|posterior_mean_coef2|lvlb_weights"
)
LEFT_OUT = {
    rf"({_SCHEDULES})": "the noise schedule is computed from its three constants",
    r"audioldm\.fn_STFT\..+": "Fourier bases and mel filters of the sound autoencoder are computed from its settings",
    r"clap\.model\.audio_branch\.(spectrogram_extractor|logmel_extractor)\..+": "Fourier bases and mel filters of CLAP are computed",
    r"clap\.model\.audio_branch\..+\.(relative_position_index|attn_mask)": "index and mask of shifted windows are computed",
    r"clip\.model\.(text_model|vision_model)\.embeddings\.position_ids": "counts 0, 1, 2, ...",
    r"optimus\.encoder\.embeddings\.position_ids": "counts 0, 1, 2, ...",
    r"optimus\.decoder\.transformer\.h\.\d+\.attn\.(bias|masked_bias)": "the causal mask is computed",
    r"optimus\.decoder\.lm_head\.weight": "tied to the token embedding, which is kept",
}
"""Patterns of published keys that no network needs, with the reason."""

_WRAPPERS = re.compile(r"(module|model|net|network|state_dict|weights|_orig_mod|_forward_module)\.")
_CUT_OFF = ("", "model.", "model.diffusion_model.", "clip.", "clap.")


@dataclass(frozen=True)
class Entry:
    """One weight: its component, its key in that component's own file, its shape."""

    component: str
    key: str
    shape: tuple[int, ...]
    floating: bool


class Layout:
    """All weights of a configuration by published key."""

    def __init__(self, config: CoDiConfig) -> None:
        self.config = config
        self.entries: dict[str, Entry] = {}
        for component in COMPONENTS:
            for key, value in stored_state(build_component(component, config, device="meta")).items():
                entry = Entry(component, key, tuple(value.shape), value.is_floating_point())
                self.entries[PREFIXES[component] + key] = entry

    def of(self, component: str) -> dict[str, Entry]:
        """Weights of one component by published key."""
        return {key: entry for key, entry in self.entries.items() if entry.component == component}

    def published_key(self, key: str) -> str | None:
        """The published key that a file's key stands for: itself, or itself without what training frameworks put before it
        (`module.`, `state_dict.`), or with the prefix that a part saved alone lacks. None for keys of other models."""
        while True:
            if found := next((prefix + key for prefix in _CUT_OFF if self.knows(prefix + key)), None):
                return found
            if (wrapper := _WRAPPERS.match(key)) is None:
                return None
            key = key[wrapper.end() :]

    def knows(self, key: str) -> bool:
        """Whether this is a published key, needed or left out."""
        return key in self.entries or left_out(key) is not None


@lru_cache(maxsize=2)
def layout(config: CoDiConfig) -> Layout:
    """The layout of a configuration; built once, from networks without data."""
    with torch.device("meta"):
        return Layout(config)


def left_out(key: str) -> str | None:
    """Why a published key is not converted; None where it is, or where it is no published key."""
    return next((reason for pattern, reason in LEFT_OUT.items() if re.fullmatch(pattern, key)), None)


def published_file(component: str) -> str:
    """Name of the file of the published release that holds a component."""
    return COMPONENTS[component].published_file

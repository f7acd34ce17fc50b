"""Keys and shapes of the published checkpoint, derived from the networks themselves, and what of it no network needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from ..components import COMPONENTS, build_component
from ..config import CoDiConfig
from ..libraries import stored_state

PREFIXES = {name: entry.published_prefix for name, entry in COMPONENTS.items()}
"""What stands before a component's keys in the published files."""

ENCODERS_FILE = COMPONENTS["clip"].published_file

TIED = {"optimus.decoder.lm_head.weight": "optimus.decoder.transformer.wte.weight"}
"""Published keys of one parameter: later in the published loading order -> the one that is kept. Where they differ, the later decides."""

DEFAULTS = {"clip.model.logit_scale": 4.6052}
"""Weights that only training uses, with the value to take where a file lacks them (CLIP's temperature, log 100)."""

_SCHEDULES = (
    "betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod|"
    "sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|posterior_log_variance_clipped|"
    "posterior_mean_coef1|posterior_mean_coef2|lvlb_weights"
)
LEFT_OUT = {
    rf"({_SCHEDULES})": "the noise schedule is computed from its three constants",
    r"logvar|scale_factor|global_step|epoch": "a constant or counter of training",
    r"model_ema\.(decay|num_updates)": "counters of averaging",
    r"audioldm\.fn_STFT\..+": "Fourier bases and mel filters of the sound autoencoder are computed from its settings",
    r"clap\.model\.audio_branch\.(spectrogram_extractor|logmel_extractor)\..+": "Fourier bases and mel filters of CLAP are computed",
    r"clap\.model\.audio_branch\..+\.(relative_position_index|attn_mask)": "index and mask of shifted windows are computed",
    r"clap\.model\.(text_branch|text_transform|text_projection)(\..+)?": "the text branch of CLAP encodes no prompts",
    r"clap\.model\.logit_scale_[at]|clap\.model\.logit_scale": "a temperature of CLAP's training",
    r"clip\.model\.(text_model|vision_model)\.embeddings\.position_ids": "counts 0, 1, 2, ...",
    r"optimus\.encoder\.embeddings\.position_ids": "counts 0, 1, 2, ...",
    r"optimus\.decoder\.transformer\.h\.\d+\.attn\.(bias|masked_bias)": "the causal mask is computed",
    r"optimus\.decoder\.lm_head\.weight": "tied to the token embedding, which is kept",
    r"(autokl|audioldm)\.(loss|discriminator)\..+": "networks that only training needs",
}
"""Patterns of published keys that no network needs, with the reason."""

_CUT_OFF = ("", "model.", "model.diffusion_model.", "clip.", "clap.")
_AVERAGES = re.compile(r"(^|_)(ema|swa|shadow|averaged?)(_|$)")
_OF_TRAINING = re.compile(r"(^|_)(optim|optimizers?|grads?|momentum|teacher|lr_schedulers?)(_|$)")
_DOTLESS = re.compile(r"(?:.+\.)?model_ema\.(\w+)$")

AVERAGE, TRAINING = "moving average (EMA)", "state of training"
"""What a set of weights is that is not the model's own."""


@dataclass(frozen=True)
class Entry:
    """One weight: its component, its key in that component's own file, its shape."""

    component: str
    key: str
    shape: tuple[int, ...]
    floating: bool


@dataclass(frozen=True)
class Name:
    """What a file's key stands for: a published key, what the file puts before it, and which kind of copy that makes it, if any."""

    published: str
    lead: str
    copy: str = ""


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

    def name(self, key: str) -> Name | None:
        """What a file's key stands for: the longest end of it that is a published key, whatever containers and training frameworks put
        before (`state_dict.`, `module.`), also where a part saved alone lacks a prefix. None for keys of other models."""
        if (dotless := _DOTLESS.match(key)) and (published := self._dotless.get(dotless[1])):
            return Name(published, key[: -len(dotless[1])], AVERAGE)
        start = 0
        while True:
            rest, lead = key[start:], key[:start]
            if found := next((prefix + rest for prefix in _CUT_OFF if self.knows(prefix + rest)), None):
                return Name(found, lead, _copy(lead))
            if (dot := key.find(".", start)) < 0:
                return None
            start = dot + 1

    def knows(self, key: str) -> bool:
        """Whether this is a published key, needed or left out."""
        return key in self.entries or left_out(key) is not None

    @cached_property
    def _dotless(self) -> dict[str, str]:
        """Names that averaging in latent diffusion gives to parameters of `model`: without dots."""
        return {key.removeprefix("model.").replace(".", ""): key for key in self.entries}


@lru_cache(maxsize=2)
def layout(config: CoDiConfig) -> Layout:
    """The layout of a configuration; built once, from networks without data."""
    with torch.device("meta"):
        return Layout(config)


@lru_cache(maxsize=1 << 16)
def left_out(key: str) -> str | None:
    """Why a published key is not converted; None where it is, or where it is no published key."""
    return next((reason for pattern, reason in LEFT_OUT.items() if re.fullmatch(pattern, key)), None)


def published_file(component: str) -> str:
    """Name of the file of the published release that holds a component."""
    return COMPONENTS[component].published_file


def _copy(lead: str) -> str:
    parts = lead.lower().split(".")
    if any(_OF_TRAINING.search(part) for part in parts):
        return TRAINING
    return AVERAGE if any(_AVERAGES.search(part) for part in parts) else ""

"""CLAP: the audio branch with its front end and stages, and the whole way from a waveform at 16 kHz to the shared space."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ..conversion.layout import PREFIXES
from ..encoders import preprocess
from ..encoders.clap import CLAPEncoder
from .check import MEL_ABSOLUTE, Check
from .configs import clap_config
from .networks import Networks
from .watch import Watch

SOURCE_RATE = 16000
WRAPPER_TOLERANCE = 1e-3
BRANCH = "model.audio_branch."
DURATION = re.compile(r"\d+s")


class AudioBranch(CLAPEncoder):
    """HTSAT alone, without the projection: a waveform (B, N) to features (B, C). Weights have the published keys below the branch."""

    def published_key(self, key: str) -> str | None:
        key = super().published_key(key) or ""
        return key.removeprefix(BRANCH) if key.startswith(BRANCH) else None

    def forward(self, waveform: Tensor) -> Tensor:
        return self.network.audio_model(input_features=self.mel(waveform)[:, None]).pooler_output


def check_htsat(check: Check, networks: Networks) -> None:
    """The audio branch alone, from sound at 16 kHz: resampled, repeated and padded as the wrapper does."""
    fixture = check.fixture
    config = clap_config(fixture.setting("config"))
    net: AudioBranch = networks.checked(check, lambda: AudioBranch(config), f"htsat {config}", PREFIXES["clap"] + BRANCH)
    samples = int((fixture.info.get("info") or {}).get("samples_after_repeatpad", config.clip_seconds * config.sample_rate))
    for label, sound in fixture.labels("in/waveform_16k"):
        waveform = preprocess.resample(sound.flatten(1), SOURCE_RATE, config.sample_rate)
        _sampled(check, f"mid/waveform_{config.sample_rate // 1000}k_first", waveform)
        waveform = preprocess.repeat_pad(waveform, samples)
        _sampled(check, f"mid/waveform_{config.sample_rate // 1000}k_last", waveform)
        pictures: list[Tensor] = []
        patches = net.network.audio_model.audio_encoder.patch_embed
        hook = patches.register_forward_pre_hook(lambda _module, inputs, kept=pictures: kept.append(inputs[0]))
        paths = {name: name.removeprefix("mid/") for name in check.open("mid/")}
        with Watch(net, {**paths, "mid/logmel_power_db": "mel"}) as watch:
            check.tensor(f"out/embedding{label}", net(waveform))
        hook.remove()
        for name in check.open("mid/spectrogram_image"):
            check.tensor(name, pictures[0])
        decibels = watch.result("mid/logmel_power_db")
        if decibels is not None:
            check.tensor("mid/logmel_power_db", decibels, tolerance=MEL_ABSOLUTE, absolute=True)
        check.watched(watch)


def _sampled(check: Check, prefix: str, waveform: Tensor) -> None:
    for name in check.open(prefix):
        check.tensor(name, waveform)


def check_clap(check: Check, networks: Networks) -> None:
    """The whole sound prompt encoder; silence needs no input."""
    check.tolerance = WRAPPER_TOLERANCE
    fixture = check.fixture
    config = clap_config(fixture.setting("config"))
    net: CLAPEncoder = networks.checked(check, lambda: CLAPEncoder(config), config, PREFIXES["clap"])
    sounds = dict(fixture.labels("in/waveform_"))  # label, such as 16k or 10s_16k -> (B, 1, samples)
    for name in check.open("out/embedding"):
        label = name.removeprefix("out/embedding").strip("_")
        if "silence" in label:
            sound: Tensor | None = torch.zeros(fixture.tensors[name].shape[0], SOURCE_RATE)
        else:
            sound = _sound_of(label, sounds)
        if sound is not None:
            check.tensor(name, preprocess.encode_audio(net, sound, SOURCE_RATE))


def _sound_of(label: str, sounds: dict[str, Tensor]) -> Tensor | None:
    """The input that an embedding was made of: of the same label, else of the same duration."""
    plain = {key.removesuffix("16k").strip("_"): sound for key, sound in sounds.items()}
    if label in plain:
        return plain[label]
    duration = DURATION.search(label)
    return next((sound for key, sound in plain.items() if duration and duration[0] in key.split("_")), None)

"""Autoencoders of pictures and sound, the mel front end and the vocoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..autoencoders.audio import AudioAutoencoder
from ..autoencoders.image import ImageAutoencoder
from ..autoencoders.mel import LogMel, hann_window, levelled, mel_bank
from ..autoencoders.vocoder import Vocoder
from ..config import VocoderConfig
from ..conversion.layout import PREFIXES
from .check import MEL_ABSOLUTE, Check
from .configs import autoencoder_config, mel_config, vocoder_config
from .keys import check_keys, layout_of, listed, stem
from .networks import Networks, empty_layout
from .watch import Watch

FRAMES_PER_SECOND = 102.4
"""Mel frames that the published code takes for a second of sound."""


def check_image(check: Check, networks: Networks) -> None:
    """The picture autoencoder on every picture, clip and latent of the fixture."""
    fixture = check.fixture
    net = _autoencoder(check, networks, ImageAutoencoder)
    for label, x in fixture.labels("in/"):
        decodes = re.fullmatch(r"z(_.*)?", label)
        with _watching(check, net, "decoder" if decodes else "encoder"):
            if decodes:
                check.tensor(f"out/decoded{label[1:]}", net.decode(x))
            else:
                mean, logvar = net.moments(x)
                suffix = f"_{label}" if f"out/mean_{label}" in fixture.tensors else ""
                check.tensor(f"out/mean{suffix}", mean)
                check.tensor(f"out/logvar{suffix}", logvar)


def check_audio(check: Check, networks: Networks) -> None:
    """The sound autoencoder from waveform to latent and from latent to log-mel; with its vocoder where the fixture has one."""
    fixture = check.fixture
    net = _autoencoder(check, networks, AudioAutoencoder)
    frames = _frames(fixture.info)
    for label, waveform in fixture.labels("in/waveform"):
        check.tensor(f"mid/normalised_waveform{label}", levelled(waveform))
        check.tensor(f"out/mel{label}", lambda w=waveform: net.mel(w, frames=frames))  # type: ignore[misc]
        with _watching(check, net, "encoder"):
            mean, logvar = net.moments(waveform, frames=frames)
        check.tensor(f"out/mean{label}", mean)
        check.tensor(f"out/logvar{label}", logvar)
    for label, z in fixture.labels("in/z"):
        with _watching(check, net, "decoder"):
            logmel = net.decode(z)
        check.tensor(f"out/decoded_mel{label}", logmel)
        if check.open(f"out/waveform{label}"):
            before = stem(fixture.info, layout_of(net))
            vocoder = networks.filled(lambda: Vocoder(VocoderConfig()), fixture.seed, f"{before}vocoder.", key="vocoder")
            check.tensor(f"out/waveform{label}", vocoder(logmel, trim=False))


def check_mel(check: Check, networks: Networks) -> None:
    """The log-mel front end, its tables, and silence."""
    fixture = check.fixture
    mel = LogMel(mel_config(fixture.setting("config")))
    frames, cpu = _frames(fixture.info), torch.device("cpu")
    check.tensor("mid/hann_window_periodic", lambda: hann_window(mel.config.n_fft, cpu), tolerance=1e-5)
    check.tensor("mid/mel_basis", lambda: mel_bank(mel.config, cpu))
    silence = torch.zeros(1, frames * mel.config.hop_length)
    for label, waveform in {**dict(fixture.labels("in/waveform_")), "of_silence": silence}.items():
        check.tensor(f"out/mel_{label}", lambda w=waveform: mel(w, frames=frames), tolerance=MEL_ABSOLUTE, absolute=True)  # type: ignore[misc]
        for name in check.open("mid/magnitude"):
            if name.endswith(f"_{label}"):
                check.tensor(name, mel.magnitude(mel.prepare(waveform, frames, normalize=True)))
    for label, waveform in fixture.labels("in/waveform"):
        check.tensor(f"mid/normalised_waveform{label}", levelled(waveform))


def check_vocoder(check: Check, networks: Networks) -> None:
    """HiFi-GAN from log-mel (B, mel bins, frames) to the waveform with the samples that the published network adds."""
    fixture = check.fixture
    config = vocoder_config(fixture.setting("config"))
    net = networks.checked(check, lambda: Vocoder(config), config, PREFIXES["vocoder"])
    for label, logmel in fixture.labels("in/mel"):
        with _watching(check, net, ""):
            check.tensor(f"out/waveform{label}", net(logmel.transpose(1, 2), trim=False))


def _autoencoder(check: Check, networks: Networks, kind: type[Any]) -> Any:
    """The network, with its keys checked; what the key list says of a vocoder is checked against the published one."""
    fixture, official = check.fixture, check.fixture.setting("config")
    config = autoencoder_config(official)
    extra = (mel_config(official.get("preprocessing", official)),) if kind is AudioAutoencoder else ()
    layout = empty_layout(lambda: kind(config, *extra))
    before = stem(fixture.info, layout)
    net = networks.filled(lambda: kind(config, *extra), fixture.seed, before, key=f"{kind.__name__} {config}")
    if any(key.startswith(f"{before}vocoder.") for key in listed(fixture.info) or ()):
        layout |= layout_of(Vocoder(VocoderConfig(), device="meta"), "vocoder.")
    check_keys(check, layout, PREFIXES["audio_autoencoder" if extra else "image_autoencoder"])
    return net


class _watching(Watch):
    """Compares, at its end, the intermediates below `part` that were not compared yet."""

    def __init__(self, check: Check, root: nn.Module, part: str) -> None:
        names = {name: name.removeprefix("mid/") for name in check.open("mid/")}
        super().__init__(root, {name: path for name, path in names.items() if path.startswith(part)})
        self.check = check

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None:
            self.check.watched(self)


def _frames(info: Mapping[str, Any]) -> int:
    return int(info.get("target_frames") or int(float(info.get("seconds", 10.0)) * FRAMES_PER_SECOND))

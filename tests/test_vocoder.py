"""Vocoders: HiFi-GAN's length and range, phases of the one that predicts a spectrum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from codi.codi_models.autoencoders.mel import LogMel
from codi.codi_models.autoencoders.spectrum import SpectrumVocoder, build_vocoder
from codi.codi_models.errors import CoDiError
from small import HIFIGAN, small_config

MINI = small_config()


@pytest.mark.parametrize("config", [HIFIGAN, MINI.vocoder], ids=["hifigan", "spectrum"])
def test_vocoder_gives_one_hop_a_frame(config: Any) -> None:
    torch.manual_seed(0)
    net = build_vocoder(config).requires_grad_(False)
    mel = torch.randn(2, 1, 128, 64)
    wave = net(mel)
    assert wave.shape == (2, 20480) and wave.abs().max() <= 1
    assert torch.equal(net(mel[:, 0]), wave)
    with pytest.raises(CoDiError, match=r"\(B, T, 64\)"):
        net(mel[:, 0].mT)


def test_phases_found_for_true_magnitudes_give_the_tone_back() -> None:
    net = SpectrumVocoder(MINI.vocoder)
    time = torch.arange(16000) / 16000
    wave = 0.5 * (2 * torch.pi * 437.0 * time).sin()[None]  # no multiple of the frame rate
    front = LogMel(MINI.mel)
    magnitudes = front.magnitude(front.prepare(wave, 100, False))[..., :100]
    net.log_magnitudes = lambda mel: (magnitudes + 1e-5).log()
    again = net(front(wave, frames=100))[:, 2000:14000]
    spectrum = torch.fft.rfft(again, n=1 << 17).abs()[0]
    assert spectrum.argmax().item() * 16000 / (1 << 17) == pytest.approx(437.0, abs=5.0)  # a third of a bin of the transform
    assert again.square().mean().sqrt().item() == pytest.approx(0.5**1.5, rel=0.1)


def test_a_partial_that_the_network_leaves_out_comes_back_from_the_mel() -> None:
    net = SpectrumVocoder(MINI.vocoder)
    time = torch.arange(16000) / 16000
    low, high = (0.4 * (2 * torch.pi * pitch * time).sin()[None] for pitch in (500.0, 4000.0))
    front = LogMel(MINI.mel)
    without = front.magnitude(front.prepare(low, 100, False))[..., :100]
    net.log_magnitudes = lambda mel: (without + 1e-5).log()
    mel = front(low + high, frames=100, normalize=False)
    again = front(net(mel), frames=100, normalize=False)
    loudest = torch.stack([mel[0, 0, 50, :40].argmax(), 40 + mel[0, 0, 50, 40:].argmax()])  # 500 Hz and 4 kHz
    torch.testing.assert_close(again[0, 0, 20:80, loudest], mel[0, 0, 20:80, loudest], atol=0.5, rtol=0)

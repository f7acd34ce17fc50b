"""The prompt encoder for sound at codi-mini's size: sounds of any rate and length, windows, refusals."""

from __future__ import annotations

import pytest
import torch
from codi.codi_models.encoders.clap import CLAPEncoder
from codi.codi_models.encoders.preprocess import encode_audio, repeat_pad, resample
from codi.codi_models.errors import CoDiError
from small import small_config

MINI = small_config()


@pytest.fixture(scope="module")
def clap():
    torch.manual_seed(0)
    return CLAPEncoder(MINI.clap).eval().requires_grad_(False)


def embedding(clap, sound, rate, **options):
    made = encode_audio(clap, sound, rate, **options)
    assert made.shape == (len(sound), 1, MINI.clap.projection_dim)
    assert torch.allclose(made.norm(dim=-1), torch.ones(len(sound), 1), atol=1e-5)
    return made


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 44101, 48000])
def test_sound_of_any_rate_and_length(clap, rate):
    for seconds in (0.3, 1.28, 3.0):
        embedding(clap, torch.randn(2, 2, int(seconds * rate)) * 0.1, rate)
    embedding(clap, torch.ones(1, 1), rate)


def test_silence_is_a_prompt(clap):
    silence = embedding(clap, torch.zeros(1, 16000), 16000)
    assert silence.isfinite().all()
    assert torch.allclose(silence, encode_audio(clap, torch.zeros(1, 2, 160000), 16000), atol=1e-5)


def test_long_sound_is_the_mean_of_its_windows(clap):
    n = clap.clip_samples
    sound = torch.randn(2, 11 * n + n // 2) * torch.linspace(0, 1, 11 * n + n // 2)
    parts = [clap.encode_audio(sound[:, i * n : (i + 1) * n]) for i in range(11)]
    parts.append(0.5 * clap.encode_audio(repeat_pad(sound[:, 11 * n :], n)))
    expected = torch.nn.functional.normalize(torch.stack(parts).sum(dim=0), dim=-1)
    for batch_size in (1, 6, 64):
        assert torch.allclose(encode_audio(clap, sound, 16000, batch_size=batch_size), expected, atol=1e-5)


def test_published_crop_is_one_window_and_seeded(clap):
    sound = torch.randn(1, 5 * clap.clip_samples)
    a, b, c = (encode_audio(clap, sound, 16000, crop=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    start = int(torch.randint(4 * clap.clip_samples + 1, (1,), generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(a, clap.encode_audio(sound[:, start : start + clap.clip_samples]), atol=1e-5)


def test_memory_of_long_sound_is_bounded(clap, monkeypatch):
    """Three hours of sound, as a view of one sample, reach the network in windows, a few at a time."""
    sizes = []

    def encode(windows):
        sizes.append(tuple(windows.shape))
        return torch.ones(len(windows), 1, MINI.clap.projection_dim)

    monkeypatch.setattr(clap, "encode_audio", encode)
    embedding(clap, torch.zeros(1, 1).expand(1, 3 * 3600 * 16000), 16000, batch_size=8)
    assert sum(n for n, _ in sizes) == 8438 and {m for _, m in sizes} == {clap.clip_samples} and max(n for n, _ in sizes) == 8


@pytest.mark.parametrize(
    ("sound", "rate", "message"),
    [
        (torch.tensor([[0.0, torch.nan]]), 16000, "NaN or infinite"),
        (torch.tensor([[0.0, torch.inf]]), 16000, "NaN or infinite"),
        (torch.zeros(1, 0), 16000, r"\(1, 0\).*not empty"),
        (torch.zeros(100), 16000, r"\(100,\)"),
        (torch.zeros(1, 100, dtype=torch.int16), 16000, "torch.int16"),
        (torch.zeros(1, 100), 0, "0 Hz.*1000 to 768000"),
    ],
)
def test_unusable_sound_is_named(clap, sound, rate, message):
    with pytest.raises(CoDiError, match=message):
        encode_audio(clap, sound, rate)


def test_resampling_keeps_a_tone():
    for rate in (44100, 44101, 8000):
        tone = torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)[None]
        out = resample(tone, rate, 16000)
        expected = torch.sin(2 * torch.pi * 440 * torch.arange(out.shape[1]) / 16000)[None]
        assert abs(out.shape[1] - 16000) <= 1
        assert (out - expected)[:, 200:-200].abs().max() < 0.01

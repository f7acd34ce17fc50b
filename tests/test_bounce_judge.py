"""Bounce World's judge on clean media, on media as imperfect as generated ones, and on what it must not read."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from codi.codi_models.bounce_world import render, report
from codi.codi_models.bounce_world import world as bounce
from codi.codi_models.bounce_world.judge import judge_audio, judge_image, judge_text, judge_video
from codi.codi_models.bounce_world.judge_audio import resample
from codi.codi_models.errors import CoDiError
from torch import Tensor
from torch.nn import functional


def batch(n: int, seed: int = 0) -> tuple[bounce.Scenes, bounce.Nuisance]:
    """n scenes, all 72 in turn, with random nuisance."""
    return bounce.every_scene()[torch.arange(n) % 72], bounce.sample_nuisance(n, generator=torch.Generator().manual_seed(seed))


def assert_all_right(judged: dict[str, Tensor], scenes: bounce.Scenes, medium: str, off_by: float = 0.01) -> None:
    """Every attribute of every sample, and every hit within `off_by` seconds."""
    for name, share in report.accuracy(judged, scenes, bounce.SEEN_IN[medium]).items():
        assert share.value == 1, f"{medium} {name}: {share}"
    if "times" in judged:
        expected = bounce.hit_times(scenes.beats)
        error = judged["times"][:, :3] - expected
        assert torch.equal(error.isnan(), expected.isnan()) and judged["times"][:, 3:].isnan().all()
        assert error.nan_to_num().abs().max() < off_by


def test_clean_pictures_read_right() -> None:
    scenes, nuisance = batch(432)
    assert_all_right(judge_image(render.render_image(scenes, nuisance)), scenes, "image")


def test_clean_clips_read_right() -> None:
    scenes, nuisance = batch(72, seed=1)
    assert_all_right(judge_video(render.render_video(scenes, nuisance)), scenes, "video")


def test_clean_sounds_read_right() -> None:
    scenes, nuisance = batch(432, seed=2)
    assert_all_right(judge_audio(render.render_audio(scenes, nuisance), 16000), scenes, "audio", off_by=0.003)


def blurred(pixels: Tensor) -> Tensor:
    kernel = (-0.5 * torch.arange(-4.0, 5.0).square()).exp()
    kernel /= kernel.sum()
    flat = functional.pad(pixels.reshape(-1, 1, 64, 64), (4, 4, 4, 4), mode="replicate")
    return functional.conv2d(functional.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).reshape(pixels.shape)


def noisy(pixels: Tensor) -> Tensor:
    return (pixels + 0.03 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)


def tinted(pixels: Tensor) -> Tensor:
    shift = torch.rand(len(pixels), *[1] * (pixels.ndim - 4), 3, 1, 1, generator=torch.Generator().manual_seed(4))
    return (pixels + 0.1 * shift - 0.05).clamp(0, 1)


def floor_lifted(pixels: Tensor) -> Tensor:
    return torch.cat([pixels[..., :55, :], pixels[..., 56:, :], pixels[..., -1:, :]], dim=-2)


def all_at_once(pixels: Tensor) -> Tensor:
    return noisy(tinted(blurred(floor_lifted(pixels))))


@pytest.mark.parametrize("spoil", [blurred, noisy, tinted, floor_lifted, all_at_once])
def test_imperfect_pictures_and_clips_read_right(spoil: Callable[[Tensor], Tensor]) -> None:
    scenes, nuisance = batch(72, seed=5)
    assert_all_right(judge_image(spoil(render.render_image(scenes, nuisance))), scenes, "image")
    some = torch.arange(0, 72, 5)
    assert_all_right(judge_video(spoil(render.render_video(scenes[some], nuisance[some]))), scenes[some], "video", off_by=0.02)


def hissing(wave: Tensor) -> tuple[Tensor, int]:
    return wave + 10 ** (-35 / 20) * torch.randn(wave.shape, generator=torch.Generator().manual_seed(6)), 16000


def other_phases(wave: Tensor) -> tuple[Tensor, int]:
    """Keeps magnitudes and turns phases, as a vocoder does: each frequency by its own, changing smoothly with frequency."""
    spectrum = torch.fft.rfft(wave)
    knots = 3 * torch.randn(len(wave), 1, 24, generator=torch.Generator().manual_seed(7))
    phase = functional.interpolate(knots, size=spectrum.shape[1], mode="linear", align_corners=True).squeeze(1)
    return torch.fft.irfft(spectrum * torch.polar(torch.ones_like(phase), phase), n=wave.shape[1]), 16000


def longer(wave: Tensor) -> tuple[Tensor, int]:
    return functional.pad(wave, (0, 512)), 16000


def shorter(wave: Tensor) -> tuple[Tensor, int]:
    return wave[:, :-512], 16000


def stereo_44100(wave: Tensor) -> tuple[Tensor, int]:
    return resample(wave, 16000, 44100).unsqueeze(1).expand(-1, 2, -1), 44100


@pytest.mark.parametrize(
    "spoil, off_by", [(hissing, 0.004), (other_phases, 0.02), (longer, 0.003), (shorter, 0.003), (stereo_44100, 0.003)]
)
def test_imperfect_sounds_read_right(spoil: Callable[[Tensor], tuple[Tensor, int]], off_by: float) -> None:
    scenes, nuisance = batch(144, seed=8)
    wave, rate = spoil(render.render_audio(scenes, nuisance))
    assert_all_right(judge_audio(wave, rate), scenes, "audio", off_by)


def test_sounds_through_griffin_lim_read_right() -> None:
    scenes, nuisance = batch(72, seed=9)
    wave, window = render.render_audio(scenes, nuisance), torch.hann_window(1024)
    magnitude = torch.stft(wave, 1024, 256, window=window, return_complex=True).abs()
    turned = torch.polar(magnitude, 2 * math.pi * torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(10)))
    for _ in range(16):
        wave = torch.istft(turned, 1024, 256, window=window, length=20480)
        again = torch.stft(wave, 1024, 256, window=window, return_complex=True)
        turned = torch.polar(magnitude, again.angle())
    assert_all_right(judge_audio(wave, 16000), scenes, "audio", off_by=0.03)


def test_resampling_keeps_tones_and_drops_what_the_new_rate_cannot_hold() -> None:
    def tone(hertz: float, rate: int) -> Tensor:
        return (2 * math.pi * hertz * torch.arange(rate, dtype=torch.float64) / rate).sin().unsqueeze(0)

    for rate in (8000, 22050, 44100, 48000):
        assert torch.allclose(resample(tone(440, rate), rate, 16000), tone(440, 16000), atol=1e-9)
    assert resample(tone(10000, 48000), 48000, 16000).abs().max() < 1e-9


def test_hit_times_are_measured_not_assumed() -> None:
    scenes, nuisance = batch(24, seed=11)
    late = 0.04
    times = bounce.frame_times() - late
    frames = torch.stack([render.render_image(scenes, nuisance, time.expand(24)) for time in times], dim=1)
    sound = functional.pad(render.render_audio(scenes, nuisance), (round(late * 16000), 0))[:, :20480]
    for judged, off_by in ((judge_video(frames), 0.011), (judge_audio(sound, 16000), 0.003)):
        assert torch.equal(judged["beats"], scenes.beats)
        error = judged["times"][:, :3] - late - bounce.hit_times(scenes.beats)
        assert error.nan_to_num().abs().max() < off_by


def test_what_shows_no_object_is_unreadable() -> None:
    floor = torch.full((1, 3, 64, 64), 0.1)
    floor[:, :, 56:58] = 0.35
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(12)) * 0.2
    bars = floor.clone()
    bars[:, 0, 10:50, 5:60] = 0.9  # far larger than any object
    for pixels in (floor, torch.zeros(1, 3, 64, 64), noise, torch.full((1, 3, 64, 64), torch.nan)):
        assert (judge_image(pixels)["shape"] == -1).all() and (judge_image(pixels)["colour"] == -1).all()
    assert (judge_image(bars)["shape"] == -1).all()
    assert all((judge_video(floor.expand(8, -1, -1, -1).unsqueeze(0))[name] == -1).all() for name in bounce.ATTRIBUTES)


def test_an_object_that_does_not_bounce_has_no_beats() -> None:
    scenes, nuisance = batch(24, seed=13)
    still = render.render_image(scenes, nuisance).unsqueeze(1)
    judged = judge_video(still.expand(-1, 8, -1, -1, -1))
    assert (judged["beats"] == -1).all() and judged["times"].isnan().all()
    assert torch.equal(judged["shape"], scenes.shape) and torch.equal(judged["colour"], scenes.colour)
    assert (judge_video(still)["beats"] == -1).all() and torch.equal(judge_video(still)["shape"], scenes.shape)  # a clip of one frame


def test_what_is_no_note_is_unreadable() -> None:
    time = torch.arange(20480) / 16000
    silent = torch.zeros(1, 20480)
    hiss = 0.1 * torch.randn(4, 20480, generator=torch.Generator().manual_seed(14))
    for wave in (silent, hiss, silent[:, :100], torch.full((1, 20480), torch.nan)):
        assert all((judge_audio(wave, 16000)[name] == -1).all() for name in bounce.ATTRIBUTES)
    steady = judge_audio(0.5 * (2 * math.pi * 587 * time).sin().unsqueeze(0), 16000)
    assert (steady["colour"], steady["beats"], steady["shape"]) == (2, -1, 0)
    between = judge_audio(0.5 * (2 * math.pi * 510 * time).sin().unsqueeze(0), 16000)
    assert between["colour"] == -1


def test_four_notes_are_not_three() -> None:
    scenes, nuisance = batch(72, seed=15)
    once = scenes.beats == 0
    note = render.render_audio(scenes[once], nuisance[once])[:, 10240:15000]
    judged = judge_audio(functional.pad(torch.cat([note] * 4, dim=1), (2000, 0)), 16000)
    assert (judged["beats"] == -1).all() and (~judged["times"].isnan()).sum(dim=1).eq(4).all()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a red circle bounces three times", (0, 0, 2)),
        ("the star is magenta and bounces once", (3, 5, 0)),
        ("something bounces twice", (-1, -1, 1)),
        ("red star, red star", (3, 0, -1)),
        ("a red blue star bounces once", (3, -1, 0)),
        ("a yelow star bounces three", (3, -1, -1)),
        ("redder squares bounce once twice", (-1, -1, -1)),
        ("Green Square, Twice.", (1, 2, 1)),
        ("", (-1, -1, -1)),
    ],
)
def test_captions_are_read_by_their_attribute_words(text: str, expected: tuple[int, int, int]) -> None:
    judged = judge_text([text])
    assert tuple(int(judged[name]) for name in bounce.ATTRIBUTES) == expected


def test_bad_input_is_named() -> None:
    with pytest.raises(CoDiError, match=r"\(1, 3, 32, 32\).*\(n, 3, 64, 64\)"):
        judge_image(torch.zeros(1, 3, 32, 32))
    with pytest.raises(CoDiError, match=r"uint8"):
        judge_video(torch.zeros(1, 8, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(CoDiError, match=r"\(20480,\).*\(n, N\)"):
        judge_audio(torch.zeros(20480), 16000)
    with pytest.raises(CoDiError, match="sample rate of 0 Hz"):
        judge_audio(torch.zeros(1, 20480), 0)


def test_no_samples_are_no_error() -> None:
    assert len(judge_image(torch.zeros(0, 3, 64, 64))["shape"]) == 0
    assert len(judge_video(torch.zeros(0, 8, 3, 64, 64))["beats"]) == 0
    assert len(judge_audio(torch.zeros(0, 20480), 16000)["beats"]) == 0
    assert len(judge_text([])["beats"]) == 0


def test_shares_and_intervals() -> None:
    assert report.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Brown, Cai, DasGupta 2001
    assert report.wilson(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    assert report.wilson(20, 20) == (pytest.approx(0.8389, abs=1e-4), 1.0)
    scenes = bounce.Scenes(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 0]))
    judged = {"shape": torch.tensor([0, 1, 2, -1]), "colour": torch.tensor([0, 1, 1, 1])}
    assert {k: (v.successes, v.total) for k, v in report.accuracy(judged, scenes).items()} == {
        "shape": (3, 4),
        "colour": (3, 4),
        "all": (2, 4),
    }
    other = {"shape": torch.tensor([0, 1, 0, -1]), "colour": torch.tensor([0, 1, 1, 1]), "beats": torch.tensor([0, 0, 0, 0])}
    agree = report.agreement(judged, other, ["shape"])
    assert {k: (v.successes, v.total) for k, v in agree.items()} == {"shape": (2, 4)}  # two unreadable ones do not agree
    assert str(agree["shape"]) == "50.0 % [15.0, 85.0] of 4"
    with pytest.raises(CoDiError, match="'beats'.*shape, colour"):
        report.accuracy(judged, scenes, ["beats"])
    with pytest.raises(CoDiError, match="4 samples cannot be compared with 2"):
        report.accuracy(judged, scenes[:2])

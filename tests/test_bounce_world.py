"""Bounce World's generator against its definition, written a second time here by other means."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from codi.codi_models.__main__ import main
from codi.codi_models.bounce_world import judge, render
from codi.codi_models.bounce_world import world as bounce
from codi.codi_models.media import read_audio, read_image, read_video


def batch(n: int, seed: int = 0) -> tuple[bounce.Scenes, bounce.Nuisance]:
    """n scenes, all 72 in turn, with random nuisance."""
    return bounce.every_scene()[torch.arange(n) % 72], bounce.sample_nuisance(n, generator=torch.Generator().manual_seed(seed))


def outline(shape: str, r: float) -> np.ndarray:
    """Corners (k, 2) around the centre, y downwards; the circle as a polygon of many corners."""
    if shape == "square":
        return 0.9 * r * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    radii = np.array({"circle": [r] * 90, "triangle": [1.15 * r] * 3, "star": [1.2 * r, 0.5 * r] * 5}[shape])
    angles = 2 * math.pi * np.arange(len(radii)) / len(radii)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Even-odd rule: points (..., 2) in a polygon (k, 2)."""
    result = np.zeros(points.shape[:-1], dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (points[..., 1] >= y0) != (points[..., 1] >= y1)
            result ^= crosses & (points[..., 0] < x0 + (points[..., 1] - y0) * (x1 - x0) / (y1 - y0))
    return result


@pytest.mark.parametrize("shape", bounce.SHAPES)
def test_pictures_have_the_exact_outline(shape: str) -> None:
    scenes, nuisance = batch(72)
    rows = (scenes.shape == bounce.SHAPES.index(shape)).nonzero().squeeze(1)[::6]
    images = render.render_image(scenes[rows], nuisance[rows])
    fine = (np.arange(64 * 8) + 0.5) / 8
    for image, row in zip(images, rows.tolist(), strict=True):
        n = bounce.BEATS[int(scenes.beats[row])]
        r, x, grey, time = (float(getattr(nuisance, name)[row]) for name in ("radius", "x", "grey", "time"))
        y = 55 - r - abs(math.cos(math.pi * n * time / 1.28)) * (51 - 2 * r)
        points = np.stack(np.meshgrid(fine - x, fine - y, indexing="xy"), axis=-1)
        cover = inside(points, outline(shape, r)).reshape(64, 8, 64, 8).mean(axis=(1, 3))
        colour = np.array(bounce.RGB[int(scenes.colour[row])])[:, None, None]
        expected = grey + cover * (colour - grey)
        hits = [(k + 0.5) * 1.28 / n for k in range(n)]
        expected[:, 56:58] = colour if min(abs(time - t) for t in hits) <= 0.08 else 0.35
        error = np.abs(image.numpy() - expected)
        assert error.max() < 0.15  # at the tips of a star; the reference itself is good to 1 / 64 of a pixel
        assert error.mean() < 4e-4


def test_the_floor_flashes_in_the_frames_around_a_hit() -> None:
    scenes, nuisance = batch(72)
    floor = render.render_video(scenes, nuisance)[:, :, :, 56, 0]  # (n, 8, 3)
    flashes = (floor - 0.35).abs().amax(dim=2) > 0.05
    frames_of = {1: [3, 4], 2: [1, 2, 5, 6], 3: [1, 3, 4, 6]}
    for i in range(72):
        assert flashes[i].nonzero().squeeze(1).tolist() == frames_of[bounce.BEATS[int(scenes.beats[i])]]


def test_sounds_follow_their_formula() -> None:
    scenes, nuisance = batch(72, seed=1)
    waves = render.render_audio(scenes, nuisance).double().numpy()
    assert waves.shape == (72, 20480)
    seconds = np.arange(20480) / 16000
    for i, wave in enumerate(waves):
        shape, n = bounce.SHAPES[int(scenes.shape[i])], bounce.BEATS[int(scenes.beats[i])]
        f = bounce.FREQUENCIES[int(scenes.colour[i])] * float(nuisance.detune[i])
        harmonics = {"circle": [1], "star": [1], "square": range(1, 99, 2), "triangle": range(1, 99)}[shape]
        tone, envelopes = np.zeros(20480), np.zeros(20480)
        for k in range(n):
            t = seconds - (k + 0.5) * 1.28 / n
            envelope = np.where(t < 0, 0, np.where(t < 0.005, t / 0.005, np.exp(-(t - 0.005).clip(0) / 0.1)))
            tone += envelope * sum(np.sin(2 * math.pi * h * f * t) / h for h in harmonics if h * f <= 7000)
            envelopes += envelope
        assert np.abs(wave).max() == pytest.approx(float(nuisance.peak[i]), rel=1e-5)
        if shape != "star":
            assert np.abs(wave - tone * float(nuisance.peak[i]) / np.abs(tone).max()).max() < 2e-3  # frequencies are single precision
            continue
        gain = (wave @ tone) / (tone @ tone)
        loud = envelopes > 0.1
        noise = (wave - gain * tone)[loud] / (gain * envelopes[loud])  # as loud as the sine, whose RMS is root 1/2
        assert np.sqrt((noise**2).mean()) == pytest.approx(math.sqrt(0.5), rel=0.12)
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        quarters = [part.mean() for part in np.array_split(spectrum, 4)]
        assert max(quarters) < 1.6 * min(quarters)  # white


def test_noise_differs_between_notes_and_samples() -> None:
    scenes = bounce.every_scene()
    stars = scenes[(scenes.shape == 3) & (scenes.beats == 1)]
    nuisance = bounce.sample_nuisance(len(stars), generator=torch.Generator().manual_seed(2))
    waves = render.render_audio(stars, nuisance)
    notes = torch.stack([waves[:, 5200:6200], waves[:, 15440:16440]], dim=1).flatten(0, 1)
    # Noise only: the sine of a note is the same in both notes of a clip.
    notes = torch.fft.irfft(torch.fft.rfft(notes) * (torch.arange(501) > 120), n=1000)
    alike = torch.corrcoef(notes) - torch.eye(len(notes))
    assert alike.abs().max() < 0.2


def test_a_sample_does_not_depend_on_its_batch() -> None:
    scenes, nuisance = batch(40, seed=3)
    rows = torch.tensor([39, 7, 20])
    for make in (render.render_image, render.render_video, render.render_audio):
        assert torch.allclose(make(scenes, nuisance)[rows], make(scenes[rows], nuisance[rows]), atol=1e-6)


def test_scenes_are_seeded_and_all_of_them_come() -> None:
    assert len(bounce.every_scene()) == 72
    seen = bounce.sample_scenes(4000, generator=torch.Generator().manual_seed(4))
    assert len(set(zip(seen.shape.tolist(), seen.colour.tolist(), seen.beats.tolist(), strict=True))) == 72
    assert torch.bincount(seen.beats).min() > 4000 / 3 * 0.9
    again = bounce.sample_scenes(4000, generator=torch.Generator().manual_seed(4))
    assert torch.equal(again.shape, seen.shape) and torch.equal(again.beats, seen.beats)


def test_nuisance_fills_its_ranges() -> None:
    nuisance = bounce.sample_nuisance(4000, generator=torch.Generator().manual_seed(5))
    for name, low, high in (
        ("grey", 0.05, 0.2),
        ("x", 16, 48),
        ("radius", 8, 11),
        ("time", 0, 1.28),
        ("detune", 0.99, 1.01),
        ("peak", 0.3, 0.8),
    ):
        value = getattr(nuisance, name)
        assert low <= value.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < value.max() <= high


def test_captions_say_what_they_should() -> None:
    assert len(bounce.ALL_CAPTIONS) == len(set(bounce.ALL_CAPTIONS)) == 4 * 72 + 24 + 12 + 6 + 4 + 18 + 3
    read = judge.judge_text(bounce.ALL_CAPTIONS)
    assert torch.equal(torch.stack([read[a] for a in bounce.ATTRIBUTES], dim=1), bounce.CAPTION_ATTRIBUTES)
    scenes, _ = batch(720)
    for full, templates in ((True, 4), (False, 6), (None, 10)):
        ids = bounce.sample_caption_ids(scenes, generator=torch.Generator().manual_seed(6), full=full)
        said = bounce.CAPTION_ATTRIBUTES[ids]
        scene = torch.stack([scenes.shape, scenes.colour, scenes.beats], dim=1)
        assert ((said == scene) | (said == -1)).all()
        assert bool((said >= 0).all()) == (full is True)
        assert len({i for i in range(10) if (bounce.CAPTION_IDS[i, scenes.shape, scenes.colour, scenes.beats] == ids).any()}) == templates
        texts = bounce.captions(scenes, generator=torch.Generator().manual_seed(6), full=full)
        assert texts == [bounce.ALL_CAPTIONS[i] for i in ids.tolist()]
    assert {"a red circle bounces once", "the star is blue and bounces three times", "cyan square, twice", "something red"} < set(
        bounce.ALL_CAPTIONS
    )


def test_the_command_writes_files_that_read_as_their_scenes(tmp_path) -> None:
    assert main(["world", "--out", str(tmp_path), "--count", "4", "--seed", "7"]) == 0
    told = json.loads((tmp_path / "scenes.json").read_text(encoding="utf-8"))
    assert len(told) == 4 and len(list(tmp_path.iterdir())) == 17
    for i, scene in enumerate(told):
        wave, rate = read_audio(tmp_path / f"{i:03d}_audio.wav")
        read = [
            judge.judge_image(read_image(tmp_path / f"{i:03d}_image.png").unsqueeze(0)),
            judge.judge_video(read_video(tmp_path / f"{i:03d}_video.mp4", 8).frames.unsqueeze(0)),
            judge.judge_audio(wave.reshape(1, -1), rate),
            judge.judge_text([(tmp_path / f"{i:03d}_text.txt").read_text(encoding="utf-8")]),
        ]
        for one in read:
            assert bounce.SHAPES[one["shape"]] == scene["shape"] and bounce.COLOURS[one["colour"]] == scene["colour"]
            assert "beats" not in one or bounce.BEATS[one["beats"]] == scene["beats"]


def test_the_command_refuses_what_it_cannot_write(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["world", "--out", str(tmp_path / "file")]) == 2
    assert main(["world", "--out", str(tmp_path / "new"), "--count", "0"]) == 2
    assert "is a file" in (told := capsys.readouterr().err) and "count=0" in told
    assert not (tmp_path / "new").exists()

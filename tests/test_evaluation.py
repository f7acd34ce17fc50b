"""The evaluation: what it asks for, what it reads, how shares become tables, and that readings are kept."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from codi.codi_models.bounce_world import judge, render, words
from codi.codi_models.bounce_world import world as bounce
from codi.codi_models.bounce_world.evaluation import cli, fidelity, sections
from codi.codi_models.bounce_world.evaluation.cells import Cell, Part, Readings, Runner, draw_scenes, read_output, say
from codi.codi_models.bounce_world.evaluation.sections import SECTIONS, agree, right
from codi.codi_models.errors import CoDiError
from codi.codi_models.pipeline import CoDiPipeline, Sample


def true_samples(count: int = 24) -> tuple[torch.Tensor, list[Sample]]:
    """The world's own media as if a model had made them, and their scenes (n, 3)."""
    generator = torch.Generator().manual_seed(2)
    scenes = bounce.every_scene()[torch.arange(count) * 3 % 72]
    image, video, audio = (bounce.sample_nuisance(count, generator=generator) for _ in range(3))
    made = zip(render.render_image(scenes, image), render.render_video(scenes, video), render.render_audio(scenes, audio),
               bounce.captions(scenes, generator=generator, full=True), strict=True)  # fmt: skip
    samples = [Sample(i, x, v, a, t, 6.25, 16000) for i, (x, v, a, t) in enumerate(made)]
    return torch.stack([scenes.shape, scenes.colour, scenes.beats], dim=1), samples


@pytest.fixture(scope="module")
def readings() -> Readings:
    scenes, samples = true_samples()
    return Readings({"a": scenes, "b": scenes.roll(1, 0)}, {o: read_output(samples, o) for o in sections.OUTPUTS})


def test_true_media_are_right_and_agree(readings: Readings) -> None:
    for output in sections.OUTPUTS:
        assert right(readings, output, bounce.SEEN_IN[output]).all()
        assert not right(readings, output, ["colour"], "b").all()
    assert agree(readings, sections.OUTPUTS).all()


def test_what_cannot_be_read_does_not_agree(readings: Readings) -> None:
    outputs = {o: {k: v.clone() for k, v in read.items()} for o, read in readings.outputs.items()}
    outputs["audio"]["shape"][0] = outputs["text"]["shape"][0] = -1
    outputs["image"]["colour"][1] = (outputs["image"]["colour"][1] + 1) % 6
    broken = Readings(readings.scenes, outputs)
    assert agree(broken, ("audio", "text")).tolist()[:3] == [False, True, True]
    assert agree(broken, ("image", "text")).tolist()[:3] == [False, False, True]


def test_readings_survive_the_file(readings: Readings) -> None:
    again = Readings.load(json.loads(json.dumps(readings.dump())))
    for output, read in readings.outputs.items():
        for name, value in read.items():
            assert torch.allclose(again.outputs[output][name], value.to(again.outputs[output][name].dtype), atol=1e-3, equal_nan=True)


def test_true_media_are_faithful_and_bad_ones_are_not(readings: Readings) -> None:
    image, video, audio = (readings.outputs[o][n] for o, n in (("image", "iou"), ("video", "track"), ("audio", "distance")))
    assert image.min() > 0.94 and video.max() < 0.1 and audio.mean() < 1.0
    _, samples = true_samples(12)
    images = torch.stack([s.image for s in samples if s.image is not None])
    blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    assert fidelity.outline_iou(blurred).mean() < image.mean() - 0.05
    frames = torch.stack([s.video for s in samples if s.video is not None])
    shaken = torch.stack([frames[:, i].roll((-1) ** i, -1) for i in range(8)], dim=1)
    assert fidelity.track_error(shaken).nanmean() == pytest.approx(1.0, abs=0.15)
    waves = torch.stack([s.audio for s in samples if s.audio is not None])
    hiss = waves + 0.01 * torch.randn(waves.shape, generator=torch.Generator().manual_seed(0))
    assert fidelity.spectral_distance(hiss, 16000).nanmean() > audio.mean() + 1
    assert not fidelity.outline_iou(torch.full((2, 3, 64, 64), 0.1)).any()


def test_scenes_of_a_sample_differ_in_everything() -> None:
    scenes = draw_scenes(144, torch.Generator().manual_seed(0))
    assert (scenes["a"] != scenes["b"]).all() and len(scenes["a"].unique(dim=0)) == 72
    assert (scenes["b"] < torch.tensor([4, 6, 3])).all()


def test_prompts_say_what_they_are_asked_to() -> None:
    rng = random.Random(0)
    for says in (("shape",), ("colour",), ("shape", "beats"), bounce.ATTRIBUTES):
        read = judge.judge_text([say(Part("text", says=says), (3, 2, 1), rng)])
        assert {name for name, value in read.items() if int(value) >= 0} == set(says)
    texts = {say(Part("text", words="held back"), (0, 0, 2), rng) for _ in range(200)}
    assert len(texts) > 100 and all(any(name in text for name in words.SHAPE_WORDS["circle"]) for text in texts)
    # A phrasing that training draws too would show as a sentence that comes again.
    drawn = {words.users_words(rng, s, c, b) for s in range(4) for c in range(6) for b in range(3) for _ in range(50)}
    assert not texts & drawn and not any(word in text for text in drawn for word in ("could there", "my favourite", "what about"))


def runner(pipe: CoDiPipeline, folder: Path, **changes: Any) -> Runner:
    usual: dict[str, Any] = {"samples": 2, "seed": 1, "overrides": {"steps": 1}, "log": lambda _: None}
    return Runner(pipe, folder / "readings.json.gz", **{**usual, **changes})


def test_readings_are_kept_under_their_key(pipe: CoDiPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(
        ("text", "image"), (Part("text", says=("colour",)), Part("image", scene="b", weight=0.5)), settings=(("schedule", "sequential"),)
    )
    first = runner(pipe, tmp_path).read(cell)
    assert set(first.outputs) == {"text", "image"} and len(first.texts) == 2 and len(first.outputs["image"]["iou"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(CoDiPipeline, "generate", lambda *_, **__: pytest.fail("generated again"))
        kept = runner(pipe, tmp_path).read(cell)
        assert kept.texts == first.texts
        for other in ({"seed": 2}, {"samples": 1}, {"overrides": {"steps": 2}}):
            assert not runner(pipe, tmp_path, **other).known
    stored = json.loads(gzip.decompress((tmp_path / "readings.json.gz").read_bytes()))
    assert len(stored["cells"]) == 1 and "image_autoencoder.safetensors" in stored["key"]["weights"]
    (tmp_path / "readings.json.gz").write_bytes(b"broken")
    assert not runner(pipe, tmp_path).known


def test_given_outputs_are_not_read(pipe: CoDiPipeline, tmp_path: Path) -> None:
    found = runner(pipe, tmp_path).read(Cell(("image", "audio"), given=("image",)))
    assert set(found.outputs) == {"audio"}


def test_every_section_makes_a_report(pipe: CoDiPipeline, tmp_path: Path, readings: Readings, monkeypatch: pytest.MonkeyPatch) -> None:
    """On readings of true media, which meet every goal that does not depend on the model."""
    monkeypatch.setattr(Runner, "read", lambda self, cell: readings)
    place = runner(pipe, tmp_path)
    reports = {name: make(place) for name, make in SECTIONS.items()}
    met = {goal.text: goal.met for report in reports.values() for goal in report.goals}
    assert len(met) >= 9 and all(met.values()), met
    page = cli.page(reports, {**place.key, "model": "true"})
    assert page.count("| yes |") == len(met) and "95 % intervals" in page
    for report in reports.values():
        assert json.dumps(cli.as_json(report), allow_nan=False) and "| --- |" in report.text


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--model", str(folder), "--out", str(tmp_path), "--samples", "1", "--steps", "1", "--only", "synchrony,retrieval"]
    assert cli.main(args) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results["sections"]) == {"synchrony", "retrieval"} and results["version"] == 2
    assert "## Synchrony" in (tmp_path / "README.md").read_text(encoding="utf-8")
    for wrong, words_ in ((["--only", "Z"], "--only Z"), (["--samples", "0"], "--samples 0")):
        with pytest.raises(CoDiError, match=words_):
            cli.main([*args, *wrong])
    with pytest.raises(CoDiError, match="no CoDi model"):
        cli.main(["--model", str(tmp_path / "nowhere")])

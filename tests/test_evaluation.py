"""The evaluation measures what it says: sections on outputs that are known, cells that are found again, and a run on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from codi.codi_models.bounce_world import world as bounce
from codi.codi_models.bounce_world.evaluation import cells as cells_module
from codi.codi_models.bounce_world.evaluation import cli, completion, composition, coupling, matrix, mixing, spread, synchrony, views
from codi.codi_models.bounce_world.evaluation.asking import Part, Recipe, as_rows, draw_scenes, of_kinds, stream
from codi.codi_models.bounce_world.evaluation.cells import Cell, Readings, Store
from codi.codi_models.bounce_world.evaluation.report import Scope
from codi.codi_models.bounce_world.judge import NUISANCE_IN
from codi.codi_models.config import CoDiConfig
from codi.codi_models.errors import CoDiError

SCOPE = Scope(CoDiConfig.mini(), {}, 64, 0)


class Oracle:
    """Readings of an ideal model: outputs show what prompts and kept outputs say; what is open they choose together, or apart."""

    def __init__(self, together: bool = True, spoiled: frozenset[str] = frozenset(), count: int = 64) -> None:
        self.together, self.spoiled, self.count = together, spoiled, count

    def __call__(self, cell: Cell) -> Readings:
        scenes, generator = draw_scenes(cell.recipe, self.count, 0)
        said = torch.full((self.count, 3), -1)
        for part in cell.recipe.parts:
            shows = torch.tensor([a in (bounce.SEEN_IN[part.kind] if part.says is None else part.says) for a in bounce.ATTRIBUTES])
            said = torch.where(shows & (part.weight > 0), scenes[part.scene], said)
        for kept in cell.keep:
            said = torch.where(torch.tensor([a in bounce.SEEN_IN[kept] for a in bounce.ATTRIBUTES]), scenes["a"], said)
        own = as_rows(bounce.sample_scenes(self.count, generator=generator))
        outputs = {}
        for output in cell.outputs:
            if not (self.together and len(cell.outputs) > 1 and ("wiring", "off") not in cell.settings):
                own = as_rows(bounce.sample_scenes(self.count, generator=torch.Generator().manual_seed(stream(output, str(cell.recipe)))))
            rows = torch.where(said >= 0, said, own)
            read = {a: rows[:, k].clone() for k, a in enumerate(bounce.ATTRIBUTES) if a in bounce.SEEN_IN[output]}
            for attribute in self.spoiled & set(read):
                read[attribute][: self.count // 2] = -1
            if output in ("audio", "video"):
                read["times"] = bounce.hit_times(rows[:, 2])
            nuisance = bounce.sample_nuisance(self.count, generator=generator)
            read |= {name: getattr(nuisance, name) for name in NUISANCE_IN[output]}
            outputs[output] = read
        return Readings(scenes, said, outputs)


def goals(section, read) -> dict[str, float]:
    return {goal.text: goal.value for goal in section.report(read, SCOPE).goals}


def test_an_ideal_model_meets_every_goal() -> None:
    for section in (matrix, coupling, synchrony, composition, completion):
        report = section.report(Oracle(), SCOPE)
        assert report.goals and all(goal.met for goal in report.goals), report.text
        json.dumps(report.figures, allow_nan=False)


def test_independent_outputs_do_not_agree_beyond_chance() -> None:
    found = goals(coupling, Oracle(together=False))
    joint = [value for text, value in found.items() if "joint" in text]
    assert len(joint) == 3 and max(joint) < 25
    assert goals(synchrony, Oracle(together=False))["C: joint median, no prompt, s"] > 0.04


def test_unreadable_outputs_count_as_wrong() -> None:
    assert goals(matrix, Oracle(spoiled=frozenset({"colour"})))["A: mean of the 225 cells, %"] == pytest.approx(50, abs=0.1)
    found = matrix.report(Oracle(spoiled=frozenset({"beats"})), SCOPE).figures["cells"]
    pictures = next(f for f in found if f["inputs"] == ["text"] and f["outputs"] == ["image"])
    sounds = next(f for f in found if f["inputs"] == ["text"] and f["outputs"] == ["audio"])
    assert pictures["cell"]["value"] == 1 and sounds["cell"]["value"] == 0.5 and sounds["by_output"]["audio"]["colour"]["value"] == 1


def test_a_matrix_has_225_cells() -> None:
    assert len(set(matrix.cells(SCOPE))) == 225 == len({str(cell) for cell in matrix.cells(SCOPE)})


def test_attributes_that_were_said_do_not_count_as_agreement() -> None:
    sides = {
        "image": {"shape": torch.tensor([0, 1]), "colour": torch.tensor([2, 2])},
        "audio": {"shape": torch.tensor([0, 2]), "colour": torch.tensor([2, 2])},
    }
    found = coupling.agreement(sides, torch.tensor([[-1, 2, -1], [1, -1, -1]]))
    assert (found["shape"].successes, found["shape"].total) == (1, 1) and (found["colour"].successes, found["colour"].total) == (1, 1)
    assert (found["all"].successes, found["all"].total) == (2, 2)


def test_distances_between_hits_and_notes() -> None:
    nan = math.nan
    hits = torch.tensor([[0.2, 0.6, nan], [0.5, nan, nan], [nan, nan, nan], [0.1, nan, nan]])
    onsets = torch.tensor([[0.21, 0.63], [0.5, 1.0], [0.5, nan], [nan, nan]])
    assert synchrony.distances(hits, onsets).tolist() == pytest.approx([0.02, 0.5 / 3, math.inf, math.inf])
    middle, low, high = synchrony.median(torch.arange(101.0))
    assert middle == 50 and low <= 40 and high >= 60
    assert synchrony.median(torch.tensor([3.0]))[0] == 3


def test_scenes_of_one_sample_differ_in_everything_and_weights_do_not_change_them() -> None:
    scenes, _ = draw_scenes(mixing.CONFLICT, 40, 1)
    assert all((scenes[x] != scenes[y]).all() for x, y in ("ab", "ac", "bc"))
    half, tenth = (draw_scenes(mixing.between(w), 40, 1)[0] for w in (0.5, 0.1))
    assert torch.equal(half["b"], tenth["b"]) and not torch.equal(half["a"], scenes["a"])
    held, _ = draw_scenes(of_kinds("text", held_out="only"), 40, 1)
    assert {(bounce.SHAPES[s], bounce.COLOURS[c]) for s, c, _ in held["a"].tolist()} <= set(bounce.HELD_OUT)


def test_where_attributes_flip() -> None:
    values = [0, 0, 0, 0, 0.25, 0.75, 1, 1, 1, 1, 1]
    assert mixing.flip(values) == pytest.approx(0.45)
    assert math.isnan(mixing.flip([0.0] * 11))


def test_spread_against_the_world() -> None:
    true = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    ratio, low, high = spread.spread_ratio(0.5 * true[:2000] + 7, true)
    assert ratio == pytest.approx(0.5, abs=0.03) and low < ratio < high
    assert spread.spread_ratio(torch.full((10,), math.nan), true) == (0.0, 0.0, 0.0)
    measured = spread.world("audio", 0)
    assert float(measured["peak"].std()) == pytest.approx(0.5 / 12**0.5, rel=0.15)
    assert float(measured["detune"].nanmedian()) == pytest.approx(1, abs=0.005)


def test_place_and_size_are_measured_as_rendered() -> None:
    from codi.codi_models.bounce_world import judge, render

    scenes, nuisance = bounce.every_scene()[torch.arange(0, 72, 5)], bounce.sample_nuisance(15, generator=torch.Generator().manual_seed(2))
    for read in (judge.judge_image(render.render_image(scenes, nuisance), nuisance=True),
                 judge.judge_video(render.render_video(scenes, nuisance), nuisance=True)):  # fmt: skip
        assert (read["x"] - nuisance.x).abs().max() < 0.3 and (read["grey"] - nuisance.grey).abs().max() < 0.01
        assert (read["radius"] - nuisance.radius).abs().max() < 0.5
    blank = judge.judge_image(torch.full((1, 3, 64, 64), 0.1), nuisance=True)
    assert blank["x"].isnan().all() and blank["radius"].isnan().all()


def test_readings_survive_the_store(tmp_path: Path) -> None:
    cell = Cell(Recipe((Part("text", says=()),)), ("video", "audio"))
    store, readings, key = (
        Store(tmp_path),
        Oracle(count=5)(cell),
        {"settings": {"steps": 2}, "samples": 5, "seed": 1, "code": "x", "weights": {}},
    )
    assert store.get(cell, key) is None
    store.put(cell, key, readings)
    again = store.get(cell, key)
    assert again is not None and torch.equal(again.said, readings.said) and torch.equal(again.scenes["a"], readings.scenes["a"])
    assert torch.allclose(again.outputs["audio"]["times"], readings.outputs["audio"]["times"], atol=1e-4, equal_nan=True)
    assert torch.equal(again.outputs["video"]["shape"], readings.outputs["video"]["shape"])
    for changed in ({"samples": 6}, {"weights": {"clip": "1"}}, {"code": "y"}, {"settings": {"steps": 3}}):
        assert store.get(cell, {**key, **changed}) is None
    assert Store(tmp_path, any_code=True).get(cell, {**key, "code": "y"}) is not None
    next(tmp_path.iterdir()).write_text("{", encoding="utf-8")
    assert store.get(cell, key) is None


def test_comments_do_not_change_the_version_of_the_code(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    first.write_text('"""One."""\nx = 1  # so\n\n\ndef f():\n    """Doc."""\n', encoding="utf-8")
    second.write_text("x = 1\ndef f():\n    pass\n", encoding="utf-8")
    third.write_text("x = 2\ndef f():\n    pass\n", encoding="utf-8")
    assert cells_module._bare(first) == cells_module._bare(second) != cells_module._bare(third)


def test_choice_of_sections() -> None:
    assert cli.chosen(None) == list("ABCDEFGH")
    assert cli.chosen(["a, headline", "H,A"]) == ["A", "headline", "H"]
    with pytest.raises(CoDiError, match="--only X.*headline"):
        cli.chosen(["X"])
    assert cli.part_of("2/3") == (2, 3)
    for wrong in ("0/2", "3/2", "1", "a/b", "-1/2"):
        with pytest.raises(CoDiError, match="K/N"):
            cli.part_of(wrong)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from host.tiny import create_tiny

    folder = tmp_path_factory.mktemp("tiny")
    create_tiny(folder)
    return folder


def test_a_run_writes_tables_and_finds_its_cells_again(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    run = ["--model", str(tiny), "--samples", "2", "--steps", "1", "--out", str(tmp_path), "--device", "cpu", "--only", "C,headline"]
    assert cli.main([*run, "--part", "2/2"]) == 0 and not (tmp_path / "README.md").exists()
    assert len(list((tmp_path / "cells").iterdir())) == 7  # of 15 different cells
    assert cli.main(run) == 0
    data = json.loads((tmp_path / "C-synchrony.json").read_text(encoding="utf-8"))
    assert data["samples"] == 2 and data["overrides"] == {"steps": 1} and len(data["figures"]["rows"]) == 11
    assert "goal" in (tmp_path / "README.md").read_text(encoding="utf-8") and (tmp_path / "C-synchrony.png").stat().st_size > 5000
    rows = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))["rows"]
    assert {row["task"] for row in rows} == {f"{a} to {b}" for a, b in views.HEADLINE}
    before = (tmp_path / "C-synchrony.md").read_text(encoding="utf-8")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished cell was generated again")

    monkeypatch.setattr("codi.codi_models.bounce_world.evaluation.quality.Examiner.batches", refuse)
    assert cli.main(run) == 0
    assert (tmp_path / "C-synchrony.md").read_text(encoding="utf-8") == before
    assert "0 of 11 cells to measure" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="generated again"):
        cli.main([*run, "--seed", "7"])


def test_cells_in_one_batch_are_those_of_separate_runs(tiny: Path, tmp_path: Path) -> None:
    from codi.codi_models.bounce_world.evaluation.laboratory import Laboratory
    from codi.codi_models.bounce_world.evaluation.quality import Examiner
    from codi.codi_models.pipeline import CoDiPipeline

    examiner = Examiner(CoDiPipeline.from_pretrained(tiny, device="cpu"), samples=2, seed=3, overrides={"steps": 1})
    asked = [Cell(of_kinds("text"), ("text", "audio")), Cell(of_kinds("audio"), ("text", "audio"))]
    together = Laboratory(examiner, Store(tmp_path / "a"), log=lambda _: None)
    together.fill(asked)
    for cell in asked:
        alone = Laboratory(examiner, Store(tmp_path / "b"), log=lambda _: None)
        alone.fill([cell])
        assert torch.allclose(alone.read(cell).outputs["audio"]["peak"], together.read(cell).outputs["audio"]["peak"], atol=1e-3)
        assert alone.read(cell).captions == together.read(cell).captions


@pytest.mark.parametrize(
    ("outputs", "begun"),
    [
        (("image", "text", "audio"), [("text",), ("text", "audio")]),
        (("video", "image", "text"), [("text",), ("video", "image")]),  # the second with a caption that is not given out
    ],
)
def test_cells_that_begin_larger_ones_are_read_from_them(tiny: Path, tmp_path: Path, outputs: tuple, begun: list) -> None:
    from codi.codi_models.bounce_world.evaluation.laboratory import Laboratory
    from codi.codi_models.bounce_world.evaluation.quality import Examiner
    from codi.codi_models.pipeline import CoDiPipeline

    examiner = Examiner(CoDiPipeline.from_pretrained(tiny, device="cpu"), samples=2, seed=3, overrides={"steps": 2, "order": "in turn"})
    recipe = of_kinds("text")
    large, first = Cell(recipe, outputs), [Cell(recipe, smaller) for smaller in begun]
    others = [Cell(recipe, ("audio",)), Cell(recipe, ("text", "audio"), (("order", "together"),)), Cell(of_kinds("image"), ("text",))]
    lines: list[str] = []
    shared = Laboratory(examiner, Store(tmp_path / "a"), log=lines.append)
    assert shared.sharing.runs([*first, large, *others]) == [large, *others]
    shared.fill([*first, large])
    assert len(lines) == 2 and lines[1].startswith("[3/3]")
    assert len(list((tmp_path / "a").iterdir())) == 3
    for cell in first:
        alone = Laboratory(examiner, Store(tmp_path / "b"), log=lambda _: None)
        alone.fill([cell])
        assert alone.read(cell).captions == shared.read(cell).captions
        for output, attributes in alone.read(cell).outputs.items():
            for name, value in attributes.items():
                torch.testing.assert_close(shared.read(cell).outputs[output][name], value, atol=1e-3, rtol=0, equal_nan=True)
    again = Laboratory(examiner, Store(tmp_path / "c"), log=lambda _: None)
    again.fill([large])
    assert again.missing([large, *first]) == [] and len(list((tmp_path / "c").iterdir())) == 3


def test_parts_share_the_runs_and_leave_none_out() -> None:
    from codi.codi_models.bounce_world.evaluation.sharing import Sharing

    cells = [matrix.cell(i, o) for i in matrix.SETS for o in matrix.SETS]
    sharing = Sharing(CoDiConfig.mini(), {"order": "in turn"})
    assert len(sharing.runs(cells)) == 8 * 15  # of the sets of outputs, seven begin others
    parts = [sharing.part(cells, k, 2, dict.fromkeys(cells, 1.0)) for k in (1, 2)]
    assert set(parts[0]) | set(parts[1]) == set(cells)
    assert not set(sharing.runs(parts[0])) & set(sharing.runs(parts[1]))
    assert len(Sharing(CoDiConfig.mini(), {"order": "together"}).runs(cells)) == 225


def test_connectors_do_not_count_where_outputs_do_not_listen(tiny: Path, tmp_path: Path) -> None:
    import shutil

    from codi.codi_models.bounce_world.evaluation.cells import Fingerprints
    from codi.codi_models.checkpoints import read_weights, save_weights
    from codi.codi_models.model import CoDi

    shutil.copytree(tiny, tmp_path / "other")
    path = tmp_path / "other" / "audio_denoiser.safetensors"
    tensors, metadata = read_weights(path)
    key = next(k for k in tensors if "connecter" in k)
    tensors[key] = tensors[key] + 1
    save_weights(tensors, path, metadata=metadata)
    prints = [Fingerprints(CoDi.from_pretrained(folder, device="cpu")) for folder in (tiny, tmp_path / "other")]
    pair, bridge = Cell(Recipe(), ("image", "video")), {"text_denoiser"}
    assert bridge == set(prints[0].weights(pair, {"order": "in turn"})) - set(prints[0].weights(pair, {"order": "together"}))
    for cell, same in ((Cell(Recipe(), ("audio",)), True), (Cell(Recipe(), ("text", "audio")), False),
                       (Cell(Recipe(), ("text", "audio"), (("wiring", "off"),)), True), (Cell(Recipe(), ("image",)), True)):  # fmt: skip
        assert (prints[0].weights(cell) == prints[1].weights(cell)) is same


def test_completion_keeps_the_worlds_own_media(tiny: Path, tmp_path: Path) -> None:
    from codi.codi_models.bounce_world.evaluation.laboratory import Laboratory
    from codi.codi_models.bounce_world.evaluation.quality import Examiner
    from codi.codi_models.pipeline import CoDiPipeline

    laboratory = Laboratory(Examiner(CoDiPipeline.from_pretrained(tiny, device="cpu"), samples=2, seed=3, overrides={"steps": 1}),
                            Store(tmp_path), log=lambda _: None)  # fmt: skip
    cell = completion.cell(("audio", "text"), "image")
    laboratory.fill([cell])
    read = laboratory.read(cell)
    assert set(read.outputs) == {"image"} and read.scenes["a"].shape == (2, 3) and (read.said == -1).all()

"""What training takes and refuses before it starts: recipes, options of a run, names of data sets, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from codi.codi_models.config import CoDiConfig
from codi.codi_models.errors import CoDiError
from codi.codi_models.model import SHIPPED
from codi.codi_models.training import cli
from codi.codi_models.training.dataset import open_dataset
from codi.codi_models.training.recipe import Recipe
from codi.codi_models.training.run import train_recipe
from host.setting import PACK
from small import small_config
from test_training import RUNS, few, recipe_file


@pytest.mark.parametrize("change, words", [
    ({"runs": 3}, "is no recipe"), ({"more": 1}, "is no recipe"), ({"runs": [{"name": "a"}]}, "run 1: missing fields"),
    ({"runs": [{"name": "a", "kind": "dream", "steps": 1}]}, "unknown kind 'dream'"),
    ({"runs": [{"name": "a", "kind": "vocoder", "steps": 0}]}, "steps 0"),
    ({"runs": [{"name": "a", "kind": "vocoder", "steps": 1.5}]}, "steps cannot be 1.5"),
    ({"runs": [{"name": "a", "kind": "vocoder", "steps": 1, "batch": 0}]}, "batch 0 must be 1"),
    ({"runs": [{"name": "a", "kind": "bridging", "steps": 1, "batch": {"image": -4}}]}, "batch .* must be 1"),
    ({"runs": [{"name": "a", "kind": "vocoder", "steps": 1}] * 2}, "two runs are called 'a'"),
    ({"networks": {"name": "x"}}, "networks: missing fields"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_used_is_told(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = recipe_file(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(CoDiError, match=words):
        Recipe.load(path)


def test_options_of_a_run_are_checked_before_it_starts(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    for run, words in (
        ({"name": "v", "kind": "vocoder", "batch": 2, "floor": "low"}, "floor cannot be 'low'"),
        ({"name": "v", "kind": "vocoder", "batch": 2, "colour": 1}, "unknown fields \\['colour'\\]"),
        ({"name": "a", "kind": "autoencoder", "batch": 2, "component": "clip"}, "'clip' is no autoencoder"),
        (
            {"name": "a", "kind": "autoencoder", "batch": 2, "component": "image_autoencoder", "freeze_encoder": True},
            "freeze_encoder .* train it first",
        ),
        ({"name": "d", "kind": "denoiser", "modalities": ["image"], "batch": {"image": 2}}, "shared_space|clip"),
    ):
        recipe = Recipe.load(recipe_file(tmp_path, [run]))
        with pytest.raises(CoDiError, match=words):
            train_recipe(recipe, few(recipe), tmp_path / "model", tmp_path / "runs", accelerator=accelerator, say=lambda _: None)


def test_data_sets_have_names(tmp_path: Path) -> None:
    config = small_config()
    assert len(open_dataset("bounce-world", config)) == 14400
    for wrong in ("codi_models.nowhere:World", str(tmp_path / "nothing")):
        with pytest.raises(CoDiError, match="no data"):
            open_dataset(wrong, config)
    with pytest.raises(CoDiError, match="Bounce World has images"):
        open_dataset("bounce-world", CoDiConfig.official())


def test_the_shipped_recipe_is_one_clean_recipe() -> None:
    recipe = Recipe.load(PACK / "recipes" / "codi-mini.json")
    assert len(recipe.runs) <= 10 and recipe.networks.name == "codi-mini" and recipe.data == "bounce-world"
    assert recipe.networks.diffusion.prediction == "v" and recipe.networks.diffusion.schedule == "cosine"
    assert recipe.networks.sampling == CoDiConfig.load(SHIPPED / "codi-mini" / "config.json").sampling, "what it trains runs as what ships"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from codi.codi_models.bounce_world.export import export_samples

    export_samples(tmp_path / "data", 2)
    path = recipe_file(tmp_path, [RUNS[0]], steps=2)
    folders = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "model")]
    assert cli.main(["--recipe", str(path), *folders]) == 0
    assert "model folder" in capsys.readouterr().out and (tmp_path / "model-runs" / "image_autoencoder" / "done").exists()
    assert cli.main(["--recipe", str(path), *folders]) == 0 and "done already" in capsys.readouterr().out
    with pytest.raises(CoDiError, match="no run 'b'"):
        cli.main(["--recipe", str(path), *folders, "--only", "b"])
    with pytest.raises(CoDiError, match="names no data"):
        cli.main(["--recipe", str(path)])

"""The second data set: it is built, its recipe fits it, and its evaluation reads it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from codi.codi_models.training.dataset import FolderDataset
from codi.codi_models.training.recipe import Recipe
from host.setting import PACK

DIGITS = PACK / "examples" / "digits"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"digits_{name}", DIGITS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recipe_is_whole() -> None:
    recipe = Recipe.load(DIGITS / "recipe.json")
    assert len(recipe.runs) <= 10 and recipe.networks.sampling.image_size == 32
    assert {run.kind for run in recipe.runs} == {"autoencoder", "vocoder", "bridging", "denoiser", "environment", "alignment"}


def test_the_readers_of_the_evaluation() -> None:
    evaluate = script("evaluate")
    assert evaluate.read_text(["the digit Seven", "a one or two", "nothing"]) == [7, -1, -1]
    assert evaluate.image_features(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    wave = torch.zeros(2, 20480)
    wave[0, 2000:6000], wave[1, 8000:12000] = (torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 0.3,) * 2
    first, second = evaluate.audio_features(wave)
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.95  # a word is the same wherever it stands


def test_the_data_are_built(tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None or importlib.util.find_spec("sklearn") is None:
        pytest.skip("needs espeak-ng and scikit-learn")
    subprocess.run([sys.executable, str(DIGITS / "build.py"), str(tmp_path), "--limit", "10"], check=True)
    data = FolderDataset(tmp_path, Recipe.load(DIGITS / "recipe.json").networks)
    assert len(data) == 9 and set(data.has) == {"text", "image", "audio"}
    assert data.media("image", [0]).shape == (1, 3, 32, 32) and data.media("audio", [0]).shape == (1, 20480)
    assert len(FolderDataset(tmp_path / "test", Recipe.load(DIGITS / "recipe.json").networks)) == 1

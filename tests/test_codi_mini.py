"""The shipped weights do what the model card says, on few samples; the whole table is made by `python -m codi_models evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from codi.codi_models.bounce_world.evaluation.cells import Cell, Part, Runner
from codi.codi_models.bounce_world.evaluation.sections import agree, right
from codi.codi_models.components import COMPONENTS, component_path
from codi.codi_models.config import CoDiConfig
from codi.codi_models.model import SHIPPED
from codi.codi_models.pipeline import CoDiPipeline

FOLDER = SHIPPED / "codi-mini"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    pipe = CoDiPipeline.from_pretrained("codi-mini", device="cpu", dtype="fp32")
    file: Path = tmp_path_factory.mktemp("readings") / "readings.json.gz"
    return Runner(pipe, file, samples=16, seed=5, overrides={}, log=lambda _: None)


def test_folder_is_whole_and_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 40e6
    assert all(component_path(FOLDER, name).is_file() for name in COMPONENTS)
    config = CoDiConfig.load(FOLDER / "config.json")
    assert config.name == "codi-mini" and config.sampling.image_size == 64 and config.sampling.frames == 8


@pytest.mark.parametrize(
    ("kind", "output", "attribute"),
    [
        ("text", "image", "colour"),
        ("text", "image", "shape"),
        ("text", "audio", "beats"),
        ("image", "text", "colour"),
        ("audio", "text", "beats"),
    ],
)
def test_outputs_show_what_the_prompt_says(runner: Runner, kind: str, output: str, attribute: str) -> None:
    hits = right(runner.read(Cell((output,), (Part(kind),))), output, [attribute])
    assert int(hits.sum()) >= 12  # of 16; chance is 6 at most


@pytest.mark.parametrize("words", ["users", "held back"])
def test_it_understands_users_words(runner: Runner, words: str) -> None:
    hits = right(runner.read(Cell(("image",), (Part("text", words=words),))), "image", ["shape", "colour"])
    assert int(hits.sum()) >= 11  # of 16; chance is 1


@pytest.mark.parametrize("outputs", [("image", "text"), ("audio", "text"), ("video", "audio")], ids="+".join)
def test_outputs_made_together_tell_the_same(runner: Runner, outputs: tuple[str, ...]) -> None:
    """Without a prompt, in the paper's mode: all that tells them of each other is latent alignment."""
    hits = agree(runner.read(Cell(outputs, settings=(("schedule", "together"),))), outputs)
    assert int(hits.sum()) >= 9  # of 16; chance is 1

"""The shipped weights do what the model card says, on few samples; the whole table is made by `python -m codi_models evaluate`."""

from __future__ import annotations

import dataclasses

import pytest
from codi.codi_models.bounce_world.evaluation.quality import Examiner, judged, rendered_prompts
from codi.codi_models.bounce_world.report import accuracy
from codi.codi_models.config import CoDiConfig
from codi.codi_models.components import COMPONENTS
from codi.codi_models.model import SHIPPED
from codi.codi_models.pipeline import CoDiPipeline

FOLDER = SHIPPED / "codi-mini"


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    return Examiner(CoDiPipeline.from_pretrained("codi-mini", device="cpu", dtype="fp32"), samples=16, seed=5, overrides={"steps": 15})


def test_folder_is_whole_and_small() -> None:
    files = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 40e6
    assert {f"{name}.safetensors" for name in COMPONENTS} <= {file.name for file in files}
    config = CoDiConfig.load(FOLDER / "config.json")
    scaled = {
        name: dataclasses.replace(getattr(config, name), scale=getattr(CoDiConfig.mini(), name).scale)
        for name in ("image_autoencoder", "audio_autoencoder", "text_autoencoder")
    }
    sampling = dataclasses.replace(CoDiConfig.mini().sampling, composition="facets")  # which training sets once there are some
    assert dataclasses.replace(config, **scaled) == dataclasses.replace(CoDiConfig.mini(), sampling=sampling)


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
def test_outputs_show_what_the_prompt_says(examiner: Examiner, kind: str, output: str, attribute: str) -> None:
    scenes, generator = examiner.scenes(0)
    samples = examiner.generate(rendered_prompts(kind, scenes, generator), (output,))
    share = accuracy(judged(samples, output), scenes, [attribute])[attribute]
    assert share.successes >= 12  # of 16; chance is 6 at most

"""The shipped weights do what the model card says, on few samples; the whole table is made by `python -m codi_models evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from codi.codi_models.bounce_world.evaluation.cells import Cell, Part, Runner, media
from codi.codi_models.bounce_world.evaluation.sections import agree, right
from codi.codi_models.bounce_world.world import SAMPLE_RATE, every_scene
from codi.codi_models.components import COMPONENTS, component_path
from codi.codi_models.conditioning import Prompt, encode_prompt
from codi.codi_models.config import CoDiConfig
from codi.codi_models.latents import decode_audio, encode_media
from codi.codi_models.model import SHIPPED
from codi.codi_models.pipeline import CoDiPipeline

FOLDER = SHIPPED / "codi-mini"


@pytest.fixture(scope="module")
def pipe() -> CoDiPipeline:
    return CoDiPipeline.from_pretrained("codi-mini", device="cpu", dtype="fp32")


def run_of(pipe: CoDiPipeline, folder: Path, samples: int) -> Runner:
    return Runner(pipe, folder / "readings.json.gz", samples=samples, seed=5, overrides={}, log=lambda _: None)


@pytest.fixture(scope="module")
def runner(pipe: CoDiPipeline, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return run_of(pipe, tmp_path_factory.mktemp("readings"), 16)


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


@pytest.mark.parametrize(
    "parts",
    [
        (Part("text", says=("colour",)), Part("text", says=("shape", "beats"))),
        (Part("image"), Part("text", says=("beats",))),
        (Part("audio"), Part("image")),
    ],
    ids=lambda parts: "+".join(part.kind for part in parts),
)
def test_prompts_that_each_say_a_part_are_heard_both(runner: Runner, parts: tuple[Part, ...]) -> None:
    hits = right(runner.read(Cell(("audio",), parts)), "audio", ["shape", "colour", "beats"])
    assert int(hits.sum()) >= 11  # of 16; chance is 0


@pytest.mark.parametrize(
    ("outputs", "samples", "least"),
    [(("image", "text"), 16, 9), (("audio", "text"), 16, 9), (("video", "audio"), 8, 5)],  # chance is 1 of 16
    ids=["image+text", "audio+text", "video+audio"],
)
def test_outputs_made_together_tell_the_same(
    pipe: CoDiPipeline, tmp_path: Path, outputs: tuple[str, ...], samples: int, least: int
) -> None:
    """Without a prompt, in the paper's mode: all that tells them of each other is latent alignment."""
    hits = agree(run_of(pipe, tmp_path, samples).read(Cell(outputs, settings=(("schedule", "together"),))), outputs)
    assert int(hits.sum()) >= least


SCENES = torch.stack([every_scene().shape, every_scene().colour, every_scene().beats], dim=1)  # (72, 3)


def named(runner: Runner, prompts: list[Prompt]) -> torch.Tensor:
    """The scenes (n, 3) whose captions lie nearest in the shared space, of all 72."""
    captions, found = (
        torch.nn.functional.normalize(torch.cat([encode_prompt(runner.pipe.model, prompt)[:, 0] for prompt in many]), dim=-1)
        for many in (media("text", SCENES, torch.Generator().manual_seed(0)), prompts)
    )
    return SCENES[(found @ captions.T).argmax(1)]


@pytest.mark.parametrize("background", [None, -70, -50, -30], ids=lambda level: "none" if level is None else f"{level} dB")
def test_audio_prompts_may_have_a_background(runner: Runner, background: int | None) -> None:
    """Noise far below the sound does not change what it tells: recordings and compressed files all have some."""
    scenes, generator = SCENES[::3], torch.Generator().manual_seed(1)
    prompts = media("audio", scenes, generator)
    if background is not None:
        waves = [prompt.value[0] for prompt in prompts]
        noise = [torch.randn(w.shape, generator=generator) * w.abs().max() * 10 ** (background / 20) for w in waves]
        prompts = [Prompt("audio", (w + n, SAMPLE_RATE)) for w, n in zip(waves, noise, strict=True)]
    assert int((named(runner, prompts) == scenes).all(1).sum()) >= 21  # of 24; chance is none


def test_audio_that_it_made_is_understood_as_a_prompt(runner: Runner) -> None:
    """Graphs feed what one sampler made to the next: an autoencoder and a vocoder leave traces of their own."""
    scenes, model = SCENES[1::3], runner.pipe.model
    latents = torch.stack([encode_media(model, prompt) for prompt in media("audio", scenes, torch.Generator().manual_seed(2))])
    prompts = [Prompt("audio", (wave, SAMPLE_RATE)) for wave in decode_audio(model, latents)]
    assert int((named(runner, prompts) == scenes).all(1).sum()) >= 21  # of 24; chance is none

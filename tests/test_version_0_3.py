"""Model folders that version 0.3 wrote: another config.json, and other names of two components."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from codi.codi_models.checkpoints import read_metadata, read_weights, save_weights
from codi.codi_models.components import COMPONENTS, component_path
from codi.codi_models.config import CoDiConfig, DiffusionConfig, SamplingConfig
from codi.codi_models.errors import CoDiError
from codi.codi_models.files import sha256
from codi.codi_models.model import CoDi
from codi.codi_models.pipeline import CoDiPipeline
from small import small_config

FORMER = {"image_autoencoder": "picture_autoencoder", "audio_autoencoder": "sound_autoencoder"}
SAMPLING = {
    "image_size": 64, "video_size": 64, "frames": 8, "frame_rate": 6.25, "sampler": "dpmpp_2m", "steps": 8, "cfg": 3.0, "wiring": "cross",
    "alignment": 1.0, "alignment_guidance": 3.0, "alignment_emphasis": "image=2, video=2, audio=0.5", "order": "in turn",
    "cfg_each": "image=3.75, text=2, audio=1.25", "composition": "facets", "facets": "shape, colour", "facets_from": 0.5,
}  # fmt: skip
"""What 0.3.0 wrote for codi-mini."""


def of_0_3(config: CoDiConfig, sampling: dict = SAMPLING) -> dict:
    """The config.json of this model as 0.3.0 wrote it."""
    data = {FORMER.get(name, name): value for name, value in dataclasses.asdict(config).items() if name != "diffusion"}
    return json.loads(json.dumps({**data, "sampling": sampling}))


def load(path: Path, data: dict) -> CoDiConfig:
    path.write_text(json.dumps(data))
    return CoDiConfig.load(path)


def test_its_config(tmp_path: Path) -> None:
    found = load(tmp_path / "config.json", of_0_3(small_config()))
    assert found == small_config() and found.diffusion == DiffusionConfig()
    assert (found.sampling.schedule, found.sampling.scheduler) == ("sequential", "sgm_uniform")
    found.save(tmp_path / "again.json")
    assert CoDiConfig.load(tmp_path / "again.json") == found
    assert not set(SAMPLING) - {f.name for f in dataclasses.fields(SamplingConfig)} & set(json.loads((tmp_path / "again.json").read_text()))


@pytest.mark.parametrize(("sampler", "expected"), [
    ("ddim", ("ddim", "ddim_uniform")), ("ddim_trailing", ("ddim", "sgm_uniform")), ("ddpm", ("euler_ancestral", "sgm_uniform")),
    ("dpmpp_2m", ("dpmpp_2m", "sgm_uniform")), ("dpmpp_2m_karras", ("dpmpp_2m", "karras")), ("euler", ("euler", "sgm_uniform")),
    ("euler_ancestral", ("euler_ancestral", "sgm_uniform")), ("unipc", ("dpmpp_2m", "sgm_uniform")),
])  # fmt: skip
def test_its_samplers(tmp_path: Path, sampler: str, expected: tuple[str, str]) -> None:
    sampling = load(tmp_path / "c.json", of_0_3(small_config(), {"sampler": sampler, "order": "(text), video, image"})).sampling
    assert (sampling.sampler, sampling.scheduler) == expected and sampling.schedule == "text, video, image"


def test_a_config_without_sampling_has_the_published_one(tmp_path: Path) -> None:
    official = load(tmp_path / "c.json", of_0_3(CoDiConfig.official(), {}))
    assert dataclasses.replace(official, sampling=CoDiConfig.official().sampling) == CoDiConfig.official()
    assert official.sampling == SamplingConfig() and (official.sampling.sampler, official.sampling.scheduler) == ("ddim", "ddim_uniform")
    assert official.sampling.wiring == "cross"  # the only one that 0.3 ran a folder's model with unless told otherwise


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: data["sampling"].update(order=[]), "schedule must be str"),
    (lambda data: data["sampling"].update(sampler=["ddpm"]), "sampler must be str"),
    (lambda data: data.update(sampling=3), "expected an object"),
    (lambda data: data["sampling"].update(emphasis=1), "unknown fields"),
    (lambda data: data.update(picture_autoencoder=None), "expected an object"),
    (lambda data: data.pop("sound_autoencoder"), "missing fields.*audio_autoencoder"),
])  # fmt: skip
def test_configs_that_are_none_are_named(tmp_path: Path, change, words: str) -> None:
    data = of_0_3(small_config())
    change(data)
    with pytest.raises(CoDiError, match=words):
        load(tmp_path / "config.json", data)


@pytest.fixture
def former(folder: Path, tmp_path: Path) -> Path:
    """A folder as 0.3.0 left it: two files of other names, which their headers repeat."""
    shutil.copytree(folder, tmp_path / "old")
    for name, old in FORMER.items():
        tensors, metadata = read_weights(tmp_path / "old" / f"{name}.safetensors")
        save_weights(tensors, tmp_path / "old" / f"{old}.safetensors", metadata={**metadata, "component": old})
        (tmp_path / "old" / f"{name}.safetensors").unlink()
    (tmp_path / "old" / "config.json").write_text(json.dumps(of_0_3(small_config())))
    return tmp_path / "old"


def test_its_folder_gives_what_it_gave(folder: Path, former: Path) -> None:
    assert FORMER == {name: entry.former_name for name, entry in COMPONENTS.items() if entry.former_name}
    outputs, ask = ["image", "audio"], {"steps": 2, "seed": 3}
    old, new = (CoDiPipeline.from_pretrained(path, device="cpu") for path in (former, folder))
    made, expected = (pipe("a red circle", outputs, **ask)[0] for pipe in (old, new))
    assert torch.equal(made.image, expected.image) and torch.equal(made.audio, expected.audio)
    assert {"picture_autoencoder.safetensors", "sound_autoencoder.safetensors"} <= set(old.model.hashes())
    assert old.model.hashes()["picture_autoencoder.safetensors"] == sha256(former / "picture_autoencoder.safetensors")


def test_a_file_of_todays_name_comes_first_and_another_components_is_told(folder: Path, former: Path) -> None:
    shutil.copy(folder / "image_autoencoder.safetensors", former)
    assert component_path(former, "image_autoencoder").name == "image_autoencoder.safetensors"
    (former / "image_autoencoder.safetensors").unlink()
    shutil.copy(former / "sound_autoencoder.safetensors", former / "picture_autoencoder.safetensors")
    with pytest.raises(CoDiError, match="holds the weights of sound_autoencoder, not of image_autoencoder"):
        _ = CoDi.from_pretrained(former, device="cpu").image_autoencoder
    (former / "picture_autoencoder.safetensors").unlink()
    with pytest.raises(CoDiError, match="image_autoencoder.safetensors is missing"):
        _ = CoDi.from_pretrained(former, device="cpu").image_autoencoder
    assert read_metadata(former / "sound_autoencoder.safetensors")["component"] == "sound_autoencoder"

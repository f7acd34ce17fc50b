"""A model folder: made, opened, loaded piece by piece, and refused where it is not whole."""

import json
import shutil

import pytest
import torch
from codi.codi_models.bounce_world.world import ALL_CAPTIONS
from codi.codi_models.checkpoints import read_metadata, save_weights
from codi.codi_models.components import COMPONENTS, load_component, save_component
from codi.codi_models.config import CoDiConfig
from codi.codi_models.encoders.shared_space import SHARED_SPACE_FILE, SharedSpace
from codi.codi_models.errors import CoDiError
from codi.codi_models.files import sha256
from codi.codi_models.model import CoDi
from safetensors.torch import save_file
from small import small_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    CoDi.create(small_config(), path, captions=ALL_CAPTIONS, seed=3)
    return path


def test_a_created_folder_is_whole_and_seeded(folder, tmp_path):
    assert {p.stem for p in folder.glob("*.safetensors")} == set(COMPONENTS)
    assert CoDiConfig.load(folder / "config.json") == small_config()
    CoDi.create(small_config(), tmp_path, seed=3)
    assert sha256(tmp_path / "clap.safetensors") == sha256(folder / "clap.safetensors")


def test_only_what_is_read_is_loaded(folder):
    model = CoDi.from_pretrained(folder, device="cpu")
    assert not model.loaded
    network = model.text_denoiser
    assert set(model.loaded) == {"text_denoiser"} and model.text_denoiser is network
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert model.hashes() == {"text_denoiser.safetensors": sha256(folder / "text_denoiser.safetensors")}
    with pytest.raises(AttributeError):
        _ = model.smell_denoiser


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_comes_back_as_it_was_saved(folder, tmp_path, name):
    config = small_config()
    network = load_component(name, config, folder / f"{name}.safetensors")
    save_component(name, network, config, tmp_path)
    again = load_component(name, config, tmp_path / f"{name}.safetensors", dtype=torch.float64)
    state = again.state_dict()
    for key, tensor in network.state_dict().items():
        assert torch.equal(state[key].to(tensor.dtype), tensor), key
    assert all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())


def test_the_weights_of_another_component_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.copy(folder / "audio_denoiser.safetensors", tmp_path / "vision_denoiser.safetensors")
    with pytest.raises(CoDiError, match="holds the weights of audio_denoiser, not of vision_denoiser"):
        _ = CoDi.from_pretrained(tmp_path, device="cpu").vision_denoiser


def test_missing_truncated_and_foreign_files_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    model = CoDi.from_pretrained(tmp_path, device="cpu")
    (tmp_path / "clap.safetensors").unlink()
    with pytest.raises(CoDiError, match="clap.safetensors is missing"):
        _ = model.clap
    data = (tmp_path / "vocoder.safetensors").read_bytes()
    (tmp_path / "vocoder.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CoDiError, match="vocoder.safetensors is not a whole safetensors file"):
        _ = model.vocoder
    save_weights({"x": torch.zeros(1)}, tmp_path / "clip.safetensors")
    with pytest.raises(CoDiError, match="clip.safetensors does not hold the weights .* unknown: x"):
        _ = model.clip
    assert not model.loaded


def test_folders_devices_and_dtypes_that_are_not_there(folder, tmp_path):
    for wrong in (tmp_path / "nowhere", "codi-huge"):
        with pytest.raises(CoDiError, match="no CoDi model at"):
            CoDi.from_pretrained(wrong)
    with pytest.raises(CoDiError, match="auto, fp32, fp16, bf16"):
        CoDi.from_pretrained(folder, dtype="fp8")
    with pytest.raises(CoDiError, match="unknown device"):
        CoDi.from_pretrained(folder, device="toaster")
    with pytest.raises(CoDiError, match="device cuda:99"):
        CoDi.from_pretrained(folder, device="cuda:99")
    data = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, "clip": {**data["clip"], "colour": 1}}))
    with pytest.raises(CoDiError, match="unknown fields"):
        CoDi.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100000)
    with pytest.raises(CoDiError, match="config.json is not a readable"):
        CoDi.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("channel_mult", [1, "2"], "audio_denoiser: channel_mult must hold numbers, got '2'"),
        ("norm_groups", 0, "no audio_denoiser can be built .* Look at audio_denoiser in its config.json"),
        ("model_channels", 50, "no audio_denoiser can be built"),  # not a multiple of the norm's groups
        ("model_channels", -8, "no audio_denoiser can be built"),
    ],
)
def test_configurations_that_describe_no_network(folder, tmp_path, field, value, words):
    data = json.loads((folder / "config.json").read_text())
    data["audio_denoiser"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(data))
    shutil.copy(folder / "audio_denoiser.safetensors", tmp_path)
    with pytest.raises(CoDiError, match=words):
        _ = CoDi.from_pretrained(tmp_path, device="cpu").audio_denoiser


def test_metadata_of_other_makers(tmp_path):
    for metadata in (None, {"codi": "no json"}, {"codi": "[1]"}, {"codi": '{"component": 3}'}):
        save_file({"x": torch.zeros(1)}, str(tmp_path / "clip.safetensors"), metadata=metadata)
        assert read_metadata(tmp_path / "clip.safetensors") == ({"component": "3"} if metadata and "component" in metadata["codi"] else {})


def test_shared_space_removes_the_mean_and_is_the_identity_without_file(tmp_path):
    embedding = torch.nn.functional.normalize(torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert SharedSpace.load(tmp_path / SHARED_SPACE_FILE).align(embedding, "text") is embedding
    means = {m: torch.full((8,), 0.1 * i) for i, m in enumerate(("text", "image", "audio", "video"))}
    SharedSpace(means).save(tmp_path / SHARED_SPACE_FILE)
    aligned = SharedSpace.load(tmp_path / SHARED_SPACE_FILE).align(embedding, "video")
    expected = embedding - 0.3
    assert torch.allclose(aligned, expected / expected.norm(dim=-1, keepdim=True), atol=1e-6)
    save_weights({"mean.text": torch.zeros(8)}, tmp_path / SHARED_SPACE_FILE)
    with pytest.raises(CoDiError, match="mean.audio"):
        SharedSpace.load(tmp_path / SHARED_SPACE_FILE)

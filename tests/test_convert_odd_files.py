"""Checkpoints in unusual clothes: read where their weights are unambiguous, refused by name where they are not."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path

import published
import pytest
import torch
from codi.codi_models import __main__ as command
from codi.codi_models.checkpoints import read_weights
from codi.codi_models.components import COMPONENTS
from codi.codi_models.conversion.convert import convert
from codi.codi_models.conversion.layout import ENCODERS_FILE, PREFIXES, published_file
from codi.codi_models.errors import CoDiError
from codi.codi_models.files import sha256
from host.tiny import tiny_config
from published import saved

AUDIO, VISION = published_file("audio_denoiser"), published_file("vision_denoiser")
PREFIX = PREFIXES["audio_denoiser"]
KEY = PREFIX + "out.2.bias"


@pytest.fixture(scope="module")
def states():
    return published.state(tiny_config())


@pytest.fixture(scope="module")
def audio(states):
    return states[AUDIO]


@pytest.fixture
def refused(tmp_path, capsys):
    return published.refusal(tmp_path, capsys, tiny_config())


def archive(path: Path, opcodes: bytes) -> Path:
    """A checkpoint with a handmade pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + opcodes + b".")
        file.writestr("archive/version", "3\n")
    return path


def converted(path: Path, out: Path, dtype: str = "fp32") -> tuple[dict, list[str]]:
    """Weights of the audio denoiser by published key, and the notes."""
    result = convert([path], out, dtype=dtype, config=tiny_config())
    weights, _ = read_weights(out / "audio_denoiser.safetensors")
    return {PREFIX + key: value for key, value in weights.items()}, result.notes


def storage_shared(audio):
    whole = torch.cat([value.flatten() for value in audio.values()])
    parts = whole.split([value.numel() for value in audio.values()])
    return {key: part.view_as(value) for (key, value), part in zip(audio.items(), parts, strict=True)}


def strided(audio):
    return {key: torch.stack([value, value], -1)[..., 0] for key, value in audio.items()}


def wrapped(audio):
    return {"state_dict": {"model": {f"module.{key}": torch.nn.Parameter(value) for key, value in audio.items()}}, "epoch": 3}


def nested(audio):
    return {"model": {"diffusion_model": {"unet_audio": {key.removeprefix(PREFIX): value for key, value in audio.items()}}}}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dress", [storage_shared, strided, wrapped, nested])
def test_what_is_read(audio, tmp_path, dress, zipped):
    weights, _ = converted(saved(dress(audio), tmp_path / "odd.pth", _use_new_zipfile_serialization=zipped), tmp_path / "out")
    assert set(weights) == set(audio) and all(torch.equal(weights[key], value) for key, value in audio.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(audio, tmp_path, dtype, zipped):
    path = saved({k: v.to(dtype) for k, v in audio.items()}, tmp_path / "odd.pth", _use_new_zipfile_serialization=zipped)
    for name, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        weights, _ = converted(path, tmp_path / name, name)
        assert all(torch.equal(weights[key], value.to(dtype).to(kind)) for key, value in audio.items())


def test_averages_beside_the_weights(audio, tmp_path):
    content = {"model": audio, "ema": {key: value + 1 for key, value in audio.items()}, "optimizer": {"lr": 0.1, "state": [audio[KEY]]}}
    weights, notes = converted(saved(content, tmp_path / "odd.pth"), tmp_path / "out")
    assert torch.equal(weights[KEY], audio[KEY])
    assert any(f"odd.pth: {len(audio)} tensors" in note and "'ema.' are a moving average (EMA): left out" in note for note in notes)
    dotless = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": value + 1 for key, value in audio.items()}
    weights, notes = converted(saved({**audio, **dotless, "model_ema.decay": torch.tensor(0.9)}, tmp_path / "odd.pth"), tmp_path / "two")
    assert torch.equal(weights[KEY], audio[KEY]) and any("'model_ema.' are a moving average" in note for note in notes)
    for name, alone in (("ema", {"ema": audio}), ("dotless", dotless)):
        weights, notes = converted(saved(alone, tmp_path / "odd.pth"), tmp_path / name)
        assert torch.equal(weights[KEY], audio[KEY] + (name == "dotless"))
        assert any("audio_denoiser is taken from the moving average (EMA)" in note for note in notes)


def test_weights_that_a_file_holds_twice(audio, tmp_path):
    for same in (True, False):
        again = {f"copy.{key}": value if same else value * 1.5 for key, value in list(audio.items())[:40]}
        weights, notes = converted(saved({**audio, **again}, tmp_path / "twice.pth"), tmp_path / str(same))
        assert all(torch.equal(weights[key], value) for key, value in audio.items())
        note = next(note for note in notes if "below 'copy.' repeat names and shapes of 'audio_denoiser'" in note)
        assert "40 tensors" in note and ("with the same numbers" in note) == same and ("50 % of their norm" in note) != same
    apart = {**audio, "model.diffusion_model": {"unet_audio.out.2.bias": audio[KEY]}}
    assert any("below 'again.' repeat" in note for note in converted(saved(apart, tmp_path / "apart.pth"), tmp_path / "apart")[1])


ODD = {
    "sparse": lambda x: x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor([x[:3], x]),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "without data": lambda x: x.to("meta"),
}
OTHER_NUMBERS = {
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "complex": lambda x: torch.complex(x, x),
    "bool": lambda x: x > 0,
}
OTHER_SHAPES = {"()": lambda x: x[0], "(0,)": lambda x: x[:0], "(8, 1)": lambda x: x[:, None]}


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights(refused, audio, tmp_path):
    for kind, change in ODD.items():
        refused([saved({**audio, KEY: change(audio[KEY])}, tmp_path / "odd.pth")], "odd.pth", KEY, kind, "expected plain numbers")
    for kind, change in OTHER_NUMBERS.items():
        refused([saved({**audio, KEY: change(audio[KEY])}, tmp_path / "odd.pth")], "odd.pth", KEY, kind, "another kind of numbers")
    for shape, change in OTHER_SHAPES.items():
        refused([saved({**audio, KEY: change(audio[KEY])}, tmp_path / "odd.pth")], "odd.pth", f"{KEY} is {shape}, expected (8,)")


def test_deep_and_circular_content(refused, tmp_path):
    count = 20000
    a = b"X\x01\x00\x00\x00a"
    refused([archive(tmp_path / "lists.pth", b"]" * count + b"a" * (count - 1))], "lists.pth", "inside each other")
    refused([archive(tmp_path / "deep.pth", b"}" + (a + b"}") * count + b"s" * count)], "deep.pth", "inside each other")
    circle: dict = {"epoch": 1}
    circle["state_dict"] = circle
    refused([saved(circle, tmp_path / "circle.pth")], "circle.pth", "inside each other")


def test_stable_diffusion_with_its_schedule(refused, tmp_path):
    """Tables of the noise schedule have the same names in both; they make no CoDi checkpoint."""
    keys = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3), "betas": torch.zeros(1000)}
    for name in ("v1-5.ckpt", VISION):
        path = saved({"state_dict": keys}, tmp_path / name)
        for more in ([], ["--strict"]):
            refused([path, *more], f"{name} belongs to another model", "Stable Diffusion", "unet_image")


@pytest.mark.filterwarnings("ignore")
def test_script_archives_and_empty_files(refused, tmp_path):
    from safetensors.torch import save_file

    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "script.pt"))
    refused([tmp_path / "script.pt"], "script.pt is a TorchScript archive", "state dict")
    (tmp_path / "none.pth").write_bytes(b"")
    refused([tmp_path / "none.pth"], "none.pth", "is empty")
    save_file({}, str(tmp_path / "none.safetensors"))
    refused([tmp_path / "none.safetensors"], "none.safetensors holds no tensors")


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.999])
def test_truncated_safetensors(refused, audio, tmp_path, share):
    from safetensors.torch import save_file

    save_file(audio, str(tmp_path / "cut.safetensors"))
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(len(whole) * share)])
    refused([tmp_path / "cut.safetensors"], "cut.safetensors", "truncated", "Download it again", "still running")


def test_bfloat16_dressed_as_float32(refused, audio, tmp_path):
    path = saved({key: value.bfloat16().float() for key, value in audio.items()}, tmp_path / "dressed.pth")
    refused([path, "--dtype", "fp32"], "dressed.pth", PREFIX, "bfloat16 stored as float32", "--dtype bf16, which loses nothing")
    constant = saved({key: torch.full_like(value, 0.5) for key, value in audio.items()}, tmp_path / "constant.pth")
    assert not converted(constant, tmp_path / "constant")[1]


def test_a_part_that_the_published_file_would_have(states, tmp_path, capsys):
    rest = {key: value for key, value in states[ENCODERS_FILE].items() if not key.startswith(PREFIXES["clap"])}
    result = convert([saved(rest, tmp_path / "rest.pth")], tmp_path / "out", config=tiny_config())
    assert "clap" not in result.components and any("no weight of clap" in note for note in result.notes)
    other = convert([tmp_path / "rest.pth"], tmp_path / "out", config=tiny_config(), components=["clip"])
    assert not other.notes


def test_a_file_that_changes_meanwhile(audio, tmp_path):
    path = saved(audio, tmp_path / "busy.pth")

    def touch(what: str, *_: int) -> None:
        if what == "audio_denoiser":
            os.utime(path, ns=(1, 1))

    with pytest.raises(CoDiError, match="busy.pth changed while it was read: wait"):
        convert([path], tmp_path / "out", config=tiny_config(), progress=touch)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["config.json"]


def test_two_at_once(audio, tmp_path):
    path, results = saved(audio, tmp_path / "audio.pth"), []
    threads = [
        threading.Thread(target=lambda: results.append(convert([path], tmp_path / "out", dtype="fp32", config=tiny_config())))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "audio_denoiser.safetensors"}
    again = converted(path, tmp_path / "alone")[0]
    both = read_weights(tmp_path / "out" / "audio_denoiser.safetensors")[0]
    assert all(torch.equal(both[key.removeprefix(PREFIX)], value) for key, value in again.items())
    assert sha256(tmp_path / "out" / "audio_denoiser.safetensors") == sha256(tmp_path / "alone" / "audio_denoiser.safetensors")


@pytest.mark.parametrize(
    "metadata", [None, {"codi": "no json"}, {"codi": "[1]"}, {"codi": '{"sources": "[1]"}'}, {"codi": '{"sources": "x", "component": 3}'}]
)
def test_files_of_other_makers_in_the_folder(refused, audio, tmp_path, metadata):
    from safetensors.torch import save_file

    out = tmp_path / "out"
    out.mkdir()
    tiny_config().save(out / "config.json")
    save_file({"a": torch.zeros(1)}, str(out / "audio_denoiser.safetensors"), metadata=metadata)
    before = sha256(out / "audio_denoiser.safetensors")
    refused([saved(audio, tmp_path / "audio.pth")], "audio_denoiser.safetensors was not made by this command", out=out)
    assert sha256(out / "audio_denoiser.safetensors") == before


def test_names_that_the_system_refuses(refused, audio, tmp_path):
    path, long = saved(audio, tmp_path / "audio.pth"), tmp_path / ("x" * 300)
    refused([long], "cannot read", "File name too long")
    status = command.main(["convert", str(path), "--out", str(long), "--config", str(tmp_path / "sizes.json")])
    assert status == 2


def test_audio_given_as_vision(refused, audio, tmp_path):
    """Renamed keys and all: the two networks differ in depth, width and temporal layers."""
    swapped = {key.replace("unet_audio", "unet_image"): value for key, value in audio.items()}
    text = refused([saved(swapped, tmp_path / VISION)], VISION, "vision_denoiser", "shapes of audio_denoiser: the two were mixed up")
    assert all(f"{name} is in none" not in text for name in COMPONENTS)

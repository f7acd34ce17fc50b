"""What convert says of files and folders that it cannot use; nothing is left behind."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from codi.codi_models import __main__ as command
from codi.codi_models.conversion.layout import ENCODERS_FILE, PREFIXES, published_file
from codi.codi_models.conversion.sources import open_source
from codi.codi_models.errors import CoDiError
from codi.codi_models.model import CoDi
from host.tiny import create_tiny, tiny_config
from published import saved

AUDIO, VISION = published_file("audio_denoiser"), published_file("vision_denoiser")
KEY = PREFIXES["audio_denoiser"] + "out.2.bias"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("published"), tiny_config())


@pytest.fixture(scope="module")
def audio():
    return published.state(tiny_config())[AUDIO]


@pytest.fixture
def refused(tmp_path, capsys):
    return published.refusal(tmp_path, capsys, tiny_config())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(refused, audio, tmp_path, share, zipped):
    path = saved(audio, tmp_path / "cut.pth", _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused([path], "cut.pth", "Download it again", "truncated" if share else "no PyTorch checkpoint")


def test_damage_anywhere_in_a_zip_is_told(tmp_path):
    """Whatever byte is wrong: the file is read, or refused in words."""
    path, draw = saved({KEY: torch.ones(3), "other": torch.ones(2)}, tmp_path / "small.pth"), random.Random(0)
    whole = path.read_bytes()
    refused = 0
    for _ in range(600):
        data = bytearray(whole)
        for place in draw.sample(range(len(data)), draw.choice((1, 1, 4, 40))):
            data[place] = draw.randrange(256)
        path.write_bytes(data)
        try:
            source = open_source(path)
            for key in source:
                source.read(key)
        except CoDiError as error:
            refused += 1
            assert "small.pth" in str(error)
    assert refused > 60


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>login</html>", "no PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"PK\x03\x04 rest", "truncated"),
        (b"\x80\x02 garbage", "cut.pth"),
    ],
)
def test_files_that_are_no_checkpoints(refused, tmp_path, content, words):
    (tmp_path / "cut.pth").write_bytes(content)
    refused([tmp_path / "cut.pth"], "cut.pth", words)


def test_missing_file_and_folder_as_file(refused, tmp_path):
    refused([tmp_path / "nowhere.pth"], "nowhere.pth is missing")
    refused([tmp_path], "is a folder without checkpoints")


class Foreign:
    """Stands for any class of the program that saved the file."""


class Runs:
    def __reduce__(self):
        return (os.mkdir, (str(Path(__file__).with_name("ran")),))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("thing", "kind"),
    [(Foreign(), "Foreign"), ([1, [Runs()]], "mkdir"), (torch.nn.Linear(2, 2), "Linear"), (np.ones(3), "numpy")],
    ids=["class", "code", "module", "array"],
)
def test_foreign_objects(refused, audio, tmp_path, thing, kind, protocol, zipped):
    path = tmp_path / "foreign.pth"
    saved({"state_dict": audio, "extra": thing}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    refused([path], "foreign.pth", "object of type", kind, "at 'extra'", "expected only tensors", "refused")
    assert not Path(__file__).with_name("ran").exists()


def test_plain_pickles(refused, tmp_path):
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Foreign()}))
    refused([tmp_path / "plain.pth"], "plain.pth", "Foreign", "at 'model'", "refused")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    refused([tmp_path / "plain.pth"], "plain.pth", "cannot be read as a checkpoint")


def test_formats_that_are_not_read(refused, audio, tmp_path):
    for zipped in (True, False):  # PyTorch itself cannot read back what it writes with protocol 0
        path = saved(audio, tmp_path / "old.pth", pickle_protocol=0, _use_new_zipfile_serialization=zipped)
        refused([path], "old.pth", "cannot be read as a checkpoint")
    with zipfile.ZipFile(saved(audio, tmp_path / "plain.pth")) as plain, zipfile.ZipFile(tmp_path / "small.pth", "w", 8) as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    refused([tmp_path / "small.pth"], "small.pth", "compression", "Have it saved again")
    with tarfile.open(tmp_path / "tar.pth", "w") as archive:
        archive.add(saved(audio, tmp_path / "old.pth"), "tensors")
    refused([tmp_path / "tar.pth"], "tar.pth", "tar format", "Have it saved again")


@pytest.mark.parametrize("content", [[3, 4], torch.zeros(3), {"epoch": 3}, {}])
def test_no_state_dict(refused, tmp_path, content):
    refused([saved(content, tmp_path / "list.pth")], "list.pth", "maps names to tensors")


def test_another_model(refused, files, tmp_path):
    sd15 = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "first_stage_model.encoder.conv_in.weight": torch.zeros(128, 3, 3, 3),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.zeros(768),
    }
    path = saved({"state_dict": sd15}, tmp_path / "v1-5.ckpt")
    refused([path], "v1-5.ckpt belongs to another model", "input_blocks.0.0.weight", "Stable Diffusion", "unet_image", "Give files")
    refused([files[AUDIO], path], "v1-5.ckpt belongs to another model")  # also beside a good one


def test_renamed_missing_and_unexpected_keys(refused, audio, tmp_path):
    renamed = {key.replace("out.2.bias", "out.conv.bias"): value for key, value in audio.items()}
    path = saved(renamed, tmp_path / "renamed.pth")
    refused([path], "renamed.pth", f"1 of {len(audio)} keys are missing", KEY, "the unknown renamed.pth", "out.conv.bias", "renamed")
    few = {key: value for key, value in audio.items() if "out." in key}
    text = refused([saved(few, tmp_path / "few.pth")], "few.pth", f"of {len(audio)} keys are missing", "more)")
    assert len(text) < 5000
    missing = [key for key in audio if key not in few and "time_embed" in key]
    assert missing and all(key in refused([tmp_path / "few.pth", "--all-keys"]) for key in missing)


def test_tensors_that_the_layout_does_not_have(refused, audio, tmp_path, capsys):
    path = saved({**audio, "discriminator.weight": torch.zeros(3)}, tmp_path / "more.pth")
    refused([path, "--strict"], "1 tensors are not of the published layout", "more.pth: discriminator (1 tensor, 12 bytes)")
    arguments = ["convert", str(path), "--out", str(tmp_path / "out"), "--config", str(tmp_path / "sizes.json")]
    assert command.main(arguments) == 0
    assert "more.pth: discriminator (1 tensor, 12 bytes)" in capsys.readouterr().err


def test_other_releases_are_recognised(refused, audio, tmp_path, capsys):
    june = {key: value for key, value in audio.items() if "connecters" not in key}
    refused([saved(june, tmp_path / "june.pth")], "june.pth", "keys are missing", "June 2023, before latent alignment", "today's file")
    more = {f"model.diffusion_model.other.{i}.weight": torch.zeros(1000, 1000) for i in range(3)}
    arguments = ["convert", str(saved({**audio, **more}, tmp_path / "full.pth")), "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--config", str(tmp_path / "sizes.json"), "--dtype", "fp32"]) == 0
    text = capsys.readouterr().err
    assert "full.pth looks like the full-precision release" in text and "(3 tensors, 12.00 MB)" in text


def test_mixed_up_and_other_sizes(refused, audio, tmp_path):
    swapped = {key.replace("unet_audio", "unet_image"): value for key, value in audio.items()}
    refused([saved(swapped, tmp_path / "mixed.pth")], "mixed.pth", "unet_image", "expected", "shapes of audio_denoiser", "mixed up")
    other = {**audio, KEY: torch.zeros(3)}
    refused([saved(other, tmp_path / "other.pth")], "other.pth", f"{KEY} is (3,), expected (8,)")
    numbers = {**audio, KEY: audio[KEY].long()}
    refused([saved(numbers, tmp_path / "whole.pth")], "whole.pth", f"{KEY} is torch.int64", "another kind of numbers")


def test_the_same_weights_twice(refused, files, tmp_path):
    other = {key: value * 2 for key, value in torch.load(files[AUDIO]).items()}
    text = refused([files[AUDIO], saved(other, tmp_path / "again.pth")], AUDIO, "again.pth", "both hold these weights", "once")
    assert len(text) < 5000


def test_a_component_that_no_file_holds(refused, files):
    refused([files[ENCODERS_FILE], "--components", "clip,vision_denoiser"], "vision_denoiser is in none", VISION, "add it")
    refused([files[AUDIO], "--components", "smell"], "unknown component 'smell'", "vocoder")


def test_half_precision_where_full_was_asked_for(refused, audio, tmp_path):
    dressed = saved({key: value.half().float() for key, value in audio.items()}, tmp_path / "dressed.pth")
    refused([dressed, "--dtype", "fp32"], "dressed.pth", PREFIXES["audio_denoiser"], "expected full precision", "--dtype fp16")
    mixed = saved({**audio, KEY: audio[KEY].half()}, tmp_path / "mixed.pth")
    refused([mixed, "--dtype", "fp32"], "mixed.pth", KEY, "float16", "expected full precision")
    for path, more in ((dressed, ["--dtype", "fp32", "--allow-half"]), (dressed, []), (mixed, ["--dtype", "fp16"])):
        out = tmp_path / f"{path.stem}{len(more)}"
        assert command.main(["convert", str(path), "--out", str(out), "--config", str(tmp_path / "sizes.json"), *more]) == 0


@pytest.mark.parametrize(("value", "words"), [(70000.0, "65504"), (float("nan"), "NaN"), (float("-inf"), "infinity")])
def test_numbers_that_cannot_be_converted(refused, audio, tmp_path, value, words):
    bias = audio[KEY].clone()
    bias[3] = value
    path = saved({**audio, KEY: bias}, tmp_path / "big.pth")
    refused([path], "big.pth", KEY, words, "--dtype bf16" if value == 70000 else "Give a full-precision file")
    assert not [p for p in (tmp_path / "out").iterdir() if p.name != "config.json"]
    if value == 70000:
        arguments = ["convert", str(path), "--out", str(tmp_path / "out"), "--config", str(tmp_path / "sizes.json"), "--dtype", "bf16"]
        assert command.main(arguments) == 0


def test_folders_that_hold_another_model(refused, files, tmp_path):
    create_tiny(tmp_path / "mine")  # same sizes, but trained here: its weights must survive
    refused([files[AUDIO]], "audio_denoiser.safetensors", "would be overwritten", "another --out", out=tmp_path / "mine")
    assert CoDi.from_pretrained(tmp_path / "mine", device="cpu").audio_denoiser
    for name, content in (("config.json", '{"_class_name": "UNet"}'), ("model_index.json", "{}"), ("clip.safetensors", "")):
        (tmp_path / name[:3]).mkdir()
        (tmp_path / name[:3] / name).write_text(content)
        refused([files[AUDIO]], "another", "--out", out=tmp_path / name[:3])
    (tmp_path / "file").write_text("")
    refused([files[AUDIO]], "is a file", out=tmp_path / "file")
    refused([files[AUDIO]], "cannot write", out=tmp_path / "file" / "below")


def test_a_full_disk(refused, files, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        refused([files[AUDIO]], "MB are needed", "make room")
    import errno

    real = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            if len(data) > 5000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    def opened(path, mode="r", *rest, **options):
        file = real(path, mode, *rest, **options)
        return Full(file) if mode == "wb" and path.suffix == ".safetensors" else file

    monkeypatch.setattr(Path, "open", opened)
    refused([files[AUDIO]], "cannot write", "No space left", "room")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["config.json"]


def test_opening_reads_no_tensor(files):
    source = open_source(files[VISION])
    assert source.shapes and all(isinstance(shape, tuple) for shape in source.shapes.values())

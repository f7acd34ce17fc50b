"""Weights files: written whole, read only when every key and shape fits."""

import os

import pytest
import torch
from codi.codi_models.checkpoints import load_weights, read_metadata, read_weights, save_weights, without_random_init
from codi.codi_models.errors import CoDiError
from codi.codi_models.files import sha256, whole_file
from torch import nn


class Tied(nn.Module):
    """Two layers of which the second shares the first's weight, and a step counter."""

    def __init__(self, width=4):
        super().__init__()
        self.embedding = nn.Embedding(6, width)
        self.head = nn.Linear(width, 6)
        self.head.weight = self.embedding.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def test_round_trip_stores_tied_parameters_once_and_converts_floats_only(tmp_path):
    module, path = Tied(), tmp_path / "tied.safetensors"
    module.steps.fill_(7)
    save_weights(module, path, dtype=torch.float16, metadata={"component": "tied"})
    tensors, metadata = read_weights(path)
    assert set(tensors) == {"embedding.weight", "head.bias", "steps"} and metadata["component"] == "tied"
    assert tensors["head.bias"].dtype == torch.float16 and tensors["steps"].dtype == torch.int64
    with without_random_init():
        copy = Tied()
    load_weights(copy, path)
    assert torch.equal(copy.head.weight, module.embedding.weight.half().float()) and copy.steps == 7
    assert copy.head.weight is copy.embedding.weight and copy.head.bias.dtype == torch.float32


def test_every_mismatch_is_named_and_nothing_is_loaded(tmp_path):
    path = tmp_path / "wrong.safetensors"
    save_weights({"embedding.weight": torch.zeros(6, 5), "head.bias": torch.zeros(6), "extra": torch.zeros(1)}, path)
    module = Tied()
    before = module.head.bias.clone()
    with pytest.raises(CoDiError) as error:
        load_weights(module, path)
    text = str(error.value)
    assert "wrong.safetensors" in text and "missing: steps" in text and "unknown: extra" in text
    assert "embedding.weight is (6, 5) instead of (6, 4)" in text
    assert torch.equal(module.head.bias, before)


@pytest.mark.parametrize("content", [None, b"", b"not weights at all", "truncated"])
def test_files_that_are_not_whole_weights(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content == "truncated":
        save_weights(Tied(), path)
        path.write_bytes(path.read_bytes()[:-8])
    elif content is not None:
        path.write_bytes(content)
    for read in (read_weights, read_metadata, lambda p: load_weights(Tied(), p)):
        with pytest.raises(CoDiError, match="x.safetensors"):
            read(path)


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, interruption):
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(interruption):
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise interruption
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CoDiError, match="cannot write"):
        with whole_file(tmp_path / "file" / "run.json") as temporary:
            temporary.write_text("x")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such modes")
def test_saved_weights_have_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "new").touch()
    save_weights({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_sha256_of_known_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

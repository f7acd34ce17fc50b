"""The published files into a model folder: whole, streamed, resumable."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import published
import pytest
import torch
from codi.codi_models import __main__ as command
from codi.codi_models.checkpoints import read_metadata, read_weights
from codi.codi_models.components import COMPONENTS
from codi.codi_models.config import CoDiConfig
from codi.codi_models.conversion import convert as conversion
from codi.codi_models.conversion.convert import convert
from codi.codi_models.conversion.layout import ENCODERS_FILE, PREFIXES, TIED, layout, left_out, published_file
from codi.codi_models.conversion.writer import PIECE, Planned, flat_pieces, stream_weights
from codi.codi_models.files import sha256
from codi.codi_models.model import DTYPES, CoDi
from host.setting import PACK
from host.tiny import tiny_config

AUDIO_FILE, VISION_FILE = published_file("audio_denoiser"), published_file("vision_denoiser")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("published"), tiny_config())


@pytest.fixture
def run(tmp_path, capsys):
    """The command on the tiny configuration: exit status, stdout, stderr."""
    tiny_config().save(tmp_path / "sizes.json")

    def call(*arguments, out=tmp_path / "out"):
        status = command.main(["convert", *map(str, arguments), "--out", str(out), "--config", str(tmp_path / "sizes.json")])
        told = capsys.readouterr()
        return status, told.out, told.err

    return call


def test_official_layout_is_the_manifest():
    manifest = json.loads((PACK / "tests" / "parity" / "manifest.json").read_text())["keys"]
    official = layout(CoDiConfig.official())
    kept = {key: entry for key, entry in manifest.items() if not left_out(key)}
    assert len(manifest) == 6109 and set(kept) == set(official.entries)
    for key, entry in kept.items():
        assert official.entries[key].shape == tuple(entry["shape"]), key
        assert official.entries[key].floating == (entry["dtype"] == "float32"), key
        assert published_file(official.entries[key].component) == entry["file"]
    assert all(entry["kind"] == "buffer" or key in TIED for key, entry in manifest.items() if left_out(key))


@pytest.mark.parametrize(("given", "dtype"), [("fp32", "fp16"), ("fp32", "bf16"), ("fp32", "fp32"), ("fp16", "fp32"), ("fp16", "fp16")])
def test_all_files_give_a_whole_folder(tmp_path, given, dtype):
    config = tiny_config()
    files = published.write(tmp_path / "in", config, DTYPES[given], seed=1)
    result = convert(list(files.values()), tmp_path / "out", dtype=dtype, config=config)
    assert result.components == dict.fromkeys(COMPONENTS, "written")
    assert CoDiConfig.load(tmp_path / "out" / "config.json") == config
    state = {key: value for tensors in published.state(config, DTYPES[given], seed=1).values() for key, value in tensors.items()}
    for name in COMPONENTS:
        weights, metadata = read_weights(tmp_path / "out" / f"{name}.safetensors")
        entries = layout(config).of(name)
        assert set(weights) == {entry.key for entry in entries.values()}
        for key, entry in entries.items():
            assert torch.equal(weights[entry.key], state[key].to(DTYPES[dtype]) if entry.floating else state[key])
        assert metadata["component"] == name and metadata["dtype"] == dtype
        file = published_file(name)
        assert json.loads(metadata["sources"]) == [{"file": file, "sha256": sha256(files[file])}]
        assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    model = CoDi.from_pretrained(tmp_path / "out", device="cpu")
    for name in COMPONENTS:
        model.component(name)
    assert bool(result.notes) == (given == "fp16" and dtype == "fp32")


def test_only_what_is_asked_for(run, files, tmp_path):
    sound = "audio_denoiser,audio_autoencoder,vocoder"
    status, out, _ = run(files[ENCODERS_FILE], files[AUDIO_FILE], "--components", sound)
    assert status == 0
    assert {p.stem for p in (tmp_path / "out").glob("*.safetensors")} == set(sound.split(","))
    assert f"not converted; it is in {VISION_FILE}" in out and str(tmp_path / "out") in out
    status, out, _ = run(files[AUDIO_FILE], files[VISION_FILE])  # later, another file
    assert status == 0 and re.search(r"audio_denoiser .* kept", out) and re.search(r"vision_denoiser .* written", out)


def test_names_wrappers_and_the_division_into_files_do_not_matter(run, tmp_path):
    state = published.state(tiny_config())
    vision, audio = state[VISION_FILE], state[AUDIO_FILE]
    half = len(vision) // 2
    torch.save({"state_dict": {f"module.{k}": v for k, v in list(vision.items())[:half]}, "epoch": 3, "note": "x"}, tmp_path / "a.bin")
    torch.save({"model": dict(list(vision.items())[half:])}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    alone = {k.removeprefix("model.diffusion_model."): torch.nn.Parameter(v) for k, v in audio.items()}
    torch.save(alone, tmp_path / "c.pth")
    status, _, _ = run(tmp_path / "a.bin", tmp_path / "b.pt", tmp_path / "c.pth", "--dtype", "fp32")
    assert status == 0
    weights, metadata = read_weights(tmp_path / "out" / "vision_denoiser.safetensors")
    assert all(torch.equal(weights[key.removeprefix(PREFIXES["vision_denoiser"])], value) for key, value in vision.items())
    assert {s["file"] for s in json.loads(metadata["sources"])} == {"a.bin", "b.pt"}
    assert (tmp_path / "out" / "audio_denoiser.safetensors").exists()


def test_safetensors_and_transposed_storage(run, tmp_path):
    from safetensors.torch import save_file

    tensors = published.state(tiny_config())[AUDIO_FILE]
    save_file(tensors, str(tmp_path / "audio.safetensors"))
    assert run(tmp_path / "audio.safetensors", "--dtype", "fp32")[0] == 0
    turned = {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in tensors.items()}
    torch.save(turned, tmp_path / "audio.pth")
    assert run(tmp_path / "audio.pth", "--dtype", "fp32", out=tmp_path / "other")[0] == 0
    a, b = (read_weights(tmp_path / folder / "audio_denoiser.safetensors")[0] for folder in ("out", "other"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_half_run_is_continued(run, files, tmp_path, monkeypatch):
    written = []
    real = conversion._write

    def until_the_third(path, *rest):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.stem)
        real(path, *rest)

    monkeypatch.setattr(conversion, "_write", until_the_third)
    status, _, err = run(files[ENCODERS_FILE])
    assert status == 130 and "interrupted" in err
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.safetensors")) == sorted(written)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}
    monkeypatch.setattr(conversion, "_write", real)
    status, out, _ = run(files[ENCODERS_FILE])
    assert status == 0 and out.count("kept") == 3 and out.count("written") == 3
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    _, out, _ = run(files[ENCODERS_FILE])
    assert out.count("kept") == 6 and "written" not in out
    _, out, _ = run(files[ENCODERS_FILE], "--dtype", "bf16")  # another dtype is another conversion
    assert out.count("written") == 6 and read_metadata(tmp_path / "out" / "clip.safetensors")["dtype"] == "bf16"


def test_other_sources_are_converted_anew(run, files, tmp_path):
    run(files[AUDIO_FILE])
    torch.save(published.state(tiny_config(), seed=5)[AUDIO_FILE], tmp_path / AUDIO_FILE)
    _, out, _ = run(tmp_path / AUDIO_FILE)
    assert "written" in out
    assert json.loads(read_metadata(tmp_path / "out" / "audio_denoiser.safetensors")["sources"])[0]["sha256"] == sha256(
        tmp_path / AUDIO_FILE
    )


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as leaving:
        command.main(["convert", "--help"])
    text = capsys.readouterr().out
    assert leaving.value.code == 0 and all(name in text for name in (*COMPONENTS, ENCODERS_FILE, "--components", "SHA-256"))


def test_streamed_files_are_those_of_the_library(tmp_path):
    from safetensors.torch import save_file

    tensors = {"b": torch.randn(3, 5).half(), "a": torch.randn(PIECE + 7), "count": torch.tensor(4)}
    tensors |= {"none": torch.zeros(0, 3), "flag": torch.ones(3) > 0}
    plan = [Planned(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    stream_weights(tmp_path / "ours.safetensors", plan, lambda p: flat_pieces(tensors[p.name]), {"component": "x"})
    save_file(tensors, str(tmp_path / "theirs.safetensors"), metadata={"codi": json.dumps({"component": "x"})})
    ours, theirs = read_weights(tmp_path / "ours.safetensors"), read_weights(tmp_path / "theirs.safetensors")
    assert ours[1] == theirs[1] and all(torch.equal(ours[0][name], t) for name, t in tensors.items())
    assert (tmp_path / "ours.safetensors").stat().st_size == (tmp_path / "theirs.safetensors").stat().st_size


MEMORY = """
import sys, threading, torch
sys.path.insert(0, "tests")
from host.setting import import_pack; import_pack()
from codi.codi_models.conversion import sources, writer, precision
from codi.codi_models.conversion.matching import Found
def anonymous():
    return int([l for l in open("/proc/self/status") if l.startswith("RssAnon")][0].split()[1]) * 1024
source = sources.open_source(sys.argv[1])
plan = [writer.Planned(k, torch.float16, s) for k, s in source.shapes.items()]
before = most = anonymous()
def pieces(p):
    global most
    for piece in precision.converted(Found(source, p.name), p.dtype):
        most = max(most, anonymous())
        yield piece
writer.stream_weights(sys.argv[2], plan, pieces, {})
print(most - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_at_a_piece_of_a_tensor(tmp_path):
    torch.save({f"weight.{i}": torch.full((8, 1 << 20), i / 7) for i in range(12)}, tmp_path / "big.pth")  # 400 MB
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "big.pth"), str(tmp_path / "out.safetensors")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACK).stdout)
    assert grown < 100e6, f"{grown / 1e6:.0f} MB"

"""Training on a user's own pairs: how they are found, what is told of bad ones, and what each stage changes."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from codi.codi_models import media
from codi.codi_models.bounce_world.export import export_samples
from codi.codi_models.checkpoints import read_weights
from codi.codi_models.components import build_component
from codi.codi_models.config import CoDiConfig
from codi.codi_models.denoisers.alignment import alignment_parameters
from codi.codi_models.errors import CoDiError
from codi.codi_models.model import CoDi
from codi.codi_models.training import cli, records
from codi.codi_models.training.alignment import freeze
from codi.codi_models.training.dataset import FolderDataset
from codi.codi_models.training.finetune import Finetune, finetune, parse_pairs, take_over
from codi.codi_models.training.memory import alignment_memory, checkpoint_blocks
from codi.codi_models.training.workspace import Workspace
from host.tiny import create_tiny, tiny_config
from small import small_config


@pytest.fixture(scope="module")
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    create_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes as a manifest, with a sound at another rate."""
    folder = tmp_path_factory.mktemp("pairs")
    export_samples(folder, 3, seed=1)
    media.write_wav(folder / "001_audio.wav", 0.1 * torch.randn(30000, generator=torch.Generator().manual_seed(0)), 22050)
    lines = [
        {"text": (folder / f"{i:03d}_text.txt").read_text(encoding="utf-8").strip(), **{k: f"{i:03d}_{k}.{s}" for k, s in kinds.items()}}
        for i, kinds in enumerate([{"image": "png", "audio": "wav", "video": "mp4"}, {"image": "png", "audio": "wav"}, {"image": "png"}])
    ]
    (folder / records.MANIFEST).write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return folder


def of(found: list[records.Record]) -> list[str]:
    return ["+".join(sorted(record.sources)) for record in found]


def test_examples_are_found_in_manifests_folders_and_tars(pairs: Path, tmp_path: Path) -> None:
    assert of(records.find_records(pairs)) == ["audio+image+text+video", "audio+image+text", "image+text"]
    for name, source in (
        ("dog.png", "000_image.png"),
        ("dog.txt", "000_text.txt"),
        ("sub/cat.wav", "000_audio.wav"),
        ("sub/cat.txt", "000_text.txt"),
    ):
        (tmp_path / "loose" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pairs / source, tmp_path / "loose" / name)
    export_samples(tmp_path / "world", 1)
    assert of(records.find_records(tmp_path / "world")) == ["audio+image+text+video"]
    (tmp_path / "loose" / "readme.md").write_text("no medium", encoding="utf-8")
    assert of(records.find_records(tmp_path / "loose")) == ["image+text", "audio+text"]
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(pairs / "000_image.png", "a/one.png")
        tar.add(pairs / "000_audio.wav", "a/one.audio.wav")
        caption = json.dumps({"caption": "a red circle", "id": 7}).encode()
        entry = tarfile.TarInfo("a/one.json")
        entry.size = len(caption)
        tar.addfile(entry, io.BytesIO(caption))
    with gzip.open(tmp_path / "packed.tar.gz", "wb") as packed:
        packed.write((tmp_path / "shard.tar").read_bytes())
    for data in (tmp_path / "shard.tar", tmp_path, tmp_path / "packed.tar.gz"):
        (record,) = records.find_records(data)
        found = FolderDataset(data, small_config())
        assert of([record]) == ["audio+image+text"] and found.texts([0], random.Random(0)) == ["a red circle"]
        assert found.media("image", [0]).shape == (1, 3, 64, 64) and found.media("audio", [0]).shape == (1, 20480)


def test_a_tar_is_opened_once_whatever_it_holds(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        for number in range(20):
            tar.add(pairs / "000_image.png", f"{number:02d}.png")
            tar.add(pairs / "000_text.txt", f"{number:02d}.txt")
    opened: list[str] = []
    original = tarfile.open
    monkeypatch.setattr(records.tarfile, "open", lambda *a, **k: (opened.append(a[0]), original(*a, **k))[1])
    found = FolderDataset(tmp_path / "many.tar", small_config())
    found.check()
    assert len(found) == 20 and len(opened) <= 2  # is_tarfile looks too
    (tmp_path / "many.tar").write_bytes((tmp_path / "many.tar").read_bytes()[:20000])
    with pytest.raises(CoDiError, match="many.tar/19.png cannot be read.*Pack it again"):
        found.records[19].read("image")


def test_bad_data_are_told(pairs: Path, tmp_path: Path) -> None:
    def refused(data: Path, words: str) -> None:
        with pytest.raises(CoDiError, match=words):
            FolderDataset(data, small_config()).pairs_only()

    refused(tmp_path / "nowhere", "no data at .*nowhere")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no examples.*png")
    (tmp_path / "single").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(pairs / "000_image.png", tmp_path / "single" / name)
    refused(tmp_path / "single", "no example shows 2 or more.*2 of image")
    (tmp_path / "cut.tar").write_bytes(b"no tar at all" * 100)
    refused(tmp_path / "cut.tar", "no data at .*cut.tar")
    manifest = tmp_path / "bad" / records.MANIFEST
    manifest.parent.mkdir()
    shutil.copy(pairs / "000_image.png", tmp_path / "outside.png")
    for line, words in (
        ("{", "line 1 is no JSON"),
        ('["a"]', "line 1: no object"),
        ('{"text": "a", "picture": "b.png"}', "unknown fields \\['picture'\\]"),
        ('{"text": "a", "image": 3}', "no object of texts"),
        ('{"text": "a", "image": "missing.png"}', "there is no file missing.png"),
        ('{"text": "a", "image": "../outside.png"}', "lies outside"),
        (json.dumps({"text": "a", "image": str(tmp_path / "outside.png")}), "lies outside"),
    ):
        manifest.write_text(line + "\n", encoding="utf-8")
        refused(manifest.parent, words)


def settings(tiny: Path, data: Path, tmp_path: Path, **changes) -> Finetune:
    usual = {
        "stage": "alignment",
        "model": tiny,
        "data": data,
        "out": tmp_path / "model",
        "runs": tmp_path / "runs",
        "steps": 4,
        "batch": 2,
    }
    return Finetune(**{**usual, **changes})


def changed(tiny: Path, out: Path) -> dict[str, set[str]]:
    """Component -> keys whose tensors differ."""
    found = {}
    for path in sorted(tiny.glob("*.safetensors")):
        before, after = read_weights(path)[0], read_weights(out / path.name)[0]
        if keys := {key for key in before if not torch.equal(before[key], after[key])}:
            found[path.stem] = keys
    return found


@pytest.mark.parametrize("bf16", [False, True])
def test_alignment_changes_environment_encoders_and_connectors_only(
    tiny: Path, pairs: Path, tmp_path: Path, bf16: bool, accelerator, monkeypatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("codi.codi_models.training.denoising.SHOWN_STEPS", 1)
    run = settings(tiny, pairs, tmp_path, bf16=bf16, checkpointing=bf16, learning_rate=0.01)
    assert finetune(run, accelerator=accelerator, say=said.append)
    found = changed(tiny, run.out)
    assert set(found) == {"vision_denoiser", "audio_denoiser", "text_denoiser"}
    assert all("connecter" in key for keys in found.values() for key in keys)
    assert any("GiB a process" in line for line in said)
    CoDi.from_pretrained(run.out, device="cpu").component("audio_denoiser")


def test_a_denoiser_learns_and_its_connectors_stay(tiny: Path, pairs: Path, tmp_path: Path, accelerator) -> None:
    run = settings(tiny, pairs, tmp_path, stage="denoiser", modality="audio")
    assert finetune(run, accelerator=accelerator, say=lambda _: None)
    found = changed(tiny, run.out)
    assert set(found) == {"audio_denoiser"} and not any("connecter" in key for key in found["audio_denoiser"])


def test_bridging_leaves_the_text_encoder_alone(tiny: Path, pairs: Path, tmp_path: Path, accelerator) -> None:
    run = settings(tiny, pairs, tmp_path, stage="bridging", learning_rate=0.01)
    assert finetune(run, accelerator=accelerator, say=lambda _: None)
    found = changed(tiny, run.out)
    assert set(found) == {"clip", "clap"} and not any(key.startswith("text_model") for key in found["clip"])


def test_media_are_encoded_once_and_a_pause_changes_nothing(tiny: Path, pairs: Path, tmp_path: Path, accelerator, monkeypatch) -> None:
    unbroken = settings(tiny, pairs, tmp_path / "a", stage="denoiser", modality="text", steps=6)
    assert finetune(unbroken, accelerator=accelerator, say=lambda _: None)
    paused = settings(tiny, pairs, tmp_path / "b", stage="denoiser", modality="text", steps=6)
    assert not finetune(paused, accelerator=accelerator, say=lambda _: None, pause_after=1e-9)
    monkeypatch.setattr("codi.codi_models.training.encoded.embed", lambda *_: pytest.fail("encoded again"))
    for _ in range(10):
        if finetune(paused, accelerator=accelerator, say=lambda _: None, pause_after=1e-9):
            break
    first, second = (read_weights(tmp_path / n / "model" / "text_denoiser.safetensors")[0] for n in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_disk_that_is_full_when_weights_are_written(tiny: Path, pairs: Path, tmp_path: Path, accelerator, monkeypatch) -> None:
    from safetensors import SafetensorError

    run = settings(tiny, pairs, tmp_path, stage="denoiser", modality="text")
    write = Workspace.save_learnt

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    def writing(*given: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("safetensors.torch.save_file", full)
            write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "save_learnt", writing)
        with pytest.raises(CoDiError, match="text_denoiser.safetensors.*No space left on device"):
            finetune(run, accelerator=accelerator, say=lambda _: None)
    assert not changed(tiny, run.out) and (run.runs / run.name / "state.pt").exists()
    assert finetune(run, accelerator=accelerator, say=lambda _: None)
    assert set(changed(tiny, run.out)) == {"text_denoiser"}


def test_unreadable_media_are_named_or_skipped(tiny: Path, pairs: Path, tmp_path: Path, accelerator) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    (tmp_path / "data" / "001_image.png").write_bytes(b"\x89PNG broken")
    run = settings(tiny, tmp_path / "data", tmp_path, stage="denoiser", modality="image", steps=1)
    with pytest.raises(CoDiError, match="1 of 9 media cannot be used.*001_image.png"):
        finetune(run, accelerator=accelerator, say=lambda _: None)
    assert finetune(settings(tiny, tmp_path / "data", tmp_path, stage="denoiser", modality="image", steps=1, skip_unreadable=True),
                     accelerator=accelerator, say=lambda _: None)  # fmt: skip


@pytest.mark.parametrize("wrong, words", [
    ({"stage": "dreaming"}, "dreaming.*bridging"), ({"stage": "denoiser"}, "needs a modality"), ({"steps": 0}, "steps 0"),
    ({"batch": 0}, "batch 0"), ({"stage": "bridging", "batch": 1}, "batch of 2"), ({"learning_rate": 2.0}, "learning rate 2"),
    ({"pairs": (("image", "video"),)}, "share a denoiser"), ({"pairs": (("image", "smell"),)}, "smell"),
])  # fmt: skip
def test_settings_that_cannot_be_used(tiny: Path, tmp_path: Path, wrong: dict, words: str) -> None:
    with pytest.raises(CoDiError, match=words):
        settings(tiny, tmp_path, tmp_path, **wrong).check()


def test_pairs_that_are_not_there(tiny: Path, pairs: Path, tmp_path: Path, accelerator) -> None:
    shutil.copytree(pairs, tmp_path / "data")
    lines = (pairs / records.MANIFEST).read_text(encoding="utf-8").splitlines()[2:]
    (tmp_path / "data" / records.MANIFEST).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(CoDiError, match="no example has both audio and video"):
        finetune(settings(tiny, tmp_path / "data", tmp_path, pairs=(("audio", "video"),)), accelerator=accelerator, say=lambda _: None)
    with pytest.raises(CoDiError, match="no example has audio; the data have"):
        finetune(
            settings(tiny, tmp_path / "data", tmp_path / "b", stage="denoiser", modality="audio"),
            accelerator=accelerator,
            say=lambda _: None,
        )


def test_the_starting_model_is_never_written(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CoDiError, match="model to start from"):
        take_over(tiny, tiny)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(CoDiError, match="no CoDi model"):
        take_over(tiny, tmp_path / "full")


def test_a_first_copy_that_was_interrupted_goes_on(tiny: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", sorted(p.name for p in tiny.iterdir() if p.name != "config.json")
    take_over(tiny, out)
    (out / "config.json").unlink()  # what comes last
    (out / names[0]).unlink()
    (out / f".{Path(names[0]).stem}.0123abcd{Path(names[0]).suffix}").write_bytes(b"a beginning")
    take_over(tiny, out)
    assert all((out / p.name).read_bytes() == p.read_bytes() for p in tiny.iterdir() if p.is_file())
    (out / "config.json").unlink()
    (out / names[0]).unlink()
    (out / names[0]).write_bytes(b"of another model")
    with pytest.raises(CoDiError, match="no CoDi model"):
        take_over(tiny, out)


def test_checkpointing_changes_memory_not_gradients() -> None:
    from codi.codi_models.parity.recipe import fill

    config = tiny_config()
    gradients = []
    for again in (False, True):
        net = fill(build_component("audio_denoiser", config), "own")
        freeze(net, alignment_parameters(net))
        if again:
            checkpoint_blocks(net)
        x, t, context = torch.ones(2, 8, 4, 8), torch.tensor([10, 900]), torch.ones(2, 1, 128)
        net(x, t, context, environment=torch.ones(2, 1, 128)).square().mean().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0] and all(torch.allclose(gradients[0][k], gradients[1][k], atol=1e-6) for k in gradients[0])
    plain, less = (alignment_memory(config, ("audio", "text"), 4, bf16=False, checkpointing=c) for c in (False, True))
    assert less["activations"] < 0.6 * plain["activations"] and less["trained"] == plain["trained"]
    official = alignment_memory(CoDiConfig.official(), ("audio", "video"), 1, bf16=True, checkpointing=True)
    assert 400e6 < official["trained parameters"] < 600e6


def test_the_command_line(tiny: Path, pairs: Path, tmp_path: Path, capsys) -> None:
    folders = ["--data", str(pairs), "--out", str(tmp_path / "model"), "--runs", str(tmp_path / "runs")]
    assert cli.main([str(tiny), *folders, "--stage", "denoiser", "--modality", "text", "--steps", "2", "--batch", "2"]) == 0
    assert "model folder" in capsys.readouterr().out and (tmp_path / "runs" / "denoiser-text" / "done").exists()
    with pytest.raises(CoDiError, match="give --data FOLDER"):
        cli.main([str(tiny)])
    with pytest.raises(CoDiError, match="needs a modality"):
        cli.main(["--base", str(tiny), "--data", str(pairs), "--stage", "denoiser"])
    assert cli.main([str(tiny), "--memory", "--batch", "2"]) == 0
    assert capsys.readouterr().out.count("GiB a process") == 3
    assert parse_pairs("image+text, audio+video") == (("image", "text"), ("audio", "video"))

"""CoDi Train in the host: a small run from pairs in the input folder to a model that loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from codi.codi_models.bounce_world.export import export_samples
from codi.codi_models.checkpoints import read_weights
from host.graph import node, shown
from host.session import Failed

SETTINGS = {"learning_rate": 0.0, "pairs": "", "bf16": False, "checkpointing": False, "skip_unreadable": False, "seed": 0}


@pytest.fixture(scope="module")
def pairs(session) -> str:
    import folder_paths

    folder = Path(folder_paths.get_input_directory()) / "train_pairs"
    export_samples(folder, 2, seed=4)
    lines = [{"text": f"{i:03d}_text.txt", "image": f"{i:03d}_image.png", "audio": f"{i:03d}_audio.wav"} for i in range(2)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder.name


def graph(folder: str, save_as: str, **changes) -> dict:
    usual = {"name": "tiny", "data": folder, "save_as": save_as, "stage": "denoiser", "modality": "text", "steps": 3, "batch": 2}
    return {"train": node("CoDiTrain", **{**usual, **SETTINGS, **changes})}


def model(base: Path, name: str) -> Path:
    return base / "models" / "codi" / name


def weights(folder: Path, component: str = "text_denoiser") -> dict[str, torch.Tensor]:
    return read_weights(folder / f"{component}.safetensors")[0]


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {key for key in a if not torch.equal(a[key], b[key])}


def test_a_run_ends_in_a_model_that_loads(session, base, pairs):
    run = {**graph(pairs, "taught"), "say": node("CoDiEncodeText", codi=["train", 0], text="a red square")}
    ui = session.run(shown(run, ["say", 0]))
    assert ui["train"]["images"] and session.value("train", 1).shape[-1] == 3 and session.value("train", 2) == "taught"
    assert session.value("train", 1).std() > 0.02
    assert differ(weights(model(base, "tiny")), weights(model(base, "taught")))
    steps = [data["value"] for event, data in session.events if event == "progress"]
    assert 3 in steps
    session.run(shown({"load": node("CoDiLoad", name="taught"), "say": node("CoDiEncodeText", codi=["load", 0], text="a")}, ["say", 0]))
    assert (base / "output" / "codi_training" / "taught" / "denoiser-text" / "done").is_file()


def test_alignment_changes_only_how_outputs_listen(session, base, pairs):
    session.run(graph(pairs, "aligned", stage="alignment", pairs="text+audio", learning_rate=0.01, checkpointing=True))
    changed = differ(weights(model(base, "tiny"), "audio_denoiser"), weights(model(base, "aligned"), "audio_denoiser"))
    assert changed and all("connecter" in key for key in changed)
    assert not differ(weights(model(base, "tiny"), "vision_denoiser"), weights(model(base, "aligned"), "vision_denoiser"))


def test_stop_keeps_what_was_learnt_and_the_next_run_goes_on(session, base, pairs, monkeypatch):
    import comfy.model_management as mm

    session.run(graph(pairs, "unbroken", steps=7))
    limit = 4

    import comfy.utils

    update = comfy.utils.ProgressBar.update_absolute

    def bar(self, value, total=None, preview=None):  # hosts pass few of quick steps on to their hook
        update(self, value, total, preview)
        if total == 7 and value >= limit:
            mm.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(comfy.utils.ProgressBar, "update_absolute", bar)
        with pytest.raises(Failed, match="interrupt"):
            session.run(graph(pairs, "stopped", steps=7))
    mm.interrupt_current_processing(False)
    runs = base / "output" / "codi_training" / "stopped" / "denoiser-text"
    reached = torch.load(runs / "state.pt", weights_only=True)["step"]
    assert limit <= reached < 7 and differ(weights(model(base, "tiny")), weights(model(base, "stopped")))
    session.run(graph(pairs, "stopped", steps=7))
    assert not differ(weights(model(base, "unbroken")), weights(model(base, "stopped"))) and not (runs / "state.pt").exists()


@pytest.mark.parametrize("wrong, words", [
    ({"data": "nowhere"}, "no data named 'nowhere'"),
    ({"data": "../models"}, "no data named"),
    ({"data": ""}, "no data named"),
    ({"save_as": "../escape"}, "no name for a model folder"),
    ({"save_as": "a/b"}, "no name for a model folder"),
    ({"save_as": "codi-mini"}, "model of the pack itself"),
    ({"save_as": "tiny"}, "model to start from"),
    ({"stage": "alignment", "pairs": "image+video"}, "share a denoiser"),
    ({"modality": "video"}, "no example has video"),
])  # fmt: skip
def test_what_cannot_be_trained_is_told(session, pairs, wrong, words):
    inputs = {**graph(pairs, "refused")["train"]["inputs"], **wrong}
    with pytest.raises(Failed, match=words):
        session.run({"train": node("CoDiTrain", **inputs)})


def test_a_broken_folder_is_told(session, pairs):
    import folder_paths

    empty = Path(folder_paths.get_input_directory()) / "no_pairs"
    empty.mkdir(exist_ok=True)
    (empty / "note.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(Failed, match="holds no examples"):
        session.run(graph(empty.name, "refused"))
    shutil.rmtree(empty)

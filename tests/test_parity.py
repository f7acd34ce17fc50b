"""The parity command: our networks give the published numbers, and it tells where numbers, keys or files are not in order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import parity_fixtures
import pytest
import torch
from codi.codi_models.__main__ import main
from codi.codi_models.autoencoders.tokenizers import build_vocabularies
from codi.codi_models.errors import CoDiError
from codi.codi_models.parity import recipe
from codi.codi_models.parity.cli import run_fixture, run_folder
from codi.codi_models.parity.networks import Networks
from codi.codi_models.parity.recipe import parity_weight as drawn
from codi.codi_models.parity.report import FAIL, OK, SKIPPED, Report
from parity_fixtures import MAKERS, write
from safetensors.torch import load_file, save_file
from torch import Tensor

PARITY = Path(__file__).parent / "parity"
NAMES = sorted(path.stem for path in PARITY.glob("*.json"))
NETWORKS = Networks()


@pytest.mark.parametrize("name", NAMES)
def test_published_numbers(name: str) -> None:
    report = Report()
    run_fixture(PARITY, name, report, NETWORKS)
    assert [str(row) for row in report.rows if row.status != OK] == []
    weights = PARITY / f"{name}.safetensors"
    recorded = {key for key in load_file(weights) if not key.startswith("in/")} if weights.exists() else set()
    assert recorded <= {row.tensor for row in report.rows}, "every recorded tensor has its line"
    assert len(report.rows) > len(recorded) or recorded


def test_manifest_explains_every_entry() -> None:
    report = Report()
    run_fixture(PARITY, "manifest", report, NETWORKS)
    rows = {row.tensor: row.why for row in report.rows}
    assert rows["keys"] == "6109 entries: 6053 ours, 56 left out"
    assert sum(why.startswith("left out: ") for why in rows.values()) == 56


@pytest.mark.parametrize("name", MAKERS)
def test_other_sizes(name: str, tmp_path: Path) -> None:
    with torch.no_grad():
        made = MAKERS[name]()
    write(tmp_path, name, made)
    report = Report()
    run_fixture(tmp_path, name, report, NETWORKS)
    assert [str(row) for row in report.rows if row.status != OK] == []
    recorded = {key for key in made[1] if not key.startswith("in/")}
    assert recorded <= {row.tensor for row in report.rows}
    assert all(row.error < 2e-5 for row in report.rows if row.tensor in recorded and "16_weights" not in row.tensor), "the same network"


FULL_NAMES = {
    "unets": "model.diffusion_model.", "kl_plain": "autokl.", "vocoder": "audioldm.vocoder.", "optimus": "optimus.", "clip": "clip.model.",
    "clap": "clap.",
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_NAMES)
def test_keys_as_in_the_full_checkpoint(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were drawn by the full checkpoint's keys, which the fixture lists."""
    prefix = FULL_NAMES[name]
    monkeypatch.setattr(recipe, "parity_weight", lambda seed, key, shape: drawn(seed, prefix + key, shape))
    parity_fixtures.unets.cache_clear()
    with torch.no_grad():
        info, tensors = MAKERS[name]()
    monkeypatch.undo()
    parity_fixtures.unets.cache_clear()
    info["keys"] = [[prefix + key, shape] for key, shape in info["keys"]]
    info["untouched_keys"] = [prefix + key for key in info.get("untouched_keys", ())]
    write(tmp_path, name, (info, tensors))
    rows = run_folder(tmp_path).rows
    assert [str(row) for row in rows if row.status != OK] == []
    assert any(row.tensor.startswith("out/") for row in rows)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "fixtures", tmp_path / "rows.json"
    folder.mkdir()
    copied(folder, "ddim_schedules", "unet_blocks")
    assert main(["parity", str(folder), "--only", "unet_blocks", "--json", str(out), "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    fixture, tensor, error, tolerance, status = next(line for line in lines if " out/resblock " in line).split()
    assert (fixture, tensor, status) == ("unet_blocks", "out/resblock", "ok") and float(error) <= float(tolerance) == 1e-5
    assert lines[-1].startswith(f"1 fixtures: {len(lines) - 1} ok, 0 FAIL, 0 skipped")
    found = json.loads(out.read_text())
    assert found["passed"] and len(found["rows"]) == len(lines) - 1
    assert main(["parity", str(folder)]) == 0


@pytest.mark.parametrize("made", ["nothing", "a file", "empty"])
def test_no_fixtures(made: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "here"
    if made == "a file":
        path.write_text("{}")
    elif made == "empty":
        path.mkdir()
        (path / "README.md").write_text("nothing")
    assert main(["parity", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_unknown_names(tmp_path: Path) -> None:
    copied(tmp_path, "ddim_schedules")
    with pytest.raises(CoDiError, match="no fixture nowhere .* there are ddim_schedules"):
        run_folder(tmp_path, ["nowhere"])


def copied(folder: Path, *names: str) -> None:
    for name in names:
        for path in PARITY.glob(f"{name}.*"):
            shutil.copy(path, folder)


def changed(folder: Path, name: str, *, info: Any = None, tensors: Any = None) -> Report:
    """The report on a copy of a fixture with changed json or tensors."""
    copied(folder, name)
    path, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    for other in folder.iterdir():
        other.chmod(0o644)
    if info is not None:
        data = json.loads(path.read_text())
        info(data)
        path.write_text(json.dumps(data))
    if tensors is not None:
        loaded: dict[str, Tensor] = load_file(weights)
        tensors(loaded)
        save_file(loaded, weights)
    return run_folder(folder)


def bad(report: Report) -> list[tuple[str, str]]:
    return [(row.tensor, row.status) for row in report.rows if row.status != OK]


@pytest.mark.parametrize("tensor", ["out/transformer_1_token", "out/fcblock", "out/timestep_embedding_dim64"])
def test_a_number_that_is_off(tensor: str, tmp_path: Path) -> None:
    def shift(tensors: dict[str, Tensor]) -> None:
        tensors[tensor].view(-1)[7] += 3e-5 * tensors[tensor].abs().max()

    report = changed(tmp_path, "unet_blocks", tensors=shift)
    assert bad(report) == [(tensor, FAIL)] and not report.passed
    assert main(["parity", str(tmp_path)]) == 1


def test_a_number_that_is_not_finite(tmp_path: Path) -> None:
    assert bad(changed(tmp_path, "unet_blocks", tensors=lambda t: t["out/resblock"].view(-1)[:1].fill_(float("nan")))) == [
        ("out/resblock", FAIL)
    ]


def test_an_intermediate_that_is_off(tmp_path: Path) -> None:
    def shift(tensors: dict[str, Tensor]) -> None:
        tensors["mid/layers.0_every8"] += 0.01

    assert bad(changed(tmp_path, "clap_htsat_small", tensors=shift)) == [("mid/layers.0_every8", FAIL)]


@pytest.mark.parametrize(
    ("steps", "name"), [(lambda s: s["timesteps_ascending"].reverse(), "timesteps"), (lambda s: s["alphas"].__setitem__(3, 0.5), "alphas")]
)
def test_a_schedule_that_is_off(steps: Any, name: str, tmp_path: Path) -> None:
    assert bad(changed(tmp_path, "ddim_schedules", info=lambda info: steps(info["schedules"]["30"]))) == [(f"30/{name}", FAIL)]


@pytest.mark.parametrize(("change", "words"), [
    (lambda keys: keys.pop(5), "1 ours alone"),
    (lambda keys: keys.append(["encoder.extra.weight", [3]]), "1 missing from ours: encoder.extra.weight"),
    (lambda keys: keys[0][1].append(1), "1 of another shape"),
])  # fmt: skip
def test_keys_that_differ(change: Any, words: str, tmp_path: Path) -> None:
    report = changed(tmp_path, "autokl", info=lambda info: change(info["keys"]))
    assert bad(report) == [("keys", FAIL)]
    assert words in next(row.why for row in report.rows if row.tensor == "keys")


def test_keys_listed_elsewhere(tmp_path: Path) -> None:
    report = changed(tmp_path, "hifigan", info=lambda info: info.update(keys="see manifest.json"))
    assert report.passed
    assert next(row.why for row in report.rows if row.tensor == "keys") == "194 ours; the json says 'see manifest.json'"


def test_inputs_and_outputs_in_other_types(tmp_path: Path) -> None:
    def convert(tensors: dict[str, Tensor]) -> None:
        tensors["in/timesteps"] = tensors["in/timesteps"].int()
        tensors["in/emb"] = tensors["in/emb"].double()
        tensors["out/fcblock"] = tensors["out/fcblock"].half()

    report = changed(tmp_path, "unet_blocks", tensors=convert)
    assert report.passed
    row = next(row for row in report.rows if row.tensor == "out/fcblock")
    assert row.why == "stored in float16" and row.tolerance is not None and row.tolerance < 6e-4


def test_number_of_keys_that_differs(tmp_path: Path) -> None:
    assert bad(changed(tmp_path, "ddim_text", info=lambda info: info.update(n_keys=1145))) == [("n_keys", FAIL)]


def test_manifest_that_differs(tmp_path: Path) -> None:
    def change(info: dict[str, Any]) -> None:
        info["keys"]["autokl.encoder.conv_in.weight"]["shape"] = [128, 4, 3, 3]
        info["keys"]["clip.model.unheard.of"] = info["keys"].pop("clip.model.logit_scale")
        info["keys"]["optimus.decoder.transformer.h.0.attn.bias"]["shape"] = [1, 1, 512, 512]

    found = dict(bad(changed(tmp_path, "manifest", info=change)))
    assert {"image_autoencoder", "clip", "optimus.decoder.transformer.h.0.attn.bias", "keys"} <= set(found)
    assert set(found.values()) == {FAIL}


def test_texts_that_differ(tmp_path: Path) -> None:
    def change(info: dict[str, Any]) -> None:
        info["caption_cleanup"][0]["official_final"] += "!"
        info["bert_encode"][0]["ids"][-1] = 103
        info["emoji"] = []

    report = changed(tmp_path, "text_io", info=change)
    assert dict(bad(report)) == {"bert_encode/0": FAIL, "caption_cleanup/0/official_final": FAIL, "emoji": SKIPPED}


def test_vocabularies_at_hand(tmp_path: Path) -> None:
    """Given files are used, and files of another size are told."""
    build_vocabularies(["a dog"], tmp_path, 500, 600)
    copied(tmp_path, "text_io")
    rows = run_folder(tmp_path, ["text_io"], vocabularies=tmp_path).rows
    assert [row.status for row in rows] == [SKIPPED] and "500 entries" in rows[0].why


def test_tolerances_of_the_json(tmp_path: Path) -> None:
    stated = {"out/resblock": 1e-12, "fcblock": 0.5, "out/transformer_1_token": True}
    report = changed(tmp_path, "unet_blocks", info=lambda info: info.update(tolerances=stated))
    assert bad(report) == [("out/resblock", FAIL)]
    allowed = {row.tensor: row.tolerance for row in report.rows}
    assert allowed["out/fcblock"] == 0.5 and allowed["out/transformer_1_token"] == 1e-5  # true is no number


def test_what_has_no_counterpart(tmp_path: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors.update({"mid/unheard.of": torch.ones(3), "variant/resblock": torch.zeros(3)})

    report = changed(tmp_path, "unet_blocks", tensors=add)
    assert sorted(bad(report)) == [("mid/unheard.of", SKIPPED), ("variant/resblock", SKIPPED)]
    assert main(["parity", str(tmp_path)]) == 1


def test_listed_tensor_that_is_missing(tmp_path: Path) -> None:
    assert bad(changed(tmp_path, "unet_blocks", tensors=lambda t: t.pop("out/resblock"))) == [("out/resblock", FAIL)]


@pytest.mark.parametrize(("change", "words"), [
    (lambda info: info.update(official_class="SomethingElse"), "unknown official class 'SomethingElse'"),
    (lambda info: info.pop("official_class"), "names no official_class"),
    (lambda info: info.pop("seed"), "has no field 'seed'"),
    (lambda info: info["config"]["fcblock"].update(out_channels=[96, 2, 1]), "4 tokens in and 2 out"),
    (lambda info: info["config"]["fcblock"].pop("channels"), "lacks the entry 'channels'"),
    (lambda info: info.update(config=7), "cannot be run"),
])  # fmt: skip
def test_fixtures_that_cannot_be_run(change: Any, words: str, tmp_path: Path) -> None:
    report = changed(tmp_path, "unet_blocks", info=change)
    assert words in report.rows[-1].why and report.rows[-1].status == SKIPPED
    assert not report.passed


@pytest.mark.parametrize(("damage", "words"), [
    (lambda folder: (folder / "unet_blocks.safetensors").write_bytes((PARITY / "unet_blocks.safetensors").read_bytes()[:5000]), "whole"),
    (lambda folder: (folder / "unet_blocks.safetensors").unlink(), "unet_blocks.safetensors is missing"),
    (lambda folder: (folder / "unet_blocks.json").unlink(), "no unet_blocks.json beside it"),
    (lambda folder: (folder / "unet_blocks.json").write_text('{"official_class": '), "not whole JSON"),
    (lambda folder: (folder / "unet_blocks.json").write_text("[1]"), "a list instead of an object"),
])  # fmt: skip
def test_damaged_files_are_told_and_do_not_hide_the_others(damage: Any, words: str, tmp_path: Path) -> None:
    copied(tmp_path, "ddim_schedules", "unet_blocks")
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    damage(tmp_path)
    report = run_folder(tmp_path)
    wrong = [row for row in report.rows if row.status != OK]
    assert [(row.fixture, row.status) for row in wrong] == [("unet_blocks", SKIPPED)] and words in wrong[0].why
    assert any(row.fixture == "ddim_schedules" and row.status == OK for row in report.rows)

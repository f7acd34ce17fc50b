"""A manifest: every item once, whatever the order, the batches, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from codi.codi_models import media
from codi.codi_models.__main__ import main
from codi.codi_models.batch import store as stores
from codi.codi_models.batch.manifest import read_manifest
from codi.codi_models.batch.run import plan
from codi.codi_models.pipeline import CoDiPipeline
from host.setting import PACK
from host.tiny import create_tiny
from small import small_config

STEPS = {"steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("batch") / "tiny"
    create_tiny(folder)
    return folder


@pytest.fixture
def batch(model, tmp_path):
    """Writes entries (or raw lines) as a manifest and runs the command."""

    def run(entries: list, *options: str, out: str = "out") -> int:
        lines = [entry if isinstance(entry, bytes) else json.dumps(entry).encode() for entry in entries]
        (tmp_path / "manifest.jsonl").write_bytes(b"\n".join(lines))
        command = ["batch", str(tmp_path / "manifest.jsonl"), "--model", str(model), "--device", "cpu", "--out", str(tmp_path / out)]
        return main([*command, *options])

    run.out = tmp_path / "out"
    return run


def failures(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "failures.jsonl").read_text(encoding="utf-8").splitlines()]


def items(folder: Path) -> dict[str, dict[str, bytes]]:
    return {item.name: {file.name: file.read_bytes() for file in item.iterdir()} for item in (folder / "items").iterdir()}


def entry(name: str, **more) -> dict:
    return {"id": name, "prompts": ["a red circle"], "outputs": ["image"], "settings": STEPS, **more}


def test_an_item_is_what_generate_makes(batch, model, tmp_path):
    media.write_png(tmp_path / "p.png", torch.rand(3, 64, 64))
    prompts = [{"kind": "text", "value": "a blue star"}, {"kind": "image", "path": "p.png", "weight": -0.25}]
    assert batch([entry("one", prompts=prompts, outputs="image,video,audio,text", seed=5)], "--raw") == 0
    made = items(batch.out)["one"]
    assert set(made) == {f"one_{name}" for name in ("image.png", "video.mp4", "audio.wav", "text.txt", "raw.npz")} | {"item.json"}
    told = json.loads(made["item.json"])
    assert told["request"]["seed"] == 5 and told["request"]["prompts"][1]["weight"] == -0.25 and told["request"]["steps"] == 2
    options = ["--text", "a blue star", "--image", str(tmp_path / "p.png"), "--weights", "1,-0.25", "--outputs", "image,video,audio,text"]
    command = ["generate", "--model", str(model), "--device", "cpu", "--steps", "2", "--seed", "5", "--raw", "--out", str(tmp_path / "g")]
    assert main([*command, *options]) == 0
    ours, theirs = np.load(batch.out / "items" / "one" / "one_raw.npz"), np.load(tmp_path / "g" / "000_raw.npz")
    assert set(ours) == set(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    report = json.loads((batch.out / "batch.json").read_text())
    assert report["complete"] and (report["items"], report["made"], report["failed"]) == (1, 1, 0) and failures(batch.out) == []


def test_order_and_batch_size_do_not_matter(batch):
    entries = [entry(f"i{i}", prompts=[("a red circle", "a blue star", "")[i % 3]], seed=i) for i in range(6)]
    entries += [entry(f"u{i}", prompts=[], seed=i) for i in range(2)] + [entry("s", outputs="text,image", settings={"steps": 1, "cfg": 1})]
    assert batch(entries, "--raw", "--batch-size", "1", out="a") == 0
    random.Random(0).shuffle(entries)
    assert batch(entries, "--raw", "--batch-size", "4", out="b") == 0
    a, b = (items(batch.out.parent / name) for name in "ab")
    assert set(a) == set(b) == {e["id"] for e in entries}
    for name in a:
        assert a[name]["item.json"] == b[name]["item.json"] and set(a[name]) == set(b[name])
        raws = [np.load(batch.out.parent / side / "items" / name / f"{name}_raw.npz") for side in "ab"]
        assert np.abs(raws[0]["image"] - raws[1]["image"]).max() < 2e-3


def test_only_what_is_missing_is_made_again(batch, monkeypatch):
    entries = [entry(f"i{i}", seed=i) for i in range(4)]
    assert batch(entries) == 0
    before = items(batch.out)
    shutil.rmtree(batch.out / "items" / "i2")
    seeds, generate = [], CoDiPipeline.generate
    monkeypatch.setattr(CoDiPipeline, "generate", lambda self, *a, **k: seeds.extend(a[3]) or generate(self, *a, **k))
    assert batch(entries) == 0
    assert seeds == [2] and items(batch.out).keys() == before.keys()
    assert batch(entries) == 0 and seeds == [2]
    report = json.loads((batch.out / "batch.json").read_text())
    assert (report["made"], report["there_already"]) == (0, 4)


def test_lines_that_cannot_be_used_are_listed_and_the_rest_is_made(batch, tmp_path):
    (tmp_path / "cut.wav").write_bytes(b"RIFF1234WAVE")
    bad = [
        (b'{"id": "x"', "no JSON"), (b"\xff\xfe{}", "no JSON"), (b"[" * 100_000, "no JSON"), (b"3", "not an object"),
        (entry("good"), "already"), (entry("GOOD"), "already"), (entry("../up"), "cannot name a folder"), (entry(".."), "cannot name"),
        (entry("a/b"), "cannot name"), (entry("n" * 300), "cannot name"), (entry(""), "cannot name"),
        ({"outputs": ["image"]}, "cannot name"),
        (entry("m1", prompts=[{"kind": "image", "path": "nowhere.png"}]), "no file at"),
        (entry("m2", prompts=[{"kind": "audio", "path": "cut.wav"}]), "cannot be read as audio"),
        (entry("p1", prompts=[{"kind": "smell", "path": "x"}]), "text, video, image, audio"),
        (entry("p2", prompts=[{"kind": "text", "path": "x"}]), "needs the text as value"), (entry("p3", prompts="x"), "must be a list"),
        (entry("p4", prompts=[7]), "object with kind"), (entry("p5", prompts=[{"kind": "text", "value": "x", "wieght": 1}]), "wieght"),
        (entry("w1", prompts=[{"kind": "text", "value": "x", "weight": 0}]), "sum to 0"),
        (entry("w2", prompts=[{"kind": "text", "value": "x", "weight": float("nan")}]), "finite"),
        (entry("w3", prompts=[{"kind": "text", "value": "x", "weight": "1"}]), "weight must be a number"),
        (entry("o1", outputs=["smell"]), "unknown output"), (entry("o2", outputs=[]), "no output"),
        (entry("o3", outputs=None), "outputs must"),
        (entry("s1", seed=-1), "seed -1"), (entry("s2", seed=1.5), "whole number"), (entry("s3", settings={"step": 2}), "'step'"),
        (entry("s4", settings={"steps": "2"}), "whole number"), (entry("s5", settings={"size": 50}), "multiple of 16"),
        (entry("s6", settings={"cfg": True}), "must be a number"), (entry("s7", settings={"count": 3}), "'count'"),
        (entry("u", x=1), "'x'"),
        (entry("s8", settings={"sampler": "magic"}), "unknown sampler"), (entry("s9", settings=[]), "settings must be an object"),
    ]  # fmt: skip
    lines = [entry("good"), b"", *(line for line, _ in bad), b"\xef\xbb\xbf" + json.dumps(entry("last")).encode(), entry(7)]
    assert batch(lines) == 0
    assert set(items(batch.out)) == {"good", "last", "7"}
    told = {failure["line"]: failure["error"] for failure in failures(batch.out)}
    assert len(told) == len(bad)
    for number, (line, words) in enumerate(bad, start=3):
        assert words in told[number], (line[:80] if isinstance(line, bytes) else line, told[number])
    assert batch(lines, "--strict") == 1


@pytest.mark.parametrize("options, words", [
    (["--model", "codi-gigantic"], "codi-gigantic"), (["--device", "toaster"], "unknown device"), (["--out", ""], "empty name"),
    (["--out", "MANIFEST"], "is a file"), (["--out", "/proc/nowhere"], "cannot write"),
])  # fmt: skip
def test_what_concerns_all_items_stops_the_command(batch, tmp_path, capsys, options, words):
    options = [str(tmp_path / "manifest.jsonl") if option == "MANIFEST" else option for option in options]
    assert batch([entry("a")], *options) == 2
    assert words in capsys.readouterr().err
    assert not (batch.out / "items" / "a").exists()


def test_a_manifest_of_version_0_3_is_made_and_its_requests_stay_the_same(batch):
    old = {"order": "in turn", "denoise": 0.5, "alignment_pairs": "image<text=0.5", "composition": "facets", "sampler": "ddim_trailing"}
    new = {
        "schedule": "sequential",
        "strength": 0.5,
        "alignment_directions": "image<text=0.5",
        "sampler": "ddim",
        "scheduler": "sgm_uniform",
    }
    kept = {"outputs": "image,audio", "keep": {"text": "a star"}, "seed": 4}
    assert batch([entry("old", settings={**STEPS, **old}, **kept), entry("new", settings={**STEPS, **new}, **kept)], "--raw") == 0
    assert failures(batch.out) == []
    made = items(batch.out)
    requests = [json.loads(made[name]["item.json"])["request"] for name in ("old", "new")]
    assert {**requests[0], "id": "new"} == requests[1] and requests[1]["scheduler"] == "sgm_uniform"
    raws = [np.load(batch.out / "items" / name / f"{name}_raw.npz") for name in ("old", "new")]
    assert all(np.abs(raws[0][name] - raws[1][name]).max() < 2e-3 for name in ("image", "audio"))  # rows of a batch are rounded apart


def test_a_missing_or_empty_manifest(batch, tmp_path, capsys):
    assert batch([b"", b"  "]) == 2 and "is empty" in capsys.readouterr().err
    assert main(["batch", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "o")]) == 2 and "no.jsonl" in capsys.readouterr().err


def test_another_request_under_a_used_id_and_another_model_in_a_used_folder(batch, capsys):
    assert batch([entry("a")]) == 0
    before = items(batch.out)
    assert batch([entry("a", prompts=["a blue star"]), entry("b")]) == 0
    assert "another request" in failures(batch.out)[0]["error"] and items(batch.out)["a"] == before["a"]
    assert batch([entry("c")], "--raw") == 2
    assert "raw False, not True" in capsys.readouterr().err


def test_a_device_out_of_memory_halves_the_batch_and_says_so(batch, monkeypatch, capsys):
    generate, sizes = CoDiPipeline.generate, []

    def limited(self, cond, uncond, settings, seeds, **more):
        sizes.append(len(seeds))
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if 9 in seeds and len(seeds) == 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return generate(self, cond, uncond, settings, seeds, **more)

    monkeypatch.setattr(CoDiPipeline, "generate", limited)
    assert batch([entry(f"i{i}", seed=i) for i in range(9)], "--batch-size", "5") == 0
    assert sizes == [5, 2, 2, 1, 2, 2] and set(items(batch.out)) == {f"i{i}" for i in range(9)}
    assert "out of memory with 5 items at once: going on with 2" in capsys.readouterr().err
    assert batch([entry("big", seed=9)]) == 0
    assert "out of memory with this item alone" in failures(batch.out)[0]["error"]


def test_one_bad_item_does_not_take_its_batch_with_it(batch, monkeypatch):
    generate = CoDiPipeline.generate

    def sometimes(self, cond, uncond, settings, seeds, **more):
        if 3 in seeds:
            raise KeyError("something nobody thought of")
        return generate(self, cond, uncond, settings, seeds, **more)

    monkeypatch.setattr(CoDiPipeline, "generate", sometimes)
    assert batch([entry(f"i{i}", seed=i) for i in range(6)], "--batch-size", "6") == 0
    assert set(items(batch.out)) == {f"i{i}" for i in range(6)} - {"i3"}
    assert [(f["id"], f["error"]) for f in failures(batch.out)] == [("i3", "KeyError: 'something nobody thought of'")]


def test_a_full_disk_stops_the_run_and_the_next_goes_on(batch, monkeypatch, capsys):
    entries, rename = [entry(f"i{i}", seed=i) for i in range(4)], os.rename

    def full(source, target):
        if Path(target).name == "i2":
            raise OSError(28, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(stores.os, "rename", full)
        assert batch(entries, "--batch-size", "1") == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(p.name for p in (batch.out / "items").iterdir()) == ["i0", "i1"]
    assert batch(entries) == 0 and set(items(batch.out)) == {f"i{i}" for i in range(4)}


def test_the_manifest_in_the_documentation_is_one(tmp_path):
    page = (PACK / "docs" / "scaling.md").read_text(encoding="utf-8")
    (tmp_path / "m.jsonl").write_text(page.split("```json\n")[1].split("```")[0])
    found, broken = read_manifest(tmp_path / "m.jsonl", small_config())
    assert not broken and [(len(item.prompts), len(item.settings.outputs)) for item in found] == [(2, 2), (1, 4)]


def test_groups_are_batched_and_spread_over_workers(tmp_path):
    lines = [json.dumps(entry(f"i{i}", seed=i, settings={"steps": 2 + i % 2})) for i in range(10)]
    lines += [json.dumps(entry(f"u{i}", prompts=[])) for i in range(3)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    found, broken = read_manifest(tmp_path / "m.jsonl", small_config())
    assert not broken and found[10].settings.seed != found[11].settings.seed  # without a seed, the id makes one
    for workers, sizes in ((1, [5, 5, 3]), (2, [3, 2, 3, 2, 2, 1]), (100, [1] * 13)):
        batches = plan(found, batch_size=8, workers=workers)
        assert sorted(map(len, batches)) == sorted(sizes)
        assert all(len({item.group for item in one}) == 1 for one in batches)
        assert sorted(item.id for one in batches for item in one) == sorted(item.id for item in found)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_stopped_run_goes_on(model, tmp_path, kind):
    entries = [entry(f"i{i:03d}", seed=i, outputs=["image", "audio"]) for i in range(24)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, entries)))
    command = [
        sys.executable,
        "-m",
        "codi_models",
        "batch",
        str(tmp_path / "m.jsonl"),
        "--model",
        str(model),
        "--out",
        str(tmp_path / "out"),
    ]
    options = {
        "cwd": PACK,
        "stderr": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
    }
    process = subprocess.Popen([*command, "--batch-size", "2"], **options)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "items" / "i003").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(kind)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if kind == signal.SIGINT else -signal.SIGKILL) and "Traceback" not in error
    for item in (tmp_path / "out" / "items").glob("[!.]*"):
        assert {file.name for file in item.iterdir()} == {"item.json", f"{item.name}_image.png", f"{item.name}_audio.wav"}
        assert media.read_image(item / f"{item.name}_image.png").shape == (3, 64, 64)
    done = subprocess.run(command, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out" / "items").iterdir()) == [e["id"] for e in entries]

"""Values that are none: told with what they belong to, at the place where they first can be seen."""

from __future__ import annotations

import json

import pytest
import torch
from codi.codi_models import memory
from codi.codi_models.__main__ import main
from codi.codi_models.batch.manifest import read_manifest
from codi.codi_models.batch.worker import Worker
from codi.codi_models.config import CoDiConfig
from codi.codi_models.errors import CoDiError, TooLarge, out_of_memory
from codi.codi_models.files import plain_name, read_json
from codi.codi_models.media import read_image
from codi.codi_models.modalities import MODALITIES
from codi.codi_models.pipeline import CoDiPipeline
from codi.codi_models.settings import Settings, latent_shapes
from codi.codi_models.training.loop import step_generator
from codi.codi_models.training.recipe import Recipe, Run
from codi.codi_models.training.records import find_records
from host.tiny import create_tiny
from PIL import Image
from small import small_config

LARGEST = 2**64 - 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    create_tiny(folder)
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("output", MODALITIES)
def test_what_is_not_finite_after_decoding_is_told_with_its_output(tiny, output, value):
    """Latents are finite, a decoder's weights make others of them; clamping would make white, full scale or the first word of infinity."""
    pipe = CoDiPipeline.from_pretrained(tiny, device="cpu")
    network = pipe.model.component(MODALITIES[output].decoders[-1])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
    with pytest.raises(CoDiError, match=f"decoded {output} is NaN or infinite.*fp32"):
        pipe("a star", [output], steps=1)


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (6, (0, 1)), (8, (1, 0))])
def test_pictures_are_upright_and_on_white(tmp_path, orientation, corner):
    """The first pixel of the file is red, and lies where its orientation says; what is transparent is white."""
    image = Image.new("RGB", (16, 16), "blue")
    image.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    seen = read_image(tmp_path / "a.png")
    assert [(y, x) for y in (0, 1) for x in (0, 1) if seen[0, 15 * y, 15 * x] == 1] == [corner]
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert bool((read_image(tmp_path / "clear.png") == 1).all())


MARK = b"\xef\xbb\xbf"
"""What some editors put before UTF-8."""


def test_the_mark_of_editors_before_a_text_is_no_part_of_it(tiny, tmp_path):
    config = CoDiConfig.load(tiny / "config.json")
    (tmp_path / "config.json").write_bytes(MARK + (tiny / "config.json").read_bytes())
    assert CoDiConfig.load(tmp_path / "config.json") == config
    (tmp_path / "items.jsonl").write_bytes(MARK + json.dumps({"id": "a", "outputs": ["text"], "prompts": ["a"]}).encode())
    items, failures = read_manifest(tmp_path / "items.jsonl", config)
    assert [item.id for item in items] == ["a"] and not failures
    (tmp_path / "recipe.json").write_bytes(MARK + json.dumps({"networks": read_json(tiny / "config.json"), "runs": []}).encode())
    assert Recipe.load(tmp_path / "recipe.json").networks == config
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "a.txt").write_bytes(MARK + b"a star")
    Image.new("RGB", (8, 8)).save(pairs / "a.png")
    assert find_records(pairs)[0].read("text").value == "a star"
    (pairs / "manifest.jsonl").write_bytes(MARK + json.dumps({"image": "a.png", "text": "a.txt"}).encode())
    assert find_records(pairs)[0].read("text").value == "a star"


NAMES = {
    True: ["a", "7", "_x", "a-b.c+d", "console", "com", "com10", "é", "x" * 150, "nul1"],
    False: ["", ".", "..", "a.", "a..", "-a", ".a", "a b", "a/b", "a\\b", "a:b", "x" * 151, "é" * 76, "con", "CON", "Con.txt", "nul.a.b",
            "AUX", "prn", "com1", "COM9.png", "lpt0", "com\u00b9", "conin$", "a\n", "a\0"],
}  # fmt: skip


def test_names_of_items_and_runs_can_be_folders_everywhere(tiny, tmp_path):
    config = CoDiConfig.load(tiny / "config.json")
    for good, names in NAMES.items():
        assert [name for name in names if plain_name(name) != good] == []
        for name in names:
            (tmp_path / "m.jsonl").write_text(json.dumps({"id": name, "outputs": ["text"]}))
            items, failures = read_manifest(tmp_path / "m.jsonl", config)
            assert (len(items), len(failures)) == (good, not good), name
            run = Run(name=name, kind="denoiser", steps=1)
            if good:
                run.check()
            else:
                with pytest.raises(CoDiError, match="its name becomes a folder's"):
                    run.check()


@pytest.mark.parametrize("seed", [0, 2**31, 2**32, 2**63, LARGEST])
def test_every_seed_is_taken_wherever_one_is_typed(tiny, tmp_path, seed):
    config = CoDiConfig.load(tiny / "config.json")
    assert (
        main(["generate", "--model", str(tiny), "--outputs", "text", "--steps", "1", "--seed", str(seed), "--out", str(tmp_path / "g")])
        == 0
    )
    assert main(["world", "--count", "1", "--seed", str(seed), "--out", str(tmp_path / "w")]) == 0
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "outputs": ["text"], "seed": seed}))
    assert [item.settings.seed for item in read_manifest(tmp_path / "m.jsonl", config)[0]] == [seed]
    Run(name="a", kind="denoiser", steps=1, seed=seed).check()
    first, second = (torch.randn(4, generator=step_generator(torch.device("cpu"), seed, 7, shard)) for shard in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("seed", [-1, LARGEST + 1])
def test_other_seeds_are_refused(tiny, tmp_path, seed):
    config = CoDiConfig.load(tiny / "config.json")
    with pytest.raises(CoDiError, match=r"below 2\*\*64"):
        Settings.resolve(config, ["text"], seed=seed)
    with pytest.raises(CoDiError, match=r"below 2\*\*64"):
        Run(name="a", kind="denoiser", steps=1, seed=seed).check()
    with pytest.raises(SystemExit):
        main(["world", "--count", "1", "--seed", str(seed), "--out", str(tmp_path / "w")])


def test_more_than_the_machine_holds_is_refused_before_anything_is_made(tiny, tmp_path, monkeypatch, capsys):
    """4096 x 4096 pixels, 64 at once: named with its bytes and what to lower, before a network is loaded or a number drawn."""
    monkeypatch.setattr(CoDiPipeline, "load", None)
    monkeypatch.setattr(memory, "machine", lambda: 64 << 30)
    size = ["--size", "4096", "--count", "64", "--batch-size", "64", "--device", "cpu", "--text", "a", "--out", str(tmp_path / "o")]
    assert main(["generate", "--model", str(tiny), "--outputs", "image,video", *size]) == 2
    error = capsys.readouterr().err
    assert "making 64 samples of this size at once takes about" in error and "this machine has 69: lower the size, the frames" in error
    assert not (tmp_path / "o").exists() and out_of_memory(TooLarge("x"))


def test_a_batch_that_is_too_large_is_made_in_halves(tiny, tmp_path, monkeypatch):
    lines = [json.dumps({"id": f"i{n}", "outputs": ["text"], "settings": {"steps": 1}}) for n in range(4)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    worker = Worker(tiny, device="cpu")
    items, _ = read_manifest(tmp_path / "m.jsonl", worker.pipe.model.config)
    room = memory.making(worker.pipe.model.config, latent_shapes(worker.pipe.model.config, items[0].settings), 2, 4)
    monkeypatch.setattr(memory, "machine", lambda: room)
    report = worker.make(items)
    assert len(report.made) == 4 and report.notes == ["out of memory with 4 items at once: going on with 2"]
    monkeypatch.setattr(memory, "machine", lambda: 1)
    assert [failure.error for failure in worker.make(items[:1]).failures] == [
        "out of memory with this item alone: lower its size or frames, or use a device with more memory"
    ]


def test_the_estimate_grows_with_what_is_asked_for_and_lets_the_usual_pass(tiny):
    for config in (CoDiConfig.official(), small_config()):
        usual = Settings.resolve(config, list(MODALITIES))
        one = memory.making(config, latent_shapes(config, usual), 1, 4)
        assert 1e8 < one < 16e9 if config.name == "codi" else one < 2e9
        large = Settings.resolve(config, list(MODALITIES), size=4 * usual.image_size)
        assert memory.making(config, latent_shapes(config, large), 1, 4) > 4 * one
        assert memory.making(config, latent_shapes(config, usual), 64, 4) > 16 * one


def test_a_container_has_the_memory_that_it_is_allowed(tmp_path, monkeypatch):
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr(memory, "_CONTAINER", (str(tmp_path / "none"), str(tmp_path / "limit")))
    assert memory.machine() == 1_000_000
    (tmp_path / "limit").write_text("max\n")
    assert memory.machine() > 1 << 28

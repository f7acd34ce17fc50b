"""Outputs that are given, settings by output, and directions of alignment: headless what the graph can."""

import json

import numpy as np
import pytest
import torch
from codi.codi_models import media
from codi.codi_models.__main__ import main
from codi.codi_models.conditioning import Prompt
from codi.codi_models.config import DiffusionConfig
from codi.codi_models.diffusion import SAMPLERS, NoiseSchedule, run_sigmas, sample
from codi.codi_models.errors import CoDiError
from codi.codi_models.joint import JointDenoiser
from codi.codi_models.latents import encode_media, fitted
from codi.codi_models.pipeline import _partly_given
from codi.codi_models.settings import Settings, parse_each
from PIL import Image
from small import small_config


def drawn(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each kind, at the model's sizes."""
    folder = tmp_path_factory.mktemp("media")
    media.write_png(folder / "p.png", drawn(3, 64, 64))
    media.write_wav(folder / "s.wav", drawn(20480) * 2 - 1, 16000)
    media.write_mp4(folder / "c.mp4", drawn(8, 3, 64, 64), 6.25)
    return {"image": str(folder / "p.png"), "audio": str(folder / "s.wav"), "video": str(folder / "c.mp4"), "text": "a red star"}


@pytest.fixture
def generate(folder, tmp_path):
    def run(*options):
        return main(["generate", "--model", str(folder), "--device", "cpu", "--steps", "2", "--out", str(tmp_path / "out"), *options])

    run.out = tmp_path / "out"
    return run


@pytest.mark.parametrize("kept", ["image", "audio", "video", "text"])
def test_what_is_kept_is_written_as_it_was_given(generate, files, kept):
    others = [o for o in ("image", "audio", "text") if o != kept][:2]
    assert generate(f"--keep-{kept}", files[kept], "--outputs", ",".join(others), "--raw") == 0
    raw, run = np.load(generate.out / "000_raw.npz"), json.loads((generate.out / "run.json").read_text())
    assert run["keep"] == {kept: files[kept]} and set(run["outputs"]) == {kept, *others}
    if kept == "text":
        assert (generate.out / "000_text.txt").read_text() == "a red star\n"
    elif kept == "image":
        written = [np.asarray(Image.open(path).convert("RGB")) for path in (generate.out / "000_image.png", files["image"])]
        assert np.array_equal(*written)
    elif kept == "audio":
        assert (generate.out / "000_audio.wav").read_bytes() == open(files["audio"], "rb").read()
    else:
        given = media.read_video(files["video"], 8).frames
        assert np.array_equal((raw["video"] * 255).round(), (given.permute(0, 2, 3, 1).numpy() * 255).round())
    assert all(np.isfinite(raw[o]).all() and raw[o].std() > 0 for o in set(others) - {"text"})


def test_the_others_fit_what_is_kept_and_nothing_else_changes_it(pipe):
    sounds = [(drawn(20480) - 0.5, 16000), (torch.zeros(20480), 16000)]
    settings = {"steps": 3, "seed": 4, "cfg": 2.0, "alignment_guidance": 20}
    one, two = (pipe("a red circle", ["image"], given={"audio": sound}, **settings)[0] for sound in sounds)
    assert torch.equal(one.audio, sounds[0][0]) and torch.equal(two.audio, sounds[1][0])
    assert (one.image - two.image).abs().max() > 1e-4
    off = [pipe("a red circle", ["image"], given={"audio": sound}, wiring="off", **settings)[0] for sound in sounds]
    alone = pipe("a red circle", ["image"], **settings)[0]
    assert all(torch.equal(one.image, alone.image) for one in off)
    again = pipe("a red circle", ["image"], given={"audio": sounds[0]}, **settings, count=2, batch_size=1)
    assert torch.equal(again[0].image, one.image) and not torch.equal(again[1].image, one.image)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_given_output_is_kept_the_more_the_less_of_it_is_generated(sampler, scale):
    """Of data that are standard Gaussian, what is generated loses the mean of what was given."""
    schedule, scales = NoiseSchedule(DiffusionConfig()), {"image": scale, "audio": 1.0}
    given = {"image": torch.full((1, 4, 8, 8), 2.0)}
    noise = {m: torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i, m in enumerate(scales)}
    calls = []

    def denoise(x, sigma, targets):
        calls.append((sigma, tuple(targets)))
        return {m: scales[m] ** 2 / (scales[m] ** 2 + sigma**2) * x[m] for m in targets}

    left, sigmas = {}, run_sigmas(schedule, "sgm_uniform", 10)
    for share in (0.0, 0.3, 0.6, 0.9):
        calls.clear()
        partly = _partly_given(denoise, schedule, given, scales, {"image": share})
        made = sample(partly, noise, sigmas, sampler=sampler, scales=scales, clean=given, seeds=[0])
        left[share] = float(made["image"].mean())
        assert len([sigma for sigma, targets in calls if "image" in targets]) == round(10 * share)
        assert len(calls) == 10 and all("audio" in targets for _, targets in calls)
    assert abs(left[0.0] - 2) < 1e-4 and left[0.0] > left[0.3] + 0.1 and left[0.3] > left[0.6] + 0.1 and left[0.6] > abs(left[0.9])


def test_a_given_output_is_not_denoised_until_its_part_of_the_run(pipe, monkeypatch):
    ran, forward = [], JointDenoiser.forward
    monkeypatch.setattr(JointDenoiser, "forward", lambda self, *a, **k: ran.append(sorted(k["targets"])) or forward(self, *a, **k))
    settings = {"steps": 10, "sampler": "ddim", "cfg": 1.0, "alignment_guidance": 1.0, "schedule": "together"}
    image = drawn(3, 64, 64)
    (made,) = pipe("a red circle", ["image", "text"], given={"image": image}, strength="image=0.4", **settings)
    assert ran == [["text"]] * 6 + [["image", "text"]] * 4
    assert not torch.equal(made.image, image)
    ran.clear()
    pipe("a red circle", ["image"], given={"image": image}, strength=0.4, **settings)
    assert ran == [["image"]] * 4
    whole = pipe("a red circle", ["image", "text"], given={"image": image}, strength=1, **settings)[0]
    free = pipe("a red circle", ["image", "text"], **settings)[0]
    assert torch.equal(whole.image, free.image) and whole.text == free.text


def test_media_of_other_sizes_are_fitted(pipe):
    settings = Settings.resolve(pipe.model.config, ["text"], given=["image", "video", "audio"], size=32, frames=5)
    prompts = [Prompt("image", drawn(3, 50, 90)), Prompt("video", drawn(3, 3, 40, 40)), Prompt("audio", (drawn(9000) - 0.5, 44100))]
    latents, shown = pipe.encode_given(prompts, settings)
    assert {o: tuple(z.shape) for o, z in latents.items()} == {
        "image": (1, 4, 4, 4), "video": (1, 4, 5, 4, 4), "audio": (1, 8, 16, 8),
    }  # fmt: skip
    assert shown["image"].shape == (3, 32, 32) and shown["video"].shape == (5, 3, 32, 32) and shown["audio"].shape == (20480,)
    assert torch.equal(shown["video"][2], shown["video"][4]) and not shown["audio"][4000:].any()
    assert torch.equal(latents["image"][0], encode_media(pipe.model, Prompt("image", shown["image"]), size=32))
    assert torch.equal(fitted(pipe.model.config, Prompt("image", shown["image"]), size=32), shown["image"])


def test_a_span_in_memory_is_taken_by_time(pipe):
    config, lines = pipe.model.config, []
    frames = torch.linspace(0, 1, 20)[:, None, None, None].expand(20, 3, 8, 8)
    taken = fitted(config, Prompt("video", frames, start=0.8, length=0.64), size=8, frames=8, note=lines.append)
    assert torch.allclose(taken[:5, 0, 0, 0], torch.tensor([5.0, 6, 7, 8, 8]) / 19, atol=1 / 255) and not lines
    faster = media.Video(frames, torch.arange(20, dtype=torch.float64) / 12.5, 1.6)
    taken = fitted(config, Prompt("video", faster), size=8, frames=8, note=lines.append)
    assert torch.allclose(taken[:, 0, 0, 0], torch.arange(1, 17, 2) / 19, atol=1 / 255)
    assert lines == ["video: 0.00 to 1.28 s of 1.60 s are taken; set start to take another part"]
    wave = torch.arange(48000) / 48000
    taken = fitted(config, Prompt("audio", (wave, 16000), start=1.0, length=0.5), note=lines.append)
    assert torch.equal(taken[:8000], wave[16000:24000]) and not taken[8000:].any() and len(lines) == 1
    fitted(config, Prompt("audio", (wave, 16000), start=1.0), note=lines.append)
    assert lines[1].startswith("audio: 1.00 to 2.28 s of 3.00 s")
    for bad in ({"start": -1.0}, {"start": float("nan")}, {"length": 0.0}, {"length": float("inf")}):
        with pytest.raises(CoDiError, match=next(iter(bad))):
            Prompt("audio", (wave, 16000), **bad)
    for kind, value in (("audio", (wave, 16000)), ("video", frames)):
        with pytest.raises(CoDiError, match="start 9 s lies behind the end"):
            fitted(config, Prompt(kind, value, start=9.0))


def test_guidance_by_output(pipe):
    settings = {"steps": 2, "seed": 3, "wiring": "off"}
    both = pipe("a red circle", ["image", "audio"], cfg="image=4, audio=1", **settings)[0]
    image, audio = (pipe("a red circle", [o], cfg=cfg, **settings)[0] for o, cfg in (("image", 4), ("audio", 1)))
    torch.testing.assert_close(both.image, image.image, rtol=0, atol=2e-3)
    torch.testing.assert_close(both.audio, audio.audio, rtol=0, atol=2e-3)
    assert (image.image - pipe("a red circle", ["image"], cfg=1, **settings)[0].image).abs().max() > 1e-2
    other = pipe("a red circle", ["image", "audio"], cfg={"image": 4.0, "audio": 1.0}, **settings)[0]
    assert torch.equal(other.image, both.image)


def test_rescaling(pipe):
    settings = {"steps": 2, "seed": 3, "cfg": 12.0}
    loose, tight = (pipe("a red circle", ["image"], cfg_rescale=share, **settings)[0].image for share in (0, 1))
    assert torch.equal(loose, pipe("a red circle", ["image"], **settings)[0].image)
    assert (tight - loose).abs().max() > 1e-2


def test_directions_and_range_of_the_alignment(pipe):
    settings = {"steps": 2, "seed": 3, "cfg": 1.0, "schedule": "together"}
    run = lambda **more: pipe("a red circle", ["image", "audio"], **settings, **more)[0]  # noqa: E731
    cross, off, one = run(), run(wiring="off"), run(alignment_directions="image<audio=0")
    torch.testing.assert_close(one.image, off.image, rtol=0, atol=1e-4)
    assert (one.audio - off.audio).abs().max() > 1e-4 and (cross.image - off.image).abs().max() > 1e-3
    never, late = run(alignment_end=0.0), run(alignment_start=0.4)
    torch.testing.assert_close(never.image, off.image, rtol=0, atol=1e-4)
    assert (late.image - off.image).abs().max() > 1e-4 and (late.image - cross.image).abs().max() > 1e-4
    assert torch.equal(run(alignment_directions={("image", "audio"): 0.0}).image, one.image)


def test_numbers_by_output():
    assert parse_each("cfg", None) == (None, {}) and parse_each("cfg", 3) == (3.0, {}) and parse_each("cfg", "3") == (3.0, {})
    assert parse_each("cfg", "image=5, text=2") == (None, {"image": 5.0, "text": 2.0})
    assert parse_each("cfg", "3,image = -1e1") == (3.0, {"image": -10.0}) and parse_each("cfg", {"audio": 2}) == (None, {"audio": 2.0})
    for text in ("", "one", "image=", "image=5=6", "smell=1", "1,2", "image=1,image=2", "image"):
        with pytest.raises(CoDiError, match="cfg"):
            parse_each("cfg", text)
    settings = Settings.resolve(small_config(), ["image", "text"], cfg="image=5")
    assert dict(settings.cfg) == {"image": 5.0, "text": 3.0} and settings.to_dict()["cfg"] == {"image": 5.0, "text": 3.0}


@pytest.mark.parametrize("options, message", [
    (["--keep-image", "nowhere.png"], "no file at nowhere.png"),
    (["--keep-audio", "IMAGE"], "p.png"),
    (["--keep-text", "a red star " * 40], "one latent holds 62 at most"),
    (["--outputs", "text", "--keep-text", "a star"], "are given: ask for another one"),
    (["--strength", "image=0.5"], "no image is given"),
    (["--keep-text", "a", "--strength", "audio=0.5"], "no audio is given"),
    (["--keep-text", "a", "--strength", "1.5"], "between 0"),
    (["--keep-text", "a", "--strength", "nan"], "between 0"),
    (["--keep-text", "a", "--strength", "some"], "no number"),
    (["--cfg", "audio=2"], "the outputs are image, text"),
    (["--cfg", "image=inf"], "cfg of image is inf: it must be a finite number"),
    (["--cfg", "smell=2"], "unknown output 'smell'"),
    (["--cfg-rescale", "2"], "between 0 and 1"),
    (["--alignment-directions", "image<image=1"], "cannot attend to"),
    (["--alignment-directions", "image>audio"], "no direction"),
    (["--alignment-directions", "image<audio=-1"], "0 or more"),
    (["--alignment-start", "0.8", "--alignment-end", "0.2"], "start comes before end"),
    (["--alignment-end", "7"], "parts of the run"),
])  # fmt: skip
def test_what_cannot_be_kept_or_set(generate, files, capsys, options, message):
    assert generate("--outputs", "image,text", *[{"IMAGE": files["image"]}.get(o, o) for o in options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1
    assert not generate.out.exists()


def test_one_output_is_kept_once(generate, files, capsys):
    with pytest.raises(SystemExit):
        generate("--outputs", "text", "--keep-image", files["image"], "--keep-image", files["image"])
    assert "given twice" in capsys.readouterr().err


def test_latents_that_are_not_of_this_run(pipe):
    settings = Settings.resolve(pipe.model.config, ["image", "text"], given=["text"])
    with pytest.raises(CoDiError, match="takes text as given, and got image"):
        pipe.encode_given([Prompt("image", drawn(3, 64, 64))], settings)
    with pytest.raises(CoDiError, match="NaN"):
        fitted(pipe.model.config, Prompt("audio", (torch.full((900,), torch.nan), 16000)))


def test_a_manifest_keeps_and_sets_what_the_command_does(generate, folder, files, tmp_path):
    settings = {"steps": 2, "cfg": {"image": 4, "text": 2}, "cfg_rescale": 0.5, "alignment_end": 0.9}
    settings["alignment_directions"] = "image<text=0.5"
    entry = {"id": "a", "outputs": "image,text", "prompts": ["a star"], "seed": 5, "keep": {"image": files["image"]}, "settings": settings}
    entries = [
        {**entry, "settings": {**settings, "strength": "image=0.6"}},
        {**entry, "id": "b", "keep": {"audio": "s.wav"}, "outputs": ["image", "text"]},
        {**entry, "id": "c", "keep": {"audio": "s.wav"}, "outputs": ["image", "text"], "seed": 6},
        {**entry, "id": "bad1", "keep": ["image"]}, {**entry, "id": "bad2", "keep": {"smell": "x"}},
        {**entry, "id": "bad3", "settings": {"cfg": {"image": "4"}}}, {**entry, "id": "bad4", "keep": {"image": "nowhere.png"}},
    ]  # fmt: skip
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, entries)))
    (tmp_path / "s.wav").write_bytes(open(files["audio"], "rb").read())
    command = ["batch", str(manifest), "--model", str(folder), "--device", "cpu", "--out", str(tmp_path / "b"), "--raw"]
    assert main(command) == 0
    failed = [json.loads(line)["id"] for line in (tmp_path / "b" / "failures.jsonl").read_text().splitlines()]
    assert failed == ["bad1", "bad2", "bad3", "bad4"]
    made = tmp_path / "b" / "items"
    assert (made / "b" / "b_audio.wav").read_bytes() == (made / "c" / "c_audio.wav").read_bytes() == (tmp_path / "s.wav").read_bytes()
    options = ["--text", "a star", "--outputs", "image,text", "--seed", "5", "--raw", "--cfg", "image=4,text=2", "--cfg-rescale", "0.5"]
    options += ["--alignment-directions", "image<text=0.5", "--alignment-end", "0.9"]
    assert generate(*options, "--keep-image", files["image"], "--strength", "image=0.6") == 0
    ours, theirs = np.load(made / "a" / "a_raw.npz")["image"], np.load(generate.out / "000_raw.npz")["image"]
    assert np.array_equal(ours, theirs)
    told = json.loads((made / "a" / "item.json").read_text())["request"]
    assert told["keep"] == {"image": files["image"]} and told["strength"] == {"image": 0.6}
    assert main(command) == 0 and json.loads((tmp_path / "b" / "batch.json").read_text())["there_already"] == 3

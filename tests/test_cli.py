"""The command line is a contract: names of options and files, what is in them, and exit status."""

import json
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from codi.codi_models import media
from codi.codi_models.__main__ import main
from codi.codi_models.files import sha256
from codi.codi_models.pipeline import CoDiPipeline
from PIL import Image

PACK = Path(__file__).resolve().parent.parent


@pytest.fixture
def generate(folder, tmp_path):
    def run(*options):
        return main(["generate", "--model", str(folder), "--device", "cpu", "--steps", "2", "--out", str(tmp_path / "out"), *options])

    run.out = tmp_path / "out"
    return run


def test_a_sentence_to_everything(generate, folder, capsys):
    assert generate("--text", "a red circle", "--outputs", "image,video,audio,text", "--seed", "4", "--count", "2", "--raw") == 0
    expected = {f"00{i}_{name}" for i in (0, 1) for name in ("image.png", "video.mp4", "audio.wav", "text.txt", "raw.npz")}
    assert {p.name for p in generate.out.iterdir()} == expected | {"run.json"}
    raw = np.load(generate.out / "001_raw.npz")
    assert {name: (raw[name].shape, raw[name].dtype) for name in ("image", "video", "audio")} == {
        "image": ((64, 64, 3), np.float32), "video": ((8, 64, 64, 3), np.float32), "audio": ((20480,), np.float32),
    }  # fmt: skip
    assert raw["sample_rate"] == 16000
    picture = np.asarray(Image.open(generate.out / "001_image.png"), dtype=np.float32) / 255
    assert np.abs(picture - raw["image"]).max() <= 0.5 / 255 + 1e-6
    with wave.open(str(generate.out / "001_audio.wav")) as file:
        assert (file.getsampwidth(), file.getframerate(), file.getnchannels(), file.getnframes()) == (2, 16000, 1, 20480)
    assert media.read_video(generate.out / "001_video.mp4", 30).frames.shape == (8, 3, 64, 64)
    assert media.read_audio(generate.out / "001_video.mp4")[1] == 16000  # the sound is in the clip
    run = json.loads((generate.out / "run.json").read_text())
    assert run["prompts"] == [{"kind": "text", "value": "a red circle", "weight": 1.0}]
    assert (run["seed"], run["count"], run["steps"], run["cfg"], run["wiring"], run["complete"]) == (4, 2, 2, 3.0, "cross", True)
    assert [(s["index"], s["seed"], len(s["files"])) for s in run["samples"]] == [(0, 4, 5), (1, 5, 5)]
    assert run["weights"]["clip.safetensors"] == sha256(folder / "clip.safetensors") and "clap.safetensors" not in run["weights"]
    assert run["versions"]["torch"] == torch.__version__.split("+")[0] or run["versions"]["torch"] == torch.__version__
    assert {"load", "encode", "denoise", "decode audio", "write", "total"} <= set(run["seconds"])
    assert "denoising" in capsys.readouterr().err


def test_prompts_keep_their_order_and_negative_weights_are_taken(generate, tmp_path):
    media.write_png(tmp_path / "p.png", torch.rand(3, 64, 64))
    media.write_wav(tmp_path / "s.wav", torch.rand(20480) - 0.5, 16000)
    media.write_mp4(tmp_path / "c.mp4", torch.rand(8, 3, 64, 64), 6.25)
    options = ["--text", "-a dash", "--image", str(tmp_path / "p.png"), "--text", "", "--audio", str(tmp_path / "s.wav")]
    assert generate(*options, "--video", str(tmp_path / "c.mp4"), "--weights", "-0.5,1,2,1e-1,1", "--outputs", "text", "--cfg", "-1") == 0
    run = json.loads((generate.out / "run.json").read_text())
    assert [(p["kind"], p["weight"]) for p in run["prompts"]] == [("text", -0.5), ("image", 1), ("text", 2), ("audio", 0.1), ("video", 1)]
    assert run["prompts"][0]["value"] == "-a dash" and run["cfg"] == -1 and run["outputs"] == ["text"]
    assert {p.name for p in generate.out.iterdir()} == {"000_text.txt", "run.json"}


def test_names_of_version_0_3_still_work(generate):
    wanted = ["--outputs", "image,text", "--keep-text", "a red star", "--text", "a", "--seed", "3", "--raw"]
    new = ["--schedule", "sequential", "--strength", "0.5", "--alignment-directions", "image<text=0.5", "--sampler", "dpmpp_2m"]
    old = ["--order", "in turn", "--denoise", "0.5", "--alignment-pairs", "image<text=0.5", "--sampler", "dpmpp_2m_karras"]
    assert generate(*wanted, *new, "--scheduler", "karras") == 0
    first, told = np.load(generate.out / "000_raw.npz")["image"], json.loads((generate.out / "run.json").read_text())
    assert generate(*wanted, *old, "--composition", "facets") == 0
    assert np.array_equal(first, np.load(generate.out / "000_raw.npz")["image"])
    again = json.loads((generate.out / "run.json").read_text())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in told.items() if k != "seconds"}
    assert (told["schedule"], told["scheduler"], told["strength"]) == ("sequential", "karras", {"text": 0.5})


def test_the_largest_seed(generate):
    assert generate("--outputs", "text", "--seed", str(2**64 - 1)) == 0
    assert json.loads((generate.out / "run.json").read_text())["samples"][0]["seed"] == 2**64 - 1


def test_run_json_repeats_the_run(generate, folder):
    """All that decides the result beside the model is in it, under the names that the pipeline takes."""
    options = ["--cfg", "image=4,text=2", "--cfg-rescale", "0.5", "--alignment-directions", "image<text=0.5", "--alignment-end", "0.9",
               "--alignment-combine", "sum"]  # fmt: skip
    assert generate("--text", "a red star", "--outputs", "image,text", "--seed", "5", "--raw", *options) == 0
    run, image = json.loads((generate.out / "run.json").read_text()), np.load(generate.out / "000_raw.npz")["image"]
    names = ("seed", "count", "mix", "frames", "batch_size", "steps", "sampler", "scheduler", "cfg", "cfg_rescale", "wiring", "alignment",
             "alignment_guidance", "alignment_directions", "alignment_end", "alignment_combine", "schedule")  # fmt: skip
    (sample,) = CoDiPipeline.from_pretrained(folder, device="cpu")("a red star", run["outputs"], **{n: run[n] for n in names if n in run})
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), image)


def test_no_prompt_is_unconditional(generate):
    assert generate("--outputs", "audio") == 0
    assert json.loads((generate.out / "run.json").read_text())["prompts"] == []


@pytest.mark.parametrize("options, message", [
    (["--image", "nowhere.png"], "no file at nowhere.png"),
    (["--audio", "TEXT"], "notes.txt cannot be read as audio"),
    (["--video", "TEXT"], "notes.txt cannot be read as video"),
    (["--text", "a", "--weights", "0"], "sum to 0"),
    (["--text", "a", "--weights", "nan"], "finite"),
    (["--text", "a", "--weights", "one"], "not numbers"),
    (["--text", "a", "--weights", "1,2"], "2 numbers for 1 prompts"),
    (["--weights", "1"], "1 numbers for 0 prompts"),
    (["--size", "50"], "multiple of 16"),
    (["--device", "toaster"], "unknown device"),
    (["--dtype", "int4"], "auto, fp32, fp16, bf16"),
    (["--sampler", "magic"], "magic"),
    (["--wiring", "none"], "cross, self, off"),
    (["--model", "codi-gigantic"], "codi-gigantic"),
    (["--outputs", "image,smell"], "smell"),
    (["--outputs", ","], "no output"),
    (["--out", "TEXT"], "is a file"),
    (["--out", ""], "empty name"),
    (["--out", "/proc/nowhere"], "cannot write"),
    (["--out", "n" * 300], "cannot write"),
    (["--model", "m" * 5000], "no CoDi model"),
    (["--image", "n" * 5000], "no readable file"),
    (["--image", "FOLDER"], "is a folder"),
    (["--device", "meta"], "cannot compute here"),
    (["--seed", str(2**64)], "below 2**64"),
    (["--text", "a", "--text", "b", "--weights", "1,-1"], "sum to 0"),
    (["--text", "a", "--weights", "1e400"], "finite"),
    (["--count", "0"], "count 0"),
    (["--scheduler", "ddim_uniform", "--steps", "501"], "1 to 500"),
    (["--scheduler", "magic"], "sgm_uniform"),
    (["--schedule", "image+smell"], "'smell'"),
    (["--cfg", "nan"], "cfg of image is nan"),
    (["--frames", "31"], "between 1 and 30"),
    (["--batch-size", "0"], "batch size 0"),
])  # fmt: skip
def test_bad_input_is_one_message_and_leaves_nothing(generate, tmp_path, capsys, options, message):
    (tmp_path / "notes.txt").write_text("no sound and no picture " * 20)
    options = [{"TEXT": str(tmp_path / "notes.txt"), "FOLDER": str(tmp_path)}.get(option, option) for option in options]
    assert generate("--outputs", "image", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1
    assert not generate.out.exists()


COMBINATIONS = [
    ("text", "image,video,audio,text"), ("text,audio", "image"), ("image,audio", "video"), ("video", "audio,text"), ("audio", "image,text"),
    ("image", "text"), ("text,image,audio,video", "image,audio"), ("video,video", "video"), ("image,image,text", "audio,video"),
    ("", "text,audio"),
]  # fmt: skip


@pytest.mark.parametrize("given, wanted", COMBINATIONS)
def test_ten_mixes_of_prompts_to_sets_of_outputs(generate, prompts, given, wanted):
    kinds, outputs = [kind for kind in given.split(",") if kind], wanted.split(",")
    options = [argument for kind in kinds for argument in (f"--{kind}", prompts[kind])]
    if kinds:
        options += ["--weights", ",".join(str(1 - 0.75 * (i == 1)) for i in range(len(kinds)))]
    assert generate(*options, "--outputs", wanted, "--raw", "--seed", "3") == 0
    suffix = {"image": "png", "video": "mp4", "audio": "wav", "text": "txt"}
    assert {p.name for p in generate.out.iterdir()} == {f"000_{o}.{suffix[o]}" for o in outputs} | {"000_raw.npz", "run.json"}
    run, raw = json.loads((generate.out / "run.json").read_text()), np.load(generate.out / "000_raw.npz")
    assert [(p["kind"], p["value"]) for p in run["prompts"]] == [(kind, prompts[kind]) for kind in kinds]
    assert set(run["outputs"]) == set(outputs) and set(raw) == {"sample_rate", *outputs} - {"text"}
    for name in set(outputs) - {"text"}:
        low = -1 if name == "audio" else 0
        assert np.isfinite(raw[name]).all() and raw[name].min() >= low and raw[name].max() <= 1 and raw[name].std() > 0
    encoders = {"clap.safetensors" if kind == "audio" else "clip.safetensors" for kind in kinds or ["text"]}
    assert {name for name in run["weights"] if name.startswith("cl")} == encoders
    if "video" in outputs:
        import av

        with av.open(str(generate.out / "000_video.mp4")) as file:
            assert len(file.streams.audio) == ("audio" in outputs)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A prompt of each kind, as the command line takes it."""
    folder = tmp_path_factory.mktemp("prompts")
    media.write_png(folder / "p.png", torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)))
    media.write_wav(folder / "s.wav", torch.rand(20480, generator=torch.Generator().manual_seed(2)) - 0.5, 16000)
    media.write_mp4(folder / "c.mp4", torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(3)), 6.25)
    return {"text": "a red circle", "image": str(folder / "p.png"), "audio": str(folder / "s.wav"), "video": str(folder / "c.mp4")}


TEXTS = {
    "empty": "", "10000 words": "word " * 10_000, "one long word": "x" * 50_000, "lines": "a\nred\ncircle",
    "unicode": "ein Kreis \u202e \U0001f534 \x00", "bytes": "no UTF-8 \udcff",
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_text_is_a_prompt(generate, text):
    assert generate("--text", text, "--outputs", "image", "--steps", "1") == 0
    assert json.loads((generate.out / "run.json").read_text(encoding="utf-8"))["prompts"][0]["value"] == text


def test_weights_matter_by_their_ratios_alone(generate):
    arrays = []
    for weights in ("1,2", "0.75e308,1.5e308", "-1e-300,-2e-300"):
        assert generate("--text", "a", "--text", "b", "--weights", weights, "--outputs", "image", "--raw") == 0
        arrays.append(np.load(generate.out / "000_raw.npz")["image"])
    assert all(np.allclose(arrays[0], other, atol=1e-4) for other in arrays[1:])


def test_out_of_memory_is_told_with_a_hint(generate, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("codi.codi_models.pipeline.CoDiPipeline.generate", full)
    assert generate("--outputs", "image", "--text", "a") == 2
    assert "error: out of memory" in (error := capsys.readouterr().err) and "--batch-size" in error
    assert not generate.out.exists()


@pytest.mark.parametrize("argv", [["generate"], ["generate", "--outputs", "image"], "generate --out x --outputs image --seed x".split()])
def test_mistyped_options_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


def test_unknown_commands_list_the_known_ones(capsys):
    assert main(["fly"]) == 2 and main([]) == 2
    error = capsys.readouterr().err
    assert "unknown command 'fly'" in error and all(name in error for name in ("generate", "train", "evaluate", "world"))
    assert main(["--help"]) == 0


def test_an_interrupted_write_is_not_told_as_written(generate, monkeypatch, capsys):
    write, calls = media.write_wav, []

    def interrupted(path, *rest):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(media, "write_wav", interrupted)
    assert generate("--outputs", "image,audio", "--count", "3") == 130
    assert "whole files in" in (error := capsys.readouterr().err) and "000_audio.wav, 001_image.png" in error
    assert {p.name for p in generate.out.iterdir()} == {"000_image.png", "000_audio.wav", "001_image.png", "run.json"}
    run = json.loads((generate.out / "run.json").read_text())
    assert not run["complete"] and run["samples"][1]["files"] == ["001_image.png"]


def test_ctrl_c_on_a_real_process(folder, tmp_path):
    command = [sys.executable, "-m", "codi_models", "generate", "--model", str(folder), "--text", "a star", "--outputs", "image,video",
               "--count", "500", "--batch-size", "1", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "out")]  # fmt: skip
    process = subprocess.Popen(command, cwd=PACK, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "002_video.mp4").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted; whole files in" in error and "Traceback" not in error
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert not [name for name in names if name.startswith(".")]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {file for sample in run["samples"] for file in sample["files"]} | {"run.json"} == names
    for name in names:
        if name.endswith(".mp4"):
            assert media.read_video(tmp_path / "out" / name, 30).frames.shape == (8, 3, 64, 64)

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
from codi.codi_models.prompts import Prompt
from PIL import Image
from random_model import random_model

PACK = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model"))


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
    assert media.read_video(generate.out / "001_video.mp4", 30).shape == (8, 3, 64, 64)
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
])  # fmt: skip
def test_bad_input_is_one_message_and_leaves_nothing(generate, tmp_path, capsys, options, message):
    (tmp_path / "notes.txt").write_text("no sound and no picture " * 20)
    options = [str(tmp_path / "notes.txt") if option == "TEXT" else option for option in options]
    assert generate("--outputs", "image", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1
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
            assert Prompt("video", tmp_path / "out" / name).read(30).value.shape == (8, 3, 64, 64)

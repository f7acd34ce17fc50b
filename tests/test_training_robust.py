"""Training bears what happens to it: kills, full disks, bad losses, several processes; and it shows what it makes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from codi.codi_models.errors import CoDiError
from codi.codi_models.training import loop
from codi.codi_models.training.loop import Objective, Schedule, train
from host.setting import PACK
from torch import Tensor, nn


class Line(Objective):
    """Fit y = 3 x + 1; the batch comes from the step's generator alone."""

    learning_rate = 0.05

    def __init__(self, bad_step: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.bad_step = bad_step

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.randn(64, 1, generator=generator)
        loss = F.mse_loss(self.layer(x), 3 * x + 1)
        return loss * (torch.nan if step == self.bad_step else 1.0), {"mean": x.mean()}


@pytest.fixture(scope="module")
def accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def weights(accelerator: Any, run: Path, line: Line, **settings: Any) -> Tensor:
    assert train(line, Schedule(**{"steps": 12, **settings}), accelerator=accelerator, run=run)
    return line.layer.weight.detach().clone()


def paused(accelerator: Any, run: Path) -> None:
    """Two steps, then a pause with a checkpoint."""
    for _ in range(2):
        assert not train(Line(), Schedule(steps=12, pause_after=1e-9), accelerator=accelerator, run=run)


def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = weights(accelerator, tmp_path / "a", Line())
    paused(accelerator, tmp_path / "b")
    whole = (tmp_path / "b" / "state.pt").read_bytes()

    class Killed(BaseException):
        pass

    def half(state: object, file: Any) -> None:
        file.write(whole[: len(whole) // 2])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.torch, "save", half)
        with pytest.raises(Killed):
            train(Line(), Schedule(steps=12, save_every=0.0), accelerator=accelerator, run=tmp_path / "b")
    assert (tmp_path / "b" / "state.pt").read_bytes() == whole
    (tmp_path / "b" / "state.partial").write_bytes(whole[:100])  # what a power cut leaves
    assert torch.equal(weights(accelerator, tmp_path / "b", Line()), unbroken)


def test_a_full_disk_is_told_and_survived(tmp_path: Path, accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = weights(accelerator, tmp_path / "a", Line())
    paused(accelerator, tmp_path / "b")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(loop.os, "fsync", full)
        with pytest.raises(CoDiError, match="No space left on device.*make room"):
            train(Line(), Schedule(steps=12, save_every=0.0), accelerator=accelerator, run=tmp_path / "b")
    assert not (tmp_path / "b" / "state.partial").exists()
    assert torch.equal(weights(accelerator, tmp_path / "b", Line()), unbroken)


def test_a_bad_loss_stops_before_it_reaches_the_weights(tmp_path: Path, accelerator: Any) -> None:
    line = Line(bad_step=5)
    with pytest.raises(CoDiError, match="loss is nan at step 5.*learning rate"):
        train(line, Schedule(steps=12, save_every=0.0), accelerator=accelerator, run=tmp_path)
    assert line.layer.weight.isfinite().all()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5
    assert torch.equal(weights(accelerator, tmp_path, Line()), weights(accelerator, tmp_path / "unbroken", Line()))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, accelerator: Any) -> None:
    paused(accelerator, tmp_path)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(CoDiError, match="state.pt is no whole checkpoint.*remove it"):
        train(Line(), Schedule(steps=12), accelerator=accelerator, run=tmp_path)


def test_an_interrupt_between_steps_saves(tmp_path: Path, accelerator: Any) -> None:
    seen: list[tuple[int, float]] = []

    def stop(step: int, share: float, loss: float) -> None:
        seen.append((step, share))
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Line(), Schedule(steps=12), accelerator=accelerator, run=tmp_path, progress=stop)
    assert seen == [(i, i / 12) for i in range(1, 5)]
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    assert torch.equal(weights(accelerator, tmp_path, Line()), weights(accelerator, tmp_path / "unbroken", Line()))


def test_a_step_of_several_batches_is_their_mean(tmp_path: Path, accelerator: Any) -> None:
    line, generators = Line(), [loop.step_generator(torch.device("cpu"), 0, 0, shard) for shard in range(3)]
    expected = sum(line(0, g)[0] for g in generators) / 3
    found: list[float] = []
    train(line, Schedule(steps=1, shards=3), accelerator=accelerator, run=tmp_path, progress=lambda step, share, loss: found.append(loss))
    assert found == [pytest.approx(expected.item(), rel=1e-6)]
    assert list(loop._shards(4, 2, 1)) == [1, 3]
    for count in (0, 3):
        with pytest.raises(CoDiError, match="multiple of 2"):
            loop._shards(count, 2, 0)


def scalars(run: Path, name: str = "loss") -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run))
    log.Reload()
    return [event.value for event in log.Scalars(name)]


def test_two_processes_do_what_one_does_with_the_doubled_batch(tmp_path: Path) -> None:
    stage = ["codi_models", "train", "codi-mini", "--stage", "text_autoencoder", "--steps", "3", "--sheets", "0"]
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # Where its port is taken, the launcher lets its own server choose one; a port that it looks for itself may be gone by then.
        port = ["--main_process_port", str(taken.getsockname()[1])]
        for name, start, more in (("one", ["-m"], ["--shards", "2"]), ("two", ["-m", *launch.split(), *port, "-m"], [])):
            folders = ["--out", str(tmp_path / name), "--runs", str(tmp_path / f"runs_{name}")]
            ran = subprocess.run([sys.executable, *start, *stage, *folders, *more], cwd=PACK, env=env, capture_output=True, text=True)
            assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"  # the launcher's own traceback comes last and says least
    one, two = (scalars(tmp_path / f"runs_{name}" / "text_autoencoder") for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-6) and len(one) == 1
    from codi.codi_models.checkpoints import read_weights

    first, second = (read_weights(tmp_path / name / "text_autoencoder.safetensors")[0] for name in ("one", "two"))
    assert all(torch.allclose(first[key].float(), second[key].float(), atol=1e-4) for key in first)


def test_sheets_show_what_a_stage_makes(tmp_path: Path, accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from codi.codi_models.training import alignment, autoencoding, denoising, environment, sheets
    from codi.codi_models.training.workspace import Workspace
    from host.tiny import create_tiny, tiny_config

    monkeypatch.setattr(sheets, "STEPS", 1)
    monkeypatch.setattr(sheets, "ROWS", 2)
    create_tiny(tmp_path / "model")
    space = Workspace(tmp_path / "model", tiny_config(), torch.device("cpu"))
    sheet = sheets.SampleSheet(space)
    monkeypatch.setattr(environment.EnvironmentEncoding, "copies", {"image": 1, "audio": 1, "video": 1})
    monkeypatch.setattr(denoising.AudioDenoising, "copies", 1)
    for objective, names in (
        (autoencoding.PictureReconstruction(space), {"reconstruction"}),
        (autoencoding.SoundReconstruction(space), {"reconstruction"}),
        (autoencoding.CaptionReconstruction(space), {"reconstruction"}),
        (denoising.AudioDenoising(space), {"audio"}),
        (alignment.LatentAlignment(space), {"video+audio/video", "video+audio/audio", "image+text/image", "image+text/text"}),
        (Line(), set()),
    ):
        with torch.no_grad():
            found = sheet.draw(objective.eval())
        assert set(found) == names
        for picture in found.values():
            if isinstance(picture, Tensor):
                assert picture.ndim == 3 and len(picture) == 3 and 0 <= picture.min() < picture.max() <= 1
            else:
                assert len(picture) == 2
    train(
        Line(),
        Schedule(steps=2),
        accelerator=accelerator,
        run=tmp_path / "run",
        sheet=lambda o, writer, step: writer.add_text("made", "x", step),
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "run"))
    log.Reload()
    assert log.Tags()["tensors"] == ["made/text_summary"] and log.Tags()["scalars"]

"""Training bears what happens to it: kills, full disks, bad losses, several processes; and it shows what it makes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from codi.codi_models.errors import CoDiError
from codi.codi_models.model import SHIPPED
from codi.codi_models.training import loop
from codi.codi_models.training.loop import Objective, train
from codi.codi_models.training.recipe import Run
from host.setting import PACK
from random_model import apart
from torch import Tensor, nn


class Line(Objective):
    """Fit y = 3 x + 1; the batch comes from the step's generator alone."""

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


def run(**changes: Any) -> Run:
    return Run(**{"name": "line", "kind": "bridging", "steps": 12, "learning_rate": 0.05, **changes})


def weights(accelerator: Any, folder: Path, line: Line) -> Tensor:
    assert train(line, run(), accelerator=accelerator, folder=folder)
    return line.layer.weight.detach().clone()


def paused(accelerator: Any, folder: Path) -> None:
    """Two steps, then a pause with a checkpoint."""
    for _ in range(2):
        assert not train(Line(), run(), accelerator=accelerator, folder=folder, pause_after=1e-9)


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
            train(Line(), run(), accelerator=accelerator, folder=tmp_path / "b", save_every=0.0)
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
        with pytest.raises(CoDiError, match="No space left on device.*has room; the same command"):
            train(Line(), run(), accelerator=accelerator, folder=tmp_path / "b", save_every=0.0)
    assert not (tmp_path / "b" / "state.partial").exists()
    assert torch.equal(weights(accelerator, tmp_path / "b", Line()), unbroken)


def test_a_bad_loss_stops_before_it_reaches_the_weights(tmp_path: Path, accelerator: Any) -> None:
    line = Line(bad_step=5)
    with pytest.raises(CoDiError, match="loss is nan at step 5.*learning rate"):
        train(line, run(), accelerator=accelerator, folder=tmp_path, save_every=0.0)
    assert line.layer.weight.isfinite().all()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5
    assert torch.equal(weights(accelerator, tmp_path, Line()), weights(accelerator, tmp_path / "unbroken", Line()))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, accelerator: Any) -> None:
    paused(accelerator, tmp_path)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(CoDiError, match="state.pt is no whole checkpoint.*remove it"):
        train(Line(), run(), accelerator=accelerator, folder=tmp_path)


def test_an_interrupt_between_steps_saves(tmp_path: Path, accelerator: Any) -> None:
    seen: list[int] = []

    def stop(step: int, loss: float) -> None:
        seen.append(step)
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Line(), run(), accelerator=accelerator, folder=tmp_path, progress=stop)
    assert seen == [1, 2, 3, 4]
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    assert torch.equal(weights(accelerator, tmp_path, Line()), weights(accelerator, tmp_path / "unbroken", Line()))


def test_a_step_of_several_batches_is_their_mean(tmp_path: Path, accelerator: Any) -> None:
    line, generators = Line(), [loop.step_generator(torch.device("cpu"), 0, 0, shard) for shard in range(3)]
    expected = sum(line(0, g)[0] for g in generators) / 3
    found: list[float] = []
    train(line, run(steps=1, batches=3), accelerator=accelerator, folder=tmp_path, progress=lambda step, loss: found.append(loss))
    assert found == [pytest.approx(expected.item(), rel=1e-6)]
    assert list(loop._shards(4, 2, 1)) == [1, 3]
    for count in (0, 3):
        with pytest.raises(CoDiError, match="multiple of 2"):
            loop._shards(count, 2, 0)


def scalars(run: Path) -> dict[str, list[float]]:
    """All that a run has logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run))
    log.Reload()
    return {name: [event.value for event in log.Scalars(name)] for name in log.Tags()["scalars"]}


def test_two_processes_do_what_one_does_with_the_doubled_batch(tmp_path: Path, accelerator: Any) -> None:
    """They go on from where one process paused, in latent alignment: of two batches of a step one may train what the other leaves alone,
    and log what the other does not."""
    import accelerate
    from codi.codi_models.bounce_world.export import export_samples
    from codi.codi_models.checkpoints import read_weights
    from codi.codi_models.training.dataset import open_dataset
    from codi.codi_models.training.recipe import Recipe
    from codi.codi_models.training.run import train_recipe

    export_samples(tmp_path / "data", 3)
    whole = json.loads((PACK / "recipes" / "codi-mini.json").read_text(encoding="utf-8"))
    batch = {"image": 2, "text": 2, "audio": 2, "video": 1}
    alignment = {"name": "alignment", "kind": "alignment", "steps": 3, "batch": batch, "variants": 2, "finished": 0.5}
    for name, more in (("one.json", {"batches": 2}), ("two.json", {})):
        (tmp_path / name).write_text(json.dumps({**whole, "runs": [{**alignment, **more}]}), encoding="utf-8")
    recipe = Recipe.load(tmp_path / "one.json")
    shutil.copytree(SHIPPED / "codi-mini", tmp_path / "one" / "model")

    def alone(**how: Any) -> bool:
        data, folder = open_dataset(str(tmp_path / "data"), recipe.networks), tmp_path / "one"
        return train_recipe(recipe, data, folder / "model", folder / "model-runs", accelerator=accelerator, samples_every=0, **how)

    assert not alone(pause_after=1e-9)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert alone()
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    files = ["--recipe", tmp_path / "two.json", "--data", tmp_path / "data", "--out", tmp_path / "two" / "model"]
    training = ["codi_models", "train", "--samples", "0", *map(str, files)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        if accelerate.__version__.startswith("0."):  # refuses a port that is taken, and hands a 0 on to processes that then never meet
            taken.close()
        # Where its port is taken, the launcher lets its own server choose one; a port that it looks for itself may be gone by then.
        command = [sys.executable, "-m", *launch.split(), "--main_process_port", port, "-m", *training]
        ran = subprocess.run(command, cwd=PACK, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"  # the launcher's own traceback comes last and says least
    one, two = (scalars(tmp_path / name / "model-runs" / "alignment") for name in ("one", "two"))
    assert set(one) == set(two) and any(0 < len(values) < 3 for values in one.values())
    for name, values in one.items():
        assert values == pytest.approx(two[name], rel=1e-4), name
    before, first, second = (
        {n: read_weights(folder / f"{n}_denoiser.safetensors")[0] for n in ("vision", "audio", "text")}
        for folder in (SHIPPED / "codi-mini", tmp_path / "one" / "model", tmp_path / "two" / "model")
    )
    for net, learnt in first.items():
        assert 20 * apart(learnt, second[net]) < apart(learnt, before[net]), net

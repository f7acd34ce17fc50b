"""One resumable training loop for every stage, on accelerate."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import CoDiError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Objective(nn.Module):
    """What a stage minimises: registered submodules are trained, frozen networks are kept out of the module tree."""

    learning_rate = 1e-3
    ema_decay = 0.999

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar) on a batch drawn from `generator`, and tensors to log."""
        raise TypeError(f"{type(self).__name__} must define forward(step, generator)")

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that the optimiser sees."""
        return [p for p in self.parameters() if p.requires_grad]

    def write(self) -> None:
        """Write the trained components into the model folder."""
        raise TypeError(f"{type(self).__name__} must define write()")


@dataclass(frozen=True)
class Schedule:
    """How long a stage trains. `minutes` compresses the run: the learning rate then reaches zero at that time at the latest."""

    steps: int
    minutes: float | None = None
    pause_after: float | None = None  # minutes of this sitting, after which the state is saved and training stops
    save_every: float = 3.0  # minutes
    warmup: int = 100

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the run that is done, 0..1."""
        share = step / self.steps
        return min(1.0, max(share, elapsed / (60 * self.minutes)) if self.minutes else share)

    def factor(self, step: int, progress: float) -> float:
        """Learning rate as a share of the peak: linear warm-up, then a cosine down to zero."""
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * progress))


class _Average:
    """Exponential moving average of the trained parameters; early steps count less than `decay` says."""

    def __init__(self, objective: Objective, decay: float):
        self.decay = decay
        self.shadow = [p.detach().clone() for p in objective.trainable()]

    @torch.no_grad()
    def update(self, parameters: list[nn.Parameter], step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in parameters], weight)


def step_generator(device: torch.device, seed: int, step: int, process: int) -> torch.Generator:
    """Random stream of one step on one process, so that a resumed run sees the batches it would have seen."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) * 1009 + process)


def _save(path: Path, state: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(objective: Objective, schedule: Schedule, *, accelerator: Accelerator, run: Path, seed: int = 0, log_every: int = 25) -> bool:
    """Train until the schedule ends, resuming from `run/state.pt` where there is one.

    Leaves the averaged weights in `objective`. Returns False if it paused before the end. Logs scalars to `run` in TensorBoard's format.
    """
    from torch.utils.tensorboard import SummaryWriter

    run.mkdir(parents=True, exist_ok=True)
    device, state_file = accelerator.device, run / "state.pt"
    objective.to(device).train()
    parameters = objective.trainable()
    optimiser = torch.optim.AdamW(parameters, lr=objective.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=device.type == "cuda")
    average = _Average(objective, objective.ema_decay)
    step, elapsed = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        if len(state["shadow"]) != len(parameters):
            raise CoDiError(
                f"{state_file} belongs to another configuration ({len(state['shadow'])} tensors, here {len(parameters)}): "
                "remove it to start afresh"
            )
        objective.load_state_dict(state["objective"])
        optimiser.load_state_dict(state["optimiser"])
        average.shadow = [tensor.to(device) for tensor in state["shadow"]]
        step, elapsed = state["step"], state["elapsed"]
    model, optimiser = accelerator.prepare(objective, optimiser)
    writer = SummaryWriter(str(run)) if accelerator.is_main_process else None

    def save() -> None:
        if accelerator.is_main_process:
            plain = accelerator.unwrap_model(model)
            _save(state_file, {"objective": plain.state_dict(), "optimiser": optimiser.state_dict(), "shadow": average.shadow,
                               "step": step, "elapsed": elapsed})  # fmt: skip

    started = last_save = time.monotonic()
    before = elapsed
    while (progress := schedule.progress(step, elapsed)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = objective.learning_rate * schedule.factor(step, progress)
        loss, logs = model(step, step_generator(device, seed, step, accelerator.process_index))
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update(parameters, step)
        step += 1
        now = time.monotonic()
        elapsed = before + now - started
        if step % log_every == 0 or step == schedule.steps:
            values = {"loss": float(loss.detach()), **{k: float(v.detach()) for k, v in logs.items()}}
            if not math.isfinite(values["loss"]):
                raise CoDiError(f"{run.name}: the loss is {values['loss']} at step {step}; lower the learning rate or look at the data")
            if writer:
                for key, value in values.items():
                    writer.add_scalar(key, value, step)
                if step % (log_every * 5) == 0:
                    text = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
                    print(f"{run.name}: step {step} ({progress:.0%}, {elapsed / step:.3f} s a step)  {text}", flush=True)
        if (now - last_save) > 60 * schedule.save_every:
            save()
            last_save = now
        if schedule.pause_after and now - started > 60 * schedule.pause_after:
            save()
            return False
    save()
    if writer:
        writer.close()
    plain = accelerator.unwrap_model(model)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average.shadow, strict=True):
            parameter.copy_(mean)
    plain.eval()
    print(f"{run.name}: done after {step} steps, {elapsed / 60:.1f} minutes", flush=True)
    return True

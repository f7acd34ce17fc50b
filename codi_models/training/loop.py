"""One resumable training loop for every run, on accelerate."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CoDiError, WriteError
from ..files import unwritable
from .muon import Muon
from .recipe import Run

if TYPE_CHECKING:
    from accelerate import Accelerator


class Objective(nn.Module):
    """What a run minimises: registered submodules are trained, frozen networks are kept out of the module tree."""

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar) on a batch drawn from `generator`, and tensors to log."""
        raise TypeError(f"{type(self).__name__} must define forward(step, generator)")

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that the optimiser sees."""
        return [p for p in self.parameters() if p.requires_grad]

    def write(self) -> None:
        """Write the trained components into the model folder."""
        raise TypeError(f"{type(self).__name__} must define write()")

    def samples(self) -> dict[str, Tensor | list[str]]:
        """What the networks make now, for the log: name -> image (3, H, W) in 0..1, or lines of text."""
        return {}


def rate(step: int, run: Run) -> float:
    """Learning rate of a step: linear warm-up, then a cosine down to zero."""
    warmup = min(run.warmup, max(1, run.steps // 10))
    return run.learning_rate * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / run.steps))


class _Average:
    """Exponential moving average of the trained parameters; early steps count less than `decay` says."""

    def __init__(self, objective: Objective, decay: float):
        self.decay = decay
        self.shadow = [p.detach().clone() for p in objective.trainable()]

    @torch.no_grad()
    def update(self, parameters: list[nn.Parameter], step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in parameters], weight)


def step_generator(device: torch.device, seed: int, step: int, shard: int) -> torch.Generator:
    """Random stream of one batch of one step, so that a resumed run sees the batches it would have seen."""
    return torch.Generator(device).manual_seed(((seed * 1_000_003 + step) * 1009 + shard) % (1 << 64))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Errors of the disk inside the block become WriteError."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{unwritable(path, error)}; the same command then goes on from the last whole checkpoint") from error


def _save(path: Path, state: dict[str, object]) -> None:
    """A checkpoint, whole or not at all: until it lies safely on the disk, the one before it stays."""
    partial = path.with_suffix(".partial")
    with _writing(path):
        try:
            with open(partial, "wb") as file:
                try:
                    torch.save(state, file)
                except RuntimeError as error:  # how torch reports a full disk: what the disk said comes before it
                    said = [cause for cause in (error.__cause__, error.__context__) if isinstance(cause, OSError)]
                    raise (said or [OSError(str(error).splitlines()[0])])[0] from error
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _load(path: Path) -> dict[str, Any]:
    """What `_save` wrote, on the CPU. Raises CoDiError for a damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the many kinds that a damaged archive raises
        raise CoDiError(f"{path} is no whole checkpoint ({str(error).splitlines()[0]}): remove it to start this run afresh") from error


def _learnt(objective: nn.Module) -> dict[str, Tensor]:
    """State of an objective without its frozen parameters, which are where they came from."""
    frozen = {name for name, p in objective.named_parameters() if not p.requires_grad}
    return {name: value for name, value in objective.state_dict().items() if name not in frozen}


def _restore(objective: nn.Module, learnt: dict[str, Tensor], path: Path) -> None:
    """Put back what `_learnt` gave. Raises CoDiError where it belongs to other networks."""
    try:
        missing, unknown = objective.load_state_dict(learnt, strict=False)
    except RuntimeError as error:
        raise CoDiError(
            f"{path} belongs to another configuration ({str(error).splitlines()[-1].strip()}): remove it to start afresh"
        ) from error
    if unknown or set(missing) & set(_learnt(objective)):
        raise CoDiError(f"{path} belongs to another configuration ({(unknown + missing)[0]}): remove it to start afresh")


def _log(folder: Path) -> Any:
    """TensorBoard's writer; None where it is not installed, for training does not need it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("no log is written: it needs the package tensorboard", flush=True)
        return None
    with _writing(folder):
        return SummaryWriter(str(folder))


def _shards(count: int, processes: int, process: int) -> range:
    """Batches of a step that fall to one process. Raises CoDiError where they cannot be shared out evenly."""
    if count < 1 or count % processes:
        raise CoDiError(f"{count} batches a step cannot be shared by {processes} processes: give a multiple of {processes}")
    return range(process, count, processes)


def train(
    objective: Objective, run: Run, *, accelerator: Accelerator, folder: Path, progress: Callable[[int, float], None] | None = None,
    pause_after: float | None = None, save_every: float = 3.0, samples_every: float = 10.0, say: Callable[[str], None] = print,
) -> bool:  # fmt: skip
    """Train until the run ends, going on from `folder/state.pt` where there is one; the same batches come as in an unbroken run.

    Leaves the averaged weights in `objective`. Returns False if it paused before the end, after `pause_after` minutes. Logs scalars and
    the objective's samples (every `samples_every` minutes and at the end; 0 for none) to `folder` in TensorBoard's format, and a line to
    `say`. progress: called after every step with the steps done and the loss; an exception that it raises ends the run after saving its
    state, with the averaged weights of that step in `objective`.
    Raises CoDiError for a loss that is not finite (before it reaches the weights), and the state of another configuration; WriteError.
    """
    from accelerate.utils import broadcast, gather_object

    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    device, state_file = accelerator.device, folder / "state.pt"
    objective.to(device).train()
    parameters = objective.trainable()
    settings: dict[str, Any] = dict(lr=run.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=device.type == "cuda")
    optimiser = {"adamw": torch.optim.AdamW, "muon": Muon}[run.optimizer](parameters, **settings)
    average = _Average(objective, run.ema)
    step, elapsed = 0, 0.0
    if state_file.exists():
        state = _load(state_file)
        if len(state["shadow"]) != len(parameters):
            raise CoDiError(
                f"{state_file} belongs to another configuration ({len(state['shadow'])} tensors, here {len(parameters)}): "
                "remove it to start afresh"
            )
        _restore(objective, state["objective"], state_file)
        optimiser.load_state_dict(state["optimiser"])
        average.shadow = [tensor.to(device) for tensor in state["shadow"]]
        step, elapsed = state["step"], state["elapsed"]
    model, optimiser = accelerator.prepare(objective, optimiser)
    processes = accelerator.num_processes
    mine = _shards(run.batches or processes, processes, accelerator.process_index)
    writer = _log(folder) if accelerator.is_main_process else None

    def save() -> None:
        if accelerator.is_main_process:
            plain = accelerator.unwrap_model(model)
            _save(state_file, {"objective": _learnt(plain), "optimiser": optimiser.state_dict(), "shadow": average.shadow,
                               "step": step, "elapsed": elapsed})  # fmt: skip

    def shared(value: float) -> float:
        """The main process's value: clocks differ, and processes must end together."""
        return value if processes == 1 else float(broadcast(torch.tensor(value, dtype=torch.float64, device=device)))

    def settle() -> None:
        """The averaged weights into the objective."""
        with torch.no_grad():
            for parameter, mean in zip(parameters, average.shadow, strict=True):
                parameter.copy_(mean)

    def show() -> None:
        if not writer or not samples_every:
            return
        objective.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _writing(folder):
            for name, made in objective.samples().items():
                if isinstance(made, Tensor):
                    writer.add_image(name, made, step)
                else:
                    writer.add_text(name, "\n".join(f"- {line}" for line in made), step)
        objective.train()

    def once() -> tuple[float, dict[str, float]]:
        """One step of the optimiser: the loss and what else is logged, means over the batches of the step that have it."""
        optimiser.zero_grad(set_to_none=True)
        told: list[tuple[str, Tensor]] = []
        for position, shard in enumerate(mine):
            last = position == len(mine) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                loss, logs = model(step, step_generator(device, run.seed, step, shard))
                accelerator.backward(loss / len(mine))
            told += [(name, value.detach().float()) for name, value in {"loss": loss, **logs}.items()]
        read = list(zip([name for name, _ in told], torch.stack([value for _, value in told]).tolist(), strict=True))
        found: dict[str, list[float]] = {}
        for name, number in gather_object(read) if processes > 1 else read:  # batches may log different things
            found.setdefault(name, []).append(number)
        values = {name: sum(numbers) / len(numbers) for name, numbers in found.items()}
        if not math.isfinite(values["loss"]):
            raise CoDiError(
                f"{run.name}: the loss is {values['loss']} at step {step}. The weights have not taken it, and the last checkpoint is "
                "whole; lower the learning rate or look at the data"
            )
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        return values.pop("loss"), values

    started = last_save = last_samples = last_line = time.monotonic()
    before, log_every = elapsed, max(1, min(25, run.steps // 20))
    while step < run.steps:
        for group in optimiser.param_groups:
            group["lr"] = rate(step, run)
        loss, logs = once()
        average.update(parameters, step)
        step += 1
        now = time.monotonic()
        elapsed = shared(before + now - started)
        if writer and (step % log_every == 0 or step == run.steps):
            with _writing(folder):
                for key, value in {"loss": loss, **logs}.items():
                    writer.add_scalar(key, value, step)
        if now - last_line > 20 or step == 1:
            last_line, each = now, elapsed / step
            parts = "  ".join(f"{k} {v:.4f}" for k, v in {"loss": loss, **logs}.items())
            left = (run.steps - step) * each / 60
            say(f"{run.name}: step {step} of {run.steps}, {each:.3f} s each, {left:.0f} min left  {parts}")
        if progress:
            try:
                progress(step, loss)
            except BaseException:
                save()
                settle()
                raise
        if now - last_samples > 60 * samples_every:
            show()
            last_samples = time.monotonic()
        if (now - last_save) > 60 * save_every:
            save()
            last_save = now
        if pause_after and elapsed - before > 60 * pause_after:
            save()
            return False
    save()
    settle()
    show()
    if writer:
        with _writing(folder):
            writer.close()
    accelerator.unwrap_model(model).eval()
    say(f"{run.name}: done after {step} steps, {elapsed / 60:.1f} minutes")
    return True

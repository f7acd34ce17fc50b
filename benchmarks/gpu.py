"""What only a GPU can tell: does it compute the same, how long is a joint step of the official size, does it fit a small card.

python benchmarks/gpu.py agreement              codi-mini on the device against the CPU, from one noise
python benchmarks/gpu.py step [--gigabytes 8]   official sizes, random weights in float16, in so much device memory

`step` forbids every wait for the device, so that a step that asks it for a number fails. `--device cpu --config mini` tries the
script where there is no GPU; then nothing is forbidden and no memory is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import CONFIGS, alternate, config_of, difference, machine, settle, table

from codi_models.components import build_component  # isort: skip
from codi_models.conditioning import Prompt  # isort: skip
from codi_models.config import CoDiConfig  # isort: skip
from codi_models.diffusion import initial_noise  # isort: skip
from codi_models.joint import JointDenoiser  # isort: skip
from codi_models.modalities import MODALITIES, denoisers_of  # isort: skip
from codi_models.pipeline import CoDiPipeline  # isort: skip
from codi_models.settings import Settings, latent_shapes  # isort: skip

TOLERANCE = {"fp32": 1e-3, "fp16": 0.2}  # a whole run feeds its rounding back at every step
GUIDED = 2  # rows of a batch under guidance
SETS = (("image",), ("video", "audio"), tuple(MODALITIES))


def agreement(device: torch.device, evaluations: int) -> bool:
    """Latents of all outputs, made together from one prompt and one noise."""

    def latents(where: torch.device, dtype: str) -> dict[str, torch.Tensor]:
        pipe = CoDiPipeline.from_pretrained("codi-mini", device=where, dtype=dtype)
        settings = Settings.resolve(pipe.model.config, list(MODALITIES), sampler="euler", steps=evaluations, schedule="together")
        noise = initial_noise(latent_shapes(pipe.model.config, settings), [0], device=where)
        made = pipe.denoise(*pipe.condition([Prompt("text", "a red star bounces twice")]), settings, noise, seeds=[0])[0]
        return {m: z.float().cpu() for m, z in made.items()}

    expected, good, rows = latents(torch.device("cpu"), "fp32"), True, []
    for dtype, most in TOLERANCE.items():
        apart = difference(latents(device, dtype), expected)
        good = good and apart <= most
        rows.append([dtype, f"{apart:.1e}", f"{most:.0e}"])
    print(table(["codi-mini, all outputs", "largest difference from the CPU", "allowed"], rows))
    return good


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Whatever would wait for the device raises inside the block."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def joint_step(config: CoDiConfig, outputs: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """One evaluation of outputs under guidance, all weights drawn."""
    nets: dict[str, Any] = {}
    for name in denoisers_of(outputs):
        nets[name] = build_component(name, config, dtype=dtype, device="meta").to_empty(device=device).eval().requires_grad_(False)
        for parameter in nets[name].parameters():
            parameter.normal_(std=0.02)
    joint, shapes = JointDenoiser(nets, register=False), latent_shapes(config, Settings.resolve(config, outputs))
    x = {m: torch.randn(GUIDED, *shape, device=device, dtype=dtype) for m, shape in shapes.items()}
    context = torch.randn(GUIDED, 1, config.vision_denoiser.context_dim, device=device, dtype=dtype)
    t = torch.full((GUIDED,), 501.0, device=device)
    return lambda: joint(x, t, context)


def steps(config: CoDiConfig, device: torch.device, gigabytes: float | None, repeats: int) -> bool:
    """Seconds and peak memory of a joint step; False where one does not fit."""
    cuda, good, rows = device.type == "cuda", True, []
    if gigabytes and cuda:
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / torch.cuda.get_device_properties(device).total_memory))
    for outputs in SETS:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            step = joint_step(config, outputs, device, torch.float16 if cuda else torch.float32)
            step()
            with no_waiting(device):
                step()
            taken = f"{alternate({'step': step}, repeats, device)['step']:.4f}"
        except torch.cuda.OutOfMemoryError:
            taken, good = "does not fit", False
        step = None
        rows.append([" + ".join(outputs), taken, f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if cuda else ""])
    print(table([f"{config.name}, one step, {GUIDED} rows", "seconds", "peak, GB"], rows))
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("agreement", "step"))
    parser.add_argument("--config", default="official", choices=CONFIGS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gigabytes", type=float, help="device memory that the process may take")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=8, help="of each denoiser, of an agreement")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU: --device cpu --config mini tries the script without one")
    settle(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(f"{machine(device)}\n")
    if args.what == "agreement":
        good = agreement(device, args.evaluations)
    else:
        good = steps(config_of(args.config), device, args.gigabytes, args.repeats)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

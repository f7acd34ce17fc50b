"""What a denoiser's latents give away about their prompts, noise level by noise level.

With the errors of a denoiser without prompt (u) and with it (c), in units of the noise and summed over a latent's numbers, half of
E|err_u|^2 - E|err_c|^2 is the rate of the information per unit of log SNR (I-MMSE: Guo, Shamai and Verdu 2005). Integrated, it comes to
what prompts say about the latents, in nats: where a denoiser gives more, its unconditional half does not know what nearly clean latents
show; where the rate has not fallen to zero at the noisiest level, the schedule ends too early. Half of it is decided at a log SNR that
the shift of the modality brings to zero, the middle of the cosine schedule: `shift` is the one to write into the configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CoDiConfig
from ..diffusion import NoiseSchedule
from ..errors import CoDiError
from ..files import whole_file, write_text
from ..modalities import MODALITIES
from ..model import find_model
from .dataset import open_dataset
from .encoded import Encoded, encode_dataset
from .workspace import Workspace

LEVELS, SAMPLES, BATCH = 24, 256, 32
EXACT = 1 + 1e-9  # a scale other than 1 asks for fractional timesteps


@dataclass
class Curve:
    """Information of one modality. log_snr: of the latents themselves, ascending; rate: nats per unit of it."""

    log_snr: list[float]
    rate: list[float]
    nats: float  # in all
    half: float  # log SNR by which half of it is decided
    shift: float  # of the log SNR, with which that is in the middle of the schedule


@torch.no_grad()
def information(net: Any, config: CoDiConfig, modality: str, encoded: Encoded, *, levels: int = LEVELS, samples: int = SAMPLES) -> Curve:
    """The curve of a denoiser over encoded data, by text where an item has it, else by its own embedding.

    The same noise for both halves, so that what they share cancels out."""
    schedule, device = NoiseSchedule(config.diffusion), next(net.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    rows = encoded.rows([modality], samples, generator)
    kind = "text" if "text" in encoded.embeddings else modality
    context = encoded.embedding(kind, rows, generator)[:, None]  # (N, 1, D)
    clean = encoded.latent(modality, rows, device)
    low, high = (2 * float(s.log()) for s in schedule.sigmas[[0, -1]])
    grid = torch.linspace(max(-high, -16.0), min(-low, 12.0), levels)  # log SNR
    rate = []
    for log_snr in grid.tolist():
        sigma = torch.tensor(float(torch.tensor(-log_snr / 2).exp()), device=device)
        gap = 0.0
        for part in torch.arange(samples, device=device).split(BATCH):
            noise = torch.randn(clean[part].shape, generator=generator, device=device)
            x = schedule.noised(clean[part], noise, sigma)
            t = schedule.timestep(sigma, EXACT).expand(len(part))
            target = schedule.target(clean[part], noise, sigma)
            empty = encoded.empty.to(device).expand(len(part), 1, -1)
            unconditional, conditional = ((net(x, t, c).float() - target).square().sum() for c in (empty, context[part]))
            gap += float(unconditional - conditional)
        in_noise = 1.0 if config.diffusion.prediction == "eps" else 1 / (1 + float(sigma) ** 2)  # |err_eps|^2 = alpha-bar |err_v|^2
        rate.append(0.5 * gap * in_noise / samples)
    return _curve(grid, torch.tensor(rate))


def _curve(grid: Tensor, rate: Tensor) -> Curve:
    steps = 0.5 * (rate[1:] + rate[:-1]).clamp(min=0) * grid.diff()
    total = torch.cat([torch.zeros(1), steps.cumsum(0)])
    place = int((total < total[-1] / 2).sum().clamp(1, len(grid) - 1))
    share = (total[-1] / 2 - total[place - 1]) / (total[place] - total[place - 1]).clamp(min=1e-9)
    half = float(torch.lerp(grid[place - 1], grid[place], share.clamp(0, 1)))
    return Curve([round(v, 4) for v in grid.tolist()], [round(v, 5) for v in rate.tolist()], float(total[-1]), half, half)


def write_report(
    model: str, data: str, out: Path, *, say: Callable[[str], None] = print, items: int = 2048, **how: int
) -> dict[str, Curve]:
    """Measure every denoiser of a model folder on data; write `information.json` and a picture into `out`.

    Of the first `items` items; how: as for `information`. Raises CoDiError for a model or data that cannot be used."""
    folder = find_model(model)
    config = CoDiConfig.load(folder / "config.json")
    space, source = Workspace(folder, torch.device("cpu")), open_dataset(data, config)
    few = torch.arange(len(source)) < items
    source.has = {kind: there & few for kind, there in source.has.items() if bool((there & few).any())}
    curves = {}
    for modality, row in MODALITIES.items():
        if modality in source.has and space.has(row.denoiser):
            encoded = encode_dataset(space, source, ("text", modality), (modality,), out / "cache", variants=4)
            curve = information(space.trained(row.denoiser), config, modality, encoded, **how)
            curves[modality] = curve
            now = config.diffusion.shifts.get(modality, 0.0)
            say(f"{modality}: {curve.nats:.1f} nats, half of them by log SNR {curve.half:.1f}: shift {curve.shift:.1f} (now {now:.1f})")
    if not curves:
        raise CoDiError(f"{folder} has no denoiser of anything that {data} shows")
    write_text(out / "information.json", json.dumps({m: asdict(c) for m, c in curves.items()}, indent=1) + "\n")
    _draw(curves, out / "information.png")
    return curves


def _draw(curves: dict[str, Curve], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for modality, curve in curves.items():
        axes.plot(curve.log_snr, curve.rate, marker=".", label=f"{modality}: {curve.nats:.1f} nats")
    axes.set_xlabel("log SNR of the latents")
    axes.set_ylabel("nats about the prompt per unit of log SNR")
    axes.legend()
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})

"""The information that a denoiser's latents give away about their prompts, against a case that can be computed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from codi.codi_models.config import DiffusionConfig
from codi.codi_models.diffusion import NoiseSchedule
from codi.codi_models.training.encoded import Encoded
from codi.codi_models.training.information import information, write_report
from host.tiny import create_tiny, tiny_config
from torch import Tensor, nn


class Ideal(nn.Module):
    """The best denoiser of latents that are one of eight points, with the prompt (which point) or without it."""

    def __init__(self, points: Tensor, schedule: NoiseSchedule, empty: Tensor, knows: bool = True) -> None:
        super().__init__()
        self.points, self.schedule, self.empty, self.knows = nn.Parameter(points), schedule, empty, knows

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        sigma = self.schedule.sigma(timesteps)[:, None]
        noisy = x * (1 + sigma**2).sqrt()
        which = (-torch.cdist(noisy, self.points).square() / (2 * sigma**2)).softmax(1)
        without = which @ self.points if self.knows else self.points.mean(0).expand_as(x)
        told = context[:, 0, :1].round().long()[:, 0].clamp(min=0)
        blank = (context[:, 0] == self.empty).all(1, keepdim=True)
        clean = torch.where(blank, without, self.points[told])
        return self.schedule.target(clean, (noisy - clean) / sigma, sigma)


@pytest.mark.parametrize("prediction", ["v", "eps"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_eight_points_are_worth_log_eight(prediction: str, scale: float) -> None:
    config = dataclasses.replace(tiny_config(), diffusion=DiffusionConfig(schedule="cosine", prediction=prediction))
    points = scale * torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    which = torch.arange(512) % 8
    names = torch.stack([which.float(), torch.ones(512)], dim=1)
    has = {kind: torch.ones(512, dtype=torch.bool) for kind in ("text", "audio")}
    encoded = Encoded({"text": names}, {"audio": points[which]}, has, torch.tensor([-1.0, -1.0]))
    schedule = NoiseSchedule(config.diffusion)
    curve = information(Ideal(points, schedule, encoded.empty), config, "audio", encoded, levels=40, samples=256)
    assert curve.nats == pytest.approx(math.log(8), rel=0.15)
    assert curve.shift == curve.half and abs(curve.rate[0]) < 0.02 and abs(curve.rate[-1]) < 0.02
    broken = information(Ideal(points, schedule, encoded.empty, knows=False), config, "audio", encoded, levels=40, samples=256)
    assert broken.nats > 5 * curve.nats  # its unconditional half does not know what a clean latent shows


def test_larger_latents_decide_earlier() -> None:
    """Four times the size is 2 ln 4 more log SNR for the same noise."""
    config = dataclasses.replace(tiny_config(), diffusion=DiffusionConfig(schedule="cosine", prediction="v"))
    halves = []
    for scale in (1.0, 4.0):
        points = scale * torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
        which = torch.arange(512) % 8
        names = torch.stack([which.float(), torch.ones(512)], dim=1)
        has = {kind: torch.ones(512, dtype=torch.bool) for kind in ("text", "audio")}
        encoded = Encoded({"text": names}, {"audio": points[which]}, has, torch.tensor([-1.0, -1.0]))
        net = Ideal(points, NoiseSchedule(config.diffusion), encoded.empty)
        halves.append(information(net, config, "audio", encoded, levels=40, samples=128).half)
    assert halves[0] - halves[1] == pytest.approx(2 * math.log(4), abs=0.3)


def test_the_report(tmp_path: Path) -> None:
    from codi.codi_models.bounce_world.export import export_samples

    create_tiny(tmp_path / "tiny")
    export_samples(tmp_path / "data", 2)
    said: list[str] = []
    write_report(str(tmp_path / "tiny"), str(tmp_path / "data"), tmp_path / "out", say=said.append, levels=2, samples=2)
    found = json.loads((tmp_path / "out" / "information.json").read_text(encoding="utf-8"))
    assert (
        set(found) == {"video", "image", "text", "audio"}
        and len(said) == 4
        and (tmp_path / "out" / "information.png").stat().st_size > 5000
    )

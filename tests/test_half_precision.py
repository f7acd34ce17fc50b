"""Every network stays finite and near float32 in half precision, on recipe weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from codi.codi_models.components import COMPONENTS
from codi.codi_models.config import CoDiConfig
from codi.codi_models.denoisers.temporal import FrameNorm
from codi.codi_models.modalities import MODALITIES
from codi.codi_models.parity.half import PRECISIONS, half_errors, joint_errors
from host.tiny import tiny_config

PASSES = {"clip": 3, "image_autoencoder": 2, "audio_autoencoder": 2, "text_autoencoder": 2, "vision_denoiser": 2}


def limit(what: str, precision: str) -> float:
    """Clips differ by the floor of the norm over frames, which is 1e-5 in float32 and 1e-3 in half precision, as published."""
    return (0.15 if what == "video" else 0.01) * (1 if precision == "float16" else 4 if what != "video" else 1.5)


@pytest.fixture(scope="module")
def config() -> CoDiConfig:
    return replace(tiny_config(), vision_denoiser=replace(tiny_config().vision_denoiser, max_frames=8))


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_network(config: CoDiConfig, name: str) -> None:
    errors = half_errors(name, config)
    assert len(errors) == len(PRECISIONS) * PASSES.get(name, 1)
    for error in errors:
        assert error.finite, error
        assert 0 < error.rms < limit(error.what, error.precision), error


def test_the_joint_step(config: CoDiConfig) -> None:
    errors = joint_errors(config)
    assert {e.what for e in errors} == set(MODALITIES)
    for error in errors:
        assert error.finite, error
        assert 0 < error.rms < limit("video", error.precision), error  # every output listens to the clip


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS)
def test_the_norm_over_frames_bears_large_activations(dtype: torch.dtype) -> None:
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)) * 2000
    norm = FrameNorm(6)
    wanted = norm(x.to(dtype).float())
    got = norm.to(dtype)(x.to(dtype)).float()
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)

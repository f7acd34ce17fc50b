"""Mixtures of prompts in the shared space."""

import math

import pytest
import torch
from codi.codi_models.conditioning import mix
from codi.codi_models.errors import CoDiError
from torch.nn.functional import normalize


def unit(*numbers):
    return normalize(torch.tensor(numbers), dim=-1)[None, None]


def on_arc(degrees):
    return unit(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), 0.0)


def test_linear_is_the_weighted_sum_over_the_sum_of_the_weights():
    a, b = on_arc(0), on_arc(90)
    assert torch.allclose(mix([a, b], [3, 1]), 0.75 * a + 0.25 * b)
    assert torch.allclose(mix([a, b], [0.3, 0.1]), mix([a, b], [3, 1]))
    assert torch.allclose(mix([a, b]), 0.5 * a + 0.5 * b)
    assert torch.allclose(mix([a, b], [2, -1]), 2 * a - b)


def test_renormalised_keeps_the_direction():
    a, b = on_arc(0), on_arc(90)
    assert torch.allclose(mix([a, b], [1, 1], "renormalised"), on_arc(45), atol=1e-6)


@pytest.mark.parametrize("weights, angle", [([1, 1], 40), ([3, 1], 20), ([0, 1], 80), ([2, -1], -80), ([-1, 3], 120)])
def test_spherical_divides_the_arc(weights, angle):
    assert torch.allclose(mix([on_arc(0), on_arc(80)], weights, "spherical"), on_arc(angle), atol=1e-4)


def test_spherical_mean_of_three_has_no_pull_left():
    torch.manual_seed(0)
    points = [normalize(torch.randn(2, 1, 16) + 2, dim=-1) for _ in range(3)]
    weights = torch.tensor([0.5, 0.3, 0.2])
    mean = mix(points, weights.tolist(), "spherical")
    pull = torch.zeros_like(mean)
    for point, weight in zip(points, weights, strict=True):
        cosine = (point * mean).sum(-1, keepdim=True)
        tangent = point - cosine * mean
        pull += weight * torch.acos(cosine) * normalize(tangent, dim=-1)
    assert pull.norm(dim=-1).max() < 1e-4 and torch.allclose(mean.norm(dim=-1), torch.ones(2, 1), atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "renormalised", "spherical"])
def test_one_prompt_is_itself(method):
    torch.manual_seed(0)
    point = normalize(torch.randn(3, 1, 8), dim=-1)
    assert torch.allclose(mix([point], [-2.0], method), point, atol=1e-6)


@pytest.mark.parametrize(
    "weights, message",
    [([1, -1], "sum to 0"), ([0, 0], "sum to 0"), ([1, math.nan], "finite"), ([1, math.inf], "finite"), ([1], "1 weights for 2 prompts")],
)
def test_unusable_weights_are_named(weights, message):
    with pytest.raises(CoDiError, match=message):
        mix([on_arc(0), on_arc(90)], weights)


def test_other_unusable_input():
    with pytest.raises(CoDiError, match="at least one"):
        mix([])
    with pytest.raises(CoDiError, match="one model"):
        mix([torch.zeros(1, 1, 3), torch.zeros(1, 1, 4)])
    with pytest.raises(CoDiError, match="linear, renormalised, spherical"):
        mix([on_arc(0)], method="cubic")
    with pytest.raises(CoDiError, match="cancel out"):
        mix([on_arc(0), on_arc(180)], [1, 1], "spherical")

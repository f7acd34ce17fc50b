"""The Muon optimiser, the choice of noise levels, and latents as a denoiser leaves them: what runs can ask for beside their steps."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from codi.codi_models.config import DiffusionConfig
from codi.codi_models.errors import CoDiError
from codi.codi_models.training.denoising import Noising
from codi.codi_models.training.muon import Muon, orthogonal
from codi.codi_models.training.recipe import Run
from small import small_config
from torch import nn


@pytest.mark.parametrize("shape", [(16, 16), (24, 200), (200, 24)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    """Also those a hundred times smaller than the largest; directions stay."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    made = orthogonal(((u * torch.logspace(0, -2, len(v), dtype=torch.float64)) @ v).float()).double()
    values = torch.diagonal(u.T @ made @ v.T)
    assert 0.3 < values.min() and values.max() < 1.3  # the smallest need more than the iterations that are made
    assert torch.allclose(u * values @ v, made, atol=1e-4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.Conv2d(32, 3, 1))


def stepped(net: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimiser.zero_grad()
        net(torch.randn(2, 16, 4, 4, generator=generator)).square().mean().backward()
        optimiser.step()


def test_matrices_take_orthogonal_steps_and_the_rest_those_of_adamw() -> None:
    """A map to three channels, norms and biases are moved as AdamW moves them; a wide convolution by one size in every direction."""
    ours, theirs = network(), network()
    before = ours[0].weight.detach().clone()
    stepped(ours, Muon(ours.parameters(), lr=0.01, weight_decay=0.0), range(1))
    stepped(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0), range(1))
    changed = {name for name, value in ours.state_dict().items() if not torch.equal(value, theirs.state_dict()[name])}
    assert changed == {"0.weight"}
    moved = (ours[0].weight.detach() - before).flatten(1)
    values = torch.linalg.svdvals(moved) / (0.01 * 0.2 * max(moved.shape) ** 0.5)
    assert 0.3 < values[-2] and values.max() < 1.3  # normalisation after it takes one direction of the gradient away


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9 has no Muon")
def test_matrices_move_as_those_of_pytorch() -> None:
    """Whose iterations are in bfloat16."""
    ours, theirs = nn.Linear(40, 24, bias=False), nn.Linear(40, 24, bias=False)
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    pairs = (
        (ours, Muon(ours.parameters(), lr=0.01, weight_decay=0.1)),
        (theirs, torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")),
    )
    for net, optimiser in pairs:
        for step in range(3):
            optimiser.zero_grad()
            net(torch.randn(32, 40, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimiser.step()
    moved, expected = ours.weight.detach() - start, theirs.weight.detach() - start
    assert (moved - expected).norm() < 0.03 * expected.norm()


def test_its_state_goes_on_where_it_was_kept() -> None:
    whole, half = network(), network()
    stepped(whole, Muon(whole.parameters(), lr=0.01), range(6))
    first = Muon(half.parameters(), lr=0.01)
    stepped(half, first, range(3))
    second = Muon(half.parameters(), lr=0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    stepped(half, second, range(3, 6))
    for ours, expected in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_a_parameter_without_a_gradient_stays() -> None:
    net = network()
    net[0].requires_grad_(False)
    before = net[0].weight.detach().clone()
    stepped(net, Muon(net.parameters(), lr=0.01), range(2))
    assert torch.equal(net[0].weight, before)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(CoDiError, match="unknown optimizer 'lion': give adamw or muon"):
        Run(name="a", kind="denoiser", steps=1, optimizer="lion").check()


def test_a_power_draws_low_noise_levels_more_often() -> None:
    """The share of levels below l is l ** (1 / power), in every batch of whatever size within one example."""
    noising = Noising(small_config())
    for power in (1.0, 2.0, 3.0):
        levels = noising.levels(50, torch.Generator().manual_seed(0), power)
        assert levels.min() >= 0 and levels.max() < 1
        for below in (0.1, 0.5, 0.9):
            assert abs(int((levels < below).sum()) - 50 * below ** (1 / power)) <= 1


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_what_a_network_is_to_predict_stands_for_the_clean_latents(prediction: str) -> None:
    """At every level of every modality, whose scales differ."""
    noise = DiffusionConfig(schedule="cosine", prediction=prediction, shifts={"image": -2.0, "text": 1.0})
    noising, generator = Noising(dataclasses.replace(small_config(), diffusion=noise)), torch.Generator().manual_seed(0)
    for modality, shape in (("image", (6, 4, 2, 2)), ("text", (6, 8))):
        x0, level = torch.randn(shape, generator=generator), torch.linspace(0.02, 0.7, 6)
        noisy = noising(modality, x0, level, generator)
        assert torch.allclose(noising.estimate(noisy, noisy.target), x0, atol=1e-3)
        assert not torch.allclose(noising.estimate(noisy, torch.zeros_like(x0)), x0, atol=0.1)

"""Prompts of any kind as points of one shared space, and mixtures of them (paper section 3.1, composable conditioning)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .errors import CoDiError

MIX_METHODS = ("linear", "renormalised", "spherical", "add-subtract")
_SPHERICAL_STEPS = 100


def mix(embeddings: Sequence[Tensor], weights: Sequence[float] | None = None, method: str = "linear") -> Tensor:
    """One prompt from several: unit embeddings (B, 1, D) and a weight each -> (B, 1, D).

    Only the ratios of the weights matter, but for add-subtract.
    linear: weighted sum divided by the sum of the weights, as published; shorter than unit length where prompts disagree.
    renormalised: the same direction at unit length. spherical: the weighted mean on the unit sphere (Frechet mean; of two
    prompts, the point that divides the arc between them). add-subtract: the plain sum, weights as they are; they may sum to 0.
    Negative weights move away from a prompt.
    Raises CoDiError for weights that are not finite or sum to zero, shapes that differ, and prompts that cancel out."""
    if not embeddings:
        raise CoDiError("nothing to mix: give at least one prompt")
    portions = shares(weights, len(embeddings), whole=method != "add-subtract")
    shapes = {tuple(e.shape) for e in embeddings}
    if len(shapes) > 1 or embeddings[0].ndim != 3:
        raise CoDiError(f"prompts to mix must all be (B, 1, D) of one model and one batch size, got {sorted(shapes)}")
    if method not in MIX_METHODS:
        raise CoDiError(f"unknown mixing method {method!r}: give one of {', '.join(MIX_METHODS)}")
    points = torch.stack(tuple(embeddings)).float()  # (n, B, 1, D)
    share = points.new_tensor(portions)[:, None, None, None]  # (n, 1, 1, 1)
    blend = (points * share).sum(dim=0)  # (B, 1, D)
    if method == "add-subtract" and blend.norm(dim=-1).min() < 1e-4:
        raise CoDiError(f"these prompts with weights {list(weights or portions)} cancel out: no direction is left. Change a weight")
    if method in ("renormalised", "spherical"):
        if blend.norm(dim=-1).min() < 1e-4 * max(map(abs, portions)):
            raise CoDiError(f"these prompts with weights {list(weights or portions)} cancel out: no direction is left. Change a weight")
        blend = normalize(blend, dim=-1)
        if method == "spherical":
            blend = _spherical_mean(normalize(points, dim=-1), share, blend)
    return blend.to(embeddings[0].dtype)


def shares(weights: Sequence[float] | None, count: int, *, whole: bool = True) -> list[float]:
    """Weights divided by their sum, or with `whole` off as they are.

    Raises CoDiError for another number of them, NaN or infinite ones, and a sum of zero."""
    weights = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(weights) != count:
        raise CoDiError(f"{len(weights)} weights for {count} prompts: give one weight per prompt")
    if not all(map(math.isfinite, weights)):
        raise CoDiError(f"weights must be finite numbers, got {weights}")
    if not whole:
        return weights
    largest = max(map(abs, weights)) or 1.0
    scaled = [w / largest for w in weights]  # only ratios matter; sums of huge numbers would overflow, products of tiny ones vanish
    total = math.fsum(scaled)
    if abs(total) <= 1e-6:
        raise CoDiError(f"the weights {weights} sum to {sum(weights):g}; they are divided by their sum, so it must not be 0. Change one")
    return [w / total for w in scaled]


def _spherical_mean(points: Tensor, share: Tensor, start: Tensor) -> Tensor:
    """Point m of the sphere where sum_i share_i log_m(points_i) = 0, by damped fixed-point steps along the tangent."""
    mean, damping = start, float(share.abs().sum())
    for _ in range(_SPHERICAL_STEPS):
        cosine = (points * mean).sum(dim=-1, keepdim=True).clamp(-1, 1)  # (n, B, 1, 1)
        tangent = points - cosine * mean
        # The angle from both sine and cosine: acos alone loses half the digits between near neighbours.
        sine = tangent.norm(dim=-1, keepdim=True)
        step = (share * torch.atan2(sine, cosine) * tangent / sine.clamp_min(1e-12)).sum(dim=0) / damping  # (B, 1, D)
        length = step.norm(dim=-1, keepdim=True)
        mean = normalize(length.cos() * mean + length.sin() * step / length.clamp_min(1e-12), dim=-1)
        if length.max() < 1e-6:
            break
    return mean

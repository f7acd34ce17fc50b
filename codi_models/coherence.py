"""Which prompts and outputs belong together: similarities in the shared space (paper section 3.1), and its two main axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .conditioning import Prompt, encode_prompt
from .errors import CoDiError
from .media import Progress
from .model import CoDi


def encode_outputs(model: CoDi, outputs: Mapping[str, Sequence | Tensor], progress: Progress = lambda _: None) -> dict[str, Tensor]:
    """Decoded outputs back to the shared space: modality -> (B, 1, D), unit length.

    image (B, 3, H, W) and video (B, F, 3, H, W) in 0..1, audio (B, N) in -1..1 at `config.mel.sample_rate`, text B strings.
    Raises CoDiError as `encode_prompt` does."""
    rate = model.config.mel.sample_rate
    points = {}
    for kind, rows in outputs.items():
        made = []
        for number, row in enumerate(rows):
            progress(number / len(rows))
            made.append(encode_prompt(model, Prompt(kind, (row, rate) if kind == "audio" else row)))
        points[kind] = torch.cat(made)
    return points


def similarities(points: Sequence[Tensor]) -> Tensor:
    """Cosines of every point with every other: n points (B, 1, D), those of batch 1 repeated -> (B, n, n).

    Raises CoDiError for no points, other shapes, batches that do not go together, and points that are zero, NaN or infinite."""
    stack = _stacked(points)  # (B, n, D)
    return (stack @ stack.transpose(1, 2)).clamp(-1, 1)


def scores(matrix: Tensor, outputs: int, *, among: str = "all") -> Tensor:
    """Mean similarity of each item of a batch: matrix (B, n, n), whose last `outputs` points are outputs -> (B,).

    among: "outputs" (pairs of outputs), "prompts" (each prompt with each output), "all" (both).
    Raises CoDiError for another `among`, and where there is no such pair."""
    if among not in AMONG:
        raise CoDiError(f"unknown pairs {among!r}: give one of {', '.join(AMONG)}")
    n = matrix.shape[-1]
    prompts = n - outputs
    pairs = [(i, j) for i in range(n) for j in range(max(i + 1, prompts), n)]  # at least one is an output
    if among == "outputs":
        pairs = [(i, j) for i, j in pairs if i >= prompts]
    elif among == "prompts":
        pairs = [(i, j) for i, j in pairs if i < prompts]
    if not pairs:
        raise CoDiError(f"nothing to compare: {prompts} prompts and {outputs} outputs have no pair of the kind {among!r}")
    rows, columns = zip(*pairs, strict=True)
    return matrix[:, list(rows), list(columns)].mean(dim=1)


AMONG = ("all", "prompts", "outputs")
"""Pairs that a score can be the mean of."""


def best(score: Tensor, count: int) -> list[int]:
    """Positions of the `count` highest scores (B,), best first; all where there are fewer. Equal scores keep their order."""
    if count < 1:
        raise CoDiError(f"{count} items cannot be picked: give at least 1")
    return torch.sort(score, descending=True, stable=True).indices[:count].tolist()


def principal_axes(points: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Points (n, D) on their two main axes (PCA): coordinates (n, 2), and the share of the variance that each axis shows.

    The axes' signs are fixed (the largest coordinate is positive), so that equal points give equal pictures.
    Raises CoDiError for fewer than two points."""
    if points.ndim != 2 or len(points) < 2:
        raise CoDiError(f"a map of the shared space needs at least two points, got {tuple(points.shape)}")
    centred = (points - points.mean(dim=0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    coordinates = torch.zeros(len(points), 2, dtype=torch.float64)
    used = min(2, len(s))
    coordinates[:, :used] = u[:, :used] * s[:used]
    top = coordinates.gather(0, coordinates.abs().argmax(dim=0, keepdim=True))  # (1, 2)
    coordinates *= torch.where(top < 0, -1.0, 1.0)
    total = float(s.square().sum()) or 1.0
    shares = [*(float(v) / total for v in s[:2].square()), 0.0, 0.0]
    return coordinates.float(), (shares[0], shares[1])


def _stacked(points: Sequence[Tensor]) -> Tensor:
    """(B, n, D), unit length."""
    shapes = [tuple(p.shape) for p in points]
    if not points or any(len(s) != 3 or s[1] != 1 or s[2] != shapes[0][2] for s in shapes):
        raise CoDiError(f"points of the shared space are (batch, 1, {shapes[0][-1] if shapes else 'D'}) of one model, got {shapes}")
    batch = max(s[0] for s in shapes)
    if wrong := [s[0] for s in shapes if s[0] not in (1, batch)]:
        raise CoDiError(f"batches of {wrong[0]} and {batch} points do not go together: give one point, or one per item")
    stack = torch.stack([p.float().cpu().expand(batch, 1, -1)[:, 0] for p in points], dim=1)  # (B, n, D)
    if not bool(torch.isfinite(stack).all()) or float(stack.norm(dim=-1).min()) < 1e-8:
        raise CoDiError("a point of the shared space is zero, NaN or infinite: check the node that it comes from")
    return normalize(stack, dim=-1)

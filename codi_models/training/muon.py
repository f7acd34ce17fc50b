"""The Muon optimiser (Jordan et al. 2024): steps of matrices are orthogonal, so that no direction of the weights waits for others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
NARROWEST = 16  # rows and columns that make a matrix worth it; biases, norms and maps to few channels go with AdamW
ITERATIONS, POLYNOMIAL = 5, (3.4445, -4.7750, 2.0315)
"""Of Newton and Schulz: the polynomial drives every singular value to between 0.7 and 1.2 in so many steps."""


class Muon(torch.optim.AdamW):
    """Muon for matrices, a convolution's weights (O, I, ...) among them as (O, I * ...), and AdamW for all other parameters.

    Steps are as large as those of AdamW on the mean (Liu et al. 2025, equation 4), so that both take one learning rate."""

    def __init__(self, parameters: Iterable[nn.Parameter], **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.matrices = [p for group in self.param_groups for p in group["params"] if p.ndim > 1 and min(p.flatten(1).shape) >= NARROWEST]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. The gradients of matrices are gone after it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        settings = {id(p): group for group in self.param_groups for p in group["params"]}
        for matrix in self.matrices:
            if matrix.grad is None:
                continue
            gradient, state, group = matrix.grad, self.state[matrix], settings[id(matrix)]
            if not state:
                state["step"], state["momentum"] = torch.tensor(0.0), torch.zeros_like(matrix)
            state["step"] += 1
            state["momentum"].mul_(MOMENTUM).add_(gradient)
            update = orthogonal(gradient.add(state["momentum"], alpha=MOMENTUM).flatten(1))
            size = 0.2 * max(update.shape) ** 0.5
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(matrix), alpha=-group["lr"] * size)
            matrix.grad = None  # so that AdamW passes over it
        super().step()
        return loss


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (O, I) with its singular vectors and singular values of about 1."""
    a, b, c = POLYNOMIAL
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x

"""The Muon optimiser (Jordan et al. 2024): steps of matrices are orthogonal, so that no direction of the weights waits for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
NARROWEST = 16  # rows and columns that make a matrix worth it; biases, norms and maps to few channels go with AdamW
ITERATIONS, POLYNOMIAL = 5, (3.4445, -4.7750, 2.0315)
"""Of Newton and Schulz: the polynomial drives every singular value to between 0.7 and 1.2 in so many steps."""


class Muon(torch.optim.AdamW):
    """Muon for matrices, a convolution's weights (O, I, ...) among them as (O, I * ...), and AdamW for all other parameters.

    Steps of both are of one size on the mean (Liu et al. 2025), so they share a learning rate. PyTorch's own takes two dimensions
    alone, and versions before 2.9 have none."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. The gradients of matrices are gone after it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.ndim > 1 and min(parameter.flatten(1).shape) >= NARROWEST:
                    self._turn(parameter, group["lr"], group["weight_decay"])
                    parameter.grad = None  # so that AdamW passes over it
        super().step()
        return loss

    def _turn(self, matrix: nn.Parameter, lr: float, decay: float) -> None:
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if not state:
            state["step"], state["momentum"] = torch.tensor(0.0), torch.zeros_like(matrix)
        state["step"] += 1
        state["momentum"].mul_(MOMENTUM).add_(gradient)
        update = orthogonal(gradient.add(state["momentum"], alpha=MOMENTUM).flatten(1))
        matrix.mul_(1 - lr * decay).add_(update.view_as(matrix), alpha=-lr * 0.2 * max(update.shape) ** 0.5)


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

"""One prediction from several: what a denoiser says to each facet of a prompt by itself, put together (see `facets`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layers import Context, Weighted


@dataclass(frozen=True)
class FacetedContext:
    """A prompt (B, n, D) and its facets.

    Rows of `untold` say nothing that a facet knows and are predicted as they are."""

    whole: Context  # (B, n, D)
    told: Tensor  # (T,) rows that have facets
    untold: Tensor  # (U,) the other rows
    apart: Context  # (U + (K + 1) T, n, D): the other rows; of the told ones K facets, one after the other, and last nothing
    facets: int  # K
    below: float  # timestep below which the facets count; above it `whole` does

    def map(self, fold: Callable[[Context], Context]) -> FacetedContext:
        """The same with both contexts folded."""
        return FacetedContext(fold(self.whole), self.told, self.untold, fold(self.apart), self.facets, self.below)

    def counts(self, timesteps: Tensor) -> bool:
        """Whether the facets count at these timesteps (B,)."""
        return len(self.told) > 0 and float(timesteps.max()) < self.below


Prompted = Context | FacetedContext
"""What a UNet can be prompted with."""


def composed(
    predict: Callable[..., Tensor], x: Tensor, timesteps: Tensor, context: FacetedContext, environment: Tensor | Weighted | None,
    alignment: float | Tensor,
) -> Tensor:  # fmt: skip
    """eps(x) + sum over the facets f of (eps(x, f) - eps(x)), for the rows that have facets (Liu et al. 2022, equation 11, weights 1).

    predict: a UNet's forward; all other arguments as it takes them."""
    rows = torch.cat([context.untold, *[context.told] * (context.facets + 1)])
    extra: dict[str, Any] = {"alignment": alignment[rows] if isinstance(alignment, Tensor) and alignment.ndim else alignment}
    if environment is not None:
        tokens = environment.tokens if isinstance(environment, Weighted) else environment
        extra["environment"] = Weighted(tokens[rows], environment.weights) if isinstance(environment, Weighted) else tokens[rows]
    noise = predict(x[rows], timesteps[rows], context.apart, **extra)
    count = len(context.untold)
    *facets, nothing = noise[count:].unflatten(0, (context.facets + 1, -1)).unbind(0)
    result = torch.empty_like(x)
    result[context.untold] = noise[:count]
    result[context.told] = nothing + sum(facet - nothing for facet in facets)
    return result

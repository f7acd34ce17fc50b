"""Places on the path of a UNet where its owner may change what flows, as ComfyUI's model patches do."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Hooks:
    """Changes nothing; subclasses override the places that they need. One object serves one call of a UNet.

    Connectors and environment encoders have no such places: they are CoDi's own, and patches are made for Stable Diffusion's blocks."""

    unfolded = False
    """Whether prompt attention is to be computed by its queries, though a prompt of one token needs none (`UNet.fold_context`)."""

    def start(self, x: Tensor) -> None:
        """The latent as the first layer takes it, (B*F, C, H, W)."""

    def enter(self, part: str, index: int) -> None:
        """A block is about to run: part "input", "middle" or "output", counted from 0."""

    def after_input(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Result (B*F, C, H, W) of an input block -> what goes on, and what the output block across gets."""
        return h, h

    def after_middle(self, h: Tensor) -> Tensor:
        """Result (B*F, C, H, W) of the middle block."""
        return h

    def before_output(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """What an output block gets: from the block before (B*F, C, H, W), and from across (B*F, C', H, W)."""
        return h, skip

    def transformer(self, block: Any, x: Tensor, context: Any, shape: tuple[int, ...]) -> Tensor:
        """A transformer block (`layers.TransformerBlock`) on x (B*F, N, C); shape of the map that it stands for, (B*F, C, H, W)."""
        return block(x, context)


PLAIN = Hooks()
"""As the network is."""

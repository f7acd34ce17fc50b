"""Alignment without training: outputs hear each other through the prompt encoders (wiring `prompt`).

Bridging alignment has trained one more ear than the environment encoders: encoders that read finished media. While outputs are denoised,
the clean latent that is expected of each (x0) is decoded, read by the encoder of its own kind, and becomes a prompt of the others in the
shared space. A kind of universal guidance (Bansal et al. 2023; for sound and video Xing et al. 2024, who follow gradients of such
encoders); here nothing is differentiated, for a denoiser that is conditioned on the shared space follows a point in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .alignment import Alignment
from .diffusion import Latents

Read = Callable[[str, Tensor], Tensor]
"""Modality and latents (B, ...) in diffusion space -> points of the shared space (B, 1, D), unit length."""


class PromptAlignment:
    """What the outputs of a run show so far. One for each run.

    read: see `reading.LatentReader`. points: modality -> what it shows, (B, 1, D); finished: of outputs that are made already."""

    def __init__(self, read: Read) -> None:
        self.read, self._calls = read, 0
        self.points: dict[str, Tensor] = {}
        self.finished: dict[str, Tensor] = {}

    def heard(self, target: str, alignment: Alignment) -> Tensor | None:
        """What an output hears, (B, 1, D): the others' points together; None before anything has been read."""
        sources = {m: weight for m, weight in alignment.prompt_sources(target, self.points).items() if m in self.points}
        if not sources:
            return None
        return normalize(torch.stack([weight * self.points[m] for m, weight in sources.items()]).sum(0), dim=-1)

    def prompt(self, target: str, own: Tensor, alignment: Alignment, timestep: float) -> Tensor | None:
        """The prompt (B, 1, D) of an output: the user's `own` and what the output hears, whose share grows as noise leaves; None where
        that is nothing."""
        if (heard := self.heard(target, alignment)) is None:
            return None
        return torch.lerp(own, heard.to(own), share(alignment, timestep).to(own))

    def update(self, clean: Latents, alignment: Alignment) -> None:
        """Read what is expected of the outputs, clean latents (B, ...) in diffusion space, where it is time to; finished ones are read
        already."""
        made = [m for m in clean if m not in self.finished]
        sources = {source for m in made for source in alignment.prompt_sources(m, {**clean, **self.finished})}
        if sources and self._calls % alignment.every == 0:
            self.points |= {m: self.read(m, clean[m]) for m in made if m in sources}
        self._calls += bool(sources)

    def finish(self, clean: Latents) -> None:
        """Read outputs that are made already, as `update` has them."""
        self.finished |= {m: self.read(m, x) for m, x in clean.items()}
        self.points |= self.finished


def share(alignment: Alignment, timestep: float) -> Tensor:
    """Share of what is heard in a prompt at a timestep, 999 the noisiest, (1, 1, 1) or (B, 1, 1): an early guess is a blur that names
    nothing yet."""
    strength = torch.as_tensor(alignment.strength, dtype=torch.float32).clamp(0, 1).reshape(-1, 1, 1)
    return strength * max(0.0, 1 - timestep / 999) ** 0.5

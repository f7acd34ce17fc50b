"""Facets of the shared space: what a prompt says, taken apart, so that what was never seen together can be put together.

Beyond the paper. A denoiser answers a prompt that it has never met with one that it has: contrastive training places a new pair of
attributes somewhere between known ones. Facets read each attribute of a prompt by itself, linearly, and with what they read

- the prompt is put together anew, as a sum of one part for each facet (`clarified`), which leaves out what embeddings of known pairs
  have beyond the sum of their attributes, and what is left of the modality gap;
- outputs are guided to agree only where it leaves something open (`left_open`);
- a denoiser can be asked for each facet apart (`Composition`): the product of experts of Liu et al. 2022, "Compositional Visual
  Generation with Composable Diffusion Models", equation 11.

Everything here is fitted in closed form to captions and media of known pairs (`training.facets`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .checkpoints import read_weights, save_weights
from .denoisers.faceted import FacetedContext
from .errors import CoDiError

FACETS_FILE = "facets.safetensors"
PARTS = ("reader", "values", "parts")

_SAID = 0.24  # of the way from silence to a value: what says nothing goes up to 0.22, one of three equal prompts 0.32 at the median
_BLUR = 0.005
_CERTAIN = 0.99  # that a facet is absent, or that it is there


@dataclass(frozen=True)
class Facet:
    """One attribute with n - 1 values and, last, its absence."""

    reader: Tensor  # (D + 1, D): an embedding and 1 -> the embedding of a caption that says this attribute and no other
    values: Tensor  # (n, D): embeddings of such captions; of the last one, the empty text
    parts: Tensor  # (n, D): what each value adds to a whole prompt

    @cached_property
    def silence(self) -> Tensor:
        """What is read where nothing is said, (D,): between the empty text and what is read of it, as captions of other facets lie."""
        weight, bias = self.reader[:-1], self.reader[-1]
        return (self.values[-1] + self.values[-1] @ weight + bias) / 2

    @cached_property
    def towards(self) -> Tensor:
        """(D, n - 1): what lies beside silence -> how far it goes towards each value, 1 for all the way."""
        return torch.linalg.pinv(self.values[:-1] - self.values[-1])


class Facets:
    """The facets of a model's shared space. `sharpness`: inverse variance of what the readers say about a value's embedding."""

    def __init__(self, facets: Mapping[str, Facet], base: Tensor, sharpness: float) -> None:
        self.facets, self.base, self.sharpness = dict(facets), base, sharpness

    @staticmethod
    def load(path: str | Path) -> Facets | None:
        """Read what `save` wrote; None where there is no such file. Raises CoDiError for any other content."""
        if not Path(path).exists():
            return None
        tensors, _ = read_weights(path)
        names = sorted(key.removesuffix(".reader") for key in tensors if key.endswith(".reader"))
        expected = {"base", "sharpness", *(f"{name}.{part}" for name in names for part in PARTS)}
        if set(tensors) != expected or not names or tensors["base"].ndim != 1 or tensors["sharpness"].numel() != 1:
            raise CoDiError(f"{path} holds no facets: they are base, sharpness, and {', '.join(PARTS)} of each; it has {sorted(tensors)}")
        width = len(tensors["base"])
        facets = {name: Facet(*(tensors[f"{name}.{part}"].float() for part in PARTS)) for name in names}
        for name, facet in facets.items():
            if facet.reader.shape != (width + 1, width) or facet.values.shape != facet.parts.shape or facet.values.shape[1:] != (width,):
                shapes = [tuple(t.shape) for t in (facet.reader, facet.values, facet.parts)]
                raise CoDiError(f"facet {name} of {path} has shapes {shapes}: they do not fit embeddings {width} wide. Restore the file")
        return Facets(facets, tensors["base"].float(), float(tensors["sharpness"]))

    def save(self, path: str | Path) -> None:
        """Write what `load` reads, float32."""
        tensors = {f"{name}.{part}": getattr(facet, part) for name, facet in self.facets.items() for part in PARTS}
        tensors |= {"base": self.base, "sharpness": torch.tensor(self.sharpness)}
        save_weights({key: tensor.contiguous() for key, tensor in tensors.items()}, path, dtype=torch.float32)

    def odds(self, prompt: Tensor) -> dict[str, Tensor]:
        """How likely each value is, (B, 1, D) -> facet -> (B, 1, n), each row summing to 1.

        Values share what absence leaves by their posterior where what is read is one of their embeddings and Gaussian noise, all values
        being equally likely. Absence is no such value, for a prompt that says nothing would then have a say in mixtures: it is told by
        how far what is read goes from silence towards any value, against `_SAID`. Prompts longer than 1 count as of length 1."""
        prompt = prompt.float()
        prompt = prompt / prompt.norm(dim=-1, keepdim=True).clamp_min(1)
        found = {}
        for name, facet in self.facets.items():
            weight, bias = facet.reader.to(prompt).split([prompt.shape[-1], 1])
            read = prompt @ weight + bias[0]
            said = (read - facet.silence.to(prompt)) @ facet.towards.to(prompt)  # (B, 1, n - 1)
            length = said.amax(dim=-1, keepdim=True) - said.amin(dim=-1, keepdim=True).clamp_min(0)  # (B, 1, 1)
            unsaid = torch.sigmoid((_SAID - length) / _BLUR)
            shares = (self.sharpness * normalize(read, dim=-1) @ facet.values[:-1].to(prompt).T).softmax(dim=-1)
            found[name] = torch.cat([shares * (1 - unsaid), unsaid], dim=-1)
        return found

    def whole(self, odds: Mapping[str, Tensor]) -> Tensor:
        """The prompt that has these values: facet -> (..., n) -> (..., D), unit length."""
        first = next(iter(odds.values()))
        return normalize(sum((share @ self.facets[name].parts.to(share) for name, share in odds.items()), self.base.to(first)), dim=-1)

    def clarified(self, prompt: Tensor) -> Tensor:
        """A prompt (B, 1, D) put together anew from its facets; as far as none of them is there, it stays as it is. Unit length."""
        odds = self.odds(prompt)
        nothing = torch.stack([share[..., -1:] for share in odds.values()]).prod(dim=0)  # (B, 1, 1)
        return normalize(torch.lerp(self.whole(odds), prompt.float(), nothing), dim=-1).to(prompt)

    def left_open(self, prompt: Tensor) -> dict[str, Tensor]:
        """How far a prompt (B, n, D) leaves each facet open, facet -> (B,) on the CPU: 0 where it says a value, 1 where it says none."""
        absent = {name: share[..., -1].flatten(1).amax(dim=1).cpu() for name, share in self.odds(prompt).items()}
        return {name: torch.where(p > _CERTAIN, 1.0, torch.where(p < 1 - _CERTAIN, 0.0, p)) for name, p in absent.items()}

    def each(self, odds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prompt of each facet by itself: facet -> (..., n) -> facet -> (..., D), unit length."""
        return {name: normalize(share @ self.facets[name].values.to(share), dim=-1) for name, share in odds.items()}


@dataclass(frozen=True)
class Composition:
    """Asks a denoiser for facets of its prompts apart, at timesteps below `below`.

    Where and how much of a thing there is, is decided before; what it looks like, of which every facet has its say, after."""

    facets: Facets
    names: tuple[str, ...]  # of the facets that are asked for
    below: float

    def __call__(self, context: Tensor) -> FacetedContext:
        """Prompt (B, n, D), or (B, F, n, D) with one for each frame, with its facets."""
        odds = {name: share for name, share in self.facets.odds(context).items() if name in self.names}
        absent = torch.stack([share[..., -1].flatten(1).amin(dim=1) for share in odds.values()]).amin(dim=0)  # (B,)
        told, untold = (absent < _CERTAIN).nonzero()[:, 0], (absent >= _CERTAIN).nonzero()[:, 0]
        points = self.facets.each({name: share[told] for name, share in odds.items()})
        nothing = {name: torch.zeros_like(share[told]) for name, share in odds.items()}
        for share in nothing.values():
            share[..., -1] = 1
        empty = next(iter(self.facets.each(nothing).values()))
        apart = torch.cat([context[untold], *(point.to(context) for point in [*points.values(), empty])])
        return FacetedContext(context, told, untold, apart, len(points), self.below)

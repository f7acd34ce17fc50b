"""Prompts of any kind as points of one shared space, and mixtures of them (paper sections 3.1 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from . import media
from .config import CoDiConfig
from .errors import CoDiError
from .modalities import MODALITIES
from .model import CoDi

PROMPT_KINDS = ("text", *(name for name in MODALITIES if name != "text"))
MIX_METHODS = ("linear", "renormalised", "spherical", "add-subtract")
DEFAULT_MIX = "linear"  # as published
_SPHERICAL_STEPS = 100


@dataclass(frozen=True)
class Prompt:
    """One prompt and its weight in the mixture.

    value by kind: text a string; image (3, H, W) in 0..1; audio ((N,) in -1..1, sample rate); video (F, 3, H, W) in 0..1, at the
    model's frame rate where time matters, or a `media.Video`; a string, Path or open file as image, audio or video is read.
    start, length: the part of a video or audio, in seconds; without a length all that there is, or that fits."""

    kind: str
    value: media.Source | Tensor | tuple[Tensor, int] | media.Video
    weight: float = 1.0
    start: float = 0.0
    length: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in PROMPT_KINDS:
            raise CoDiError(f"unknown kind of prompt {self.kind!r}: give one of {', '.join(PROMPT_KINDS)}")
        _ = self.span

    @property
    def span(self) -> media.Span:
        """The part of a video or audio that is meant. Raises CoDiError for times that are none."""
        return media.Span(self.start, self.length)

    @property
    def encoder(self) -> str:
        """Component that encodes prompts of this kind."""
        return MODALITIES[self.kind].encoder

    def read(self, config: CoDiConfig, progress: media.Progress = lambda _: None) -> Prompt:
        """The prompt with its file, if it is one, read as the encoders take it: of a video frames that are spread evenly over its time,
        at the size of the encoder. Raises CoDiError as `media` does."""
        if self.kind == "text" or not media.is_source(self.value):
            return self
        value: Any
        if self.kind == "audio":
            value = media.read_audio(self.value, rate=config.clap.sample_rate, span=self.span, progress=progress)
        else:
            from .encoders.preprocess import resize_image

            def fit(pixels: Tensor) -> Tensor:
                return resize_image(pixels[None], config.clip.image_size)[0]

            if self.kind == "image":
                value = media.read_image(self.value, fit=fit)
            else:
                value = media.read_video(self.value, config.sampling.frames, span=self.span, fit=fit, progress=progress)
        return Prompt(self.kind, value, self.weight)


@torch.inference_mode()
def encode_prompt(model: CoDi, prompt: Prompt, progress: media.Progress = lambda _: None) -> Tensor:
    """A read prompt -> (1, 1, D), unit length, in the shared space. progress: called with the part done of one that takes long.

    Raises CoDiError for tensors of another shape."""
    value = prompt.value
    if prompt.kind == "text":
        from .encoders.tokenizer import encode_prompts

        embedding = encode_prompts(model.clip, model.clip_tokenizer, [str(value)])
    elif prompt.kind == "audio":
        from .encoders.preprocess import encode_audio

        if not (isinstance(value, tuple) and isinstance(value[0], Tensor) and value[0].ndim == 1 and value[0].numel()):
            raise CoDiError("an audio prompt is a pair: a waveform (N,) with at least one sample, and its sample rate")
        embedding = encode_audio(model.clap, value[0][None], int(value[1]), progress=progress)
    else:
        from .encoders.preprocess import clip_image, clip_video, spread

        value = value.frames if isinstance(value, media.Video) else value
        if not (isinstance(value, Tensor) and value.ndim == (3 if prompt.kind == "image" else 4)):
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CoDiError(f"an image prompt is pixels (3, H, W), a video prompt (F, 3, H, W), in 0..1; got {given} as {prompt.kind}")
        size = model.config.clip.image_size
        if prompt.kind == "image":
            embedding = model.clip.encode_image(clip_image(value[None], size).to(model.device, model.dtype))
        else:
            frames = spread(value[None], model.config.sampling.frames)
            embedding = model.clip.encode_video(clip_video(frames, size).to(model.device, model.dtype))
    return model.space.align(embedding.float(), prompt.kind)


def unconditional(model: CoDi, prompts: Sequence[Prompt], method: str = DEFAULT_MIX) -> list[Prompt]:
    """What guidance leads away from, with the weights to mix it by.

    As published, each kind of prompt has its own, see `absent`. Where there is no prompt, and for plain sums, whose weights may sum
    to 0, it is the empty text."""
    if model.space.means or not prompts or method == "add-subtract":
        return [absent(model, "text")]
    return [replace(absent(model, prompt.kind), weight=prompt.weight) for prompt in prompts]


def absent(model: CoDi, kind: str) -> Prompt:
    """The prompt that stands for none of its kind: the empty text, grey pixels, silence; the empty text for all kinds where the modality
    gap is closed (`model.space` has means)."""
    if kind == "text" or model.space.means:
        return Prompt("text", "")
    if kind == "audio":
        clap = model.config.clap
        return Prompt(kind, (torch.zeros(round(clap.clip_seconds * clap.sample_rate)), clap.sample_rate))
    grey = torch.full((3, 8, 8), 0.5)
    return Prompt(kind, grey if kind == "image" else grey[None])


def mix(embeddings: Sequence[Tensor], weights: Sequence[float] | None = None, method: str = DEFAULT_MIX) -> Tensor:
    """One prompt from several: unit embeddings (B, 1, D) and a weight each -> (B, 1, D).

    Only the ratios of the weights matter, but for add-subtract.
    linear: weighted sum divided by the sum of the weights, as published; shorter than unit length where prompts disagree.
    renormalised: the same direction at unit length. spherical: the weighted mean on the unit sphere (Frechet mean; of two
    prompts, the point that divides the arc between them). add-subtract: the plain sum, weights as they are; they may sum to 0.
    Negative weights move away from a prompt.
    Raises CoDiError for weights that are not finite or sum to zero, shapes that differ, and prompts that cancel out."""
    if not embeddings:
        raise CoDiError("nothing to mix: give at least one prompt")
    parts = fractions(weights, len(embeddings), normalise=method != "add-subtract")
    shapes = {tuple(e.shape) for e in embeddings}
    if len(shapes) > 1 or embeddings[0].ndim != 3:
        raise CoDiError(f"prompts to mix must all be (B, 1, D) of one model and one batch size, got {sorted(shapes)}")
    if method not in MIX_METHODS:
        raise CoDiError(f"unknown mixing method {method!r}: give one of {', '.join(MIX_METHODS)}")
    points = torch.stack(tuple(embeddings)).float()  # (n, B, 1, D)
    fraction = points.new_tensor(parts)[:, None, None, None]  # (n, 1, 1, 1)
    blend = (points * fraction).sum(dim=0)  # (B, 1, D)
    if method == "add-subtract" and blend.norm(dim=-1).min() < 1e-4:
        raise CoDiError(f"these prompts with weights {list(weights or parts)} cancel out: no direction is left. Change a weight")
    if method in ("renormalised", "spherical"):
        if blend.norm(dim=-1).min() < 1e-4 * max(map(abs, parts)):
            raise CoDiError(f"these prompts with weights {list(weights or parts)} cancel out: no direction is left. Change a weight")
        blend = normalize(blend, dim=-1)
        if method == "spherical":
            blend = _spherical_mean(normalize(points, dim=-1), fraction, blend)
    return blend.to(embeddings[0].dtype)


def fractions(weights: Sequence[float] | None, count: int, *, normalise: bool = True) -> list[float]:
    """Weights divided by their sum, or without `normalise` as they are.

    Raises CoDiError for another number of them, NaN or infinite ones, and a sum of zero."""
    weights = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(weights) != count:
        raise CoDiError(f"{len(weights)} weights for {count} prompts: give one weight per prompt")
    if not all(map(math.isfinite, weights)):
        raise CoDiError(f"weights must be finite numbers, got {weights}")
    if not normalise:
        return weights
    largest = max(map(abs, weights)) or 1.0
    scaled = [w / largest for w in weights]  # only ratios matter; sums of huge numbers would overflow, products of tiny ones vanish
    total = math.fsum(scaled)
    if abs(total) <= 1e-6:
        raise CoDiError(f"the weights {weights} sum to {sum(weights):g}; they are divided by their sum, so it must not be 0. Change one")
    return [w / total for w in scaled]


def _spherical_mean(points: Tensor, fraction: Tensor, start: Tensor) -> Tensor:
    """Point m of the sphere where sum_i fraction_i log_m(points_i) = 0, by damped fixed-point steps along the tangent."""
    mean, damping = start, float(fraction.abs().sum())
    for _ in range(_SPHERICAL_STEPS):
        cosine = (points * mean).sum(dim=-1, keepdim=True).clamp(-1, 1)  # (n, B, 1, 1)
        tangent = points - cosine * mean
        # The angle from both sine and cosine: acos alone loses half the digits between near neighbours.
        sine = tangent.norm(dim=-1, keepdim=True)
        step = (fraction * torch.atan2(sine, cosine) * tangent / sine.clamp_min(1e-12)).sum(dim=0) / damping  # (B, 1, D)
        length = step.norm(dim=-1, keepdim=True)
        mean = normalize(length.cos() * mean + length.sin() * step / length.clamp_min(1e-12), dim=-1)
        if length.max() < 1e-6:
            break
    return mean

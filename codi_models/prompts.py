"""Prompts of any kind to embeddings of the shared space, and what stands for no prompt (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import media
from .config import CoDiConfig
from .errors import CoDiError
from .model import CoDi

PROMPT_KINDS = ("text", "image", "audio", "video")


@dataclass(frozen=True)
class Prompt:
    """One prompt and its weight in the mixture.

    value by kind: text a string; image (3, H, W) in 0..1; audio ((N,) in -1..1, sample rate); video (F, 3, H, W) in 0..1, at the
    model's frame rate where time matters, or a `media.Video`; a string or Path as image, audio or video is a file to read.
    start, length: the part of a video or audio, in seconds; without a length all that there is, or that fits."""

    kind: str
    value: str | Path | Tensor | tuple[Tensor, int] | media.Video
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
        return "clap" if self.kind == "audio" else "clip"

    def read(self, config: CoDiConfig, progress: media.Progress = lambda _: None) -> Prompt:
        """The prompt with its file, if it is one, read as the encoders take it: of a video frames that are spread evenly over its time,
        at the size of the encoder. Raises CoDiError as `media` does."""
        if self.kind == "text" or not isinstance(self.value, (str, Path)):
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
def encode_prompt(model: CoDi, prompt: Prompt) -> Tensor:
    """A read prompt -> (1, 1, D), unit length, in the shared space. Raises CoDiError for tensors of another shape."""
    value = prompt.value
    if prompt.kind == "text":
        from .encoders.tokenizer import encode_prompts

        embedding = encode_prompts(model.clip, model.clip_tokenizer, [str(value)])
    elif prompt.kind == "audio":
        from .encoders.preprocess import encode_audio

        if not (isinstance(value, tuple) and isinstance(value[0], Tensor) and value[0].ndim == 1 and value[0].numel()):
            raise CoDiError("an audio prompt is a pair: a waveform (N,) with at least one sample, and its sample rate")
        embedding = encode_audio(model.clap, value[0][None].to(model.device), value[1])
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


def prompted(model: CoDi, mixture: Tensor, composition: str | None = None) -> Tensor:
    """What denoisers are prompted with: a prompt or a mixture (B, n, D), in the composition "facets" put together anew.

    After the mixing, not before: a picture says nothing of beats, and put together anew it says that firmly, against prompts that do.
    composition: one of COMPOSITIONS; None is the model's own. Raises CoDiError as `CoDi.known_facets` does."""
    facets = model.known_facets(composition or model.config.sampling.composition)
    return mixture if facets is None else facets.clarified(mixture)


def unconditional(model: CoDi, prompts: Sequence[Prompt]) -> list[Prompt]:
    """What guidance leads away from, with the weights to mix it by.

    As published, each kind of prompt has its own: the empty text, grey pixels, silence. Where the modality gap is closed
    (`model.space` has means), and where there is no prompt, the empty text."""
    if model.space.means or not prompts:
        return [Prompt("text", "")]
    clap = model.config.clap
    grey, silence = torch.full((3, 8, 8), 0.5), torch.zeros(round(clap.clip_seconds * clap.sample_rate))
    nothing = {"text": "", "image": grey, "video": grey[None], "audio": (silence, clap.sample_rate)}
    return [Prompt(prompt.kind, nothing[prompt.kind], prompt.weight) for prompt in prompts]  # type: ignore[arg-type]

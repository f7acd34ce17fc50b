"""Encode prompts of any kind to CONDITIONING in the shared space."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..codi_models.errors import CoDiError
from ..codi_models.media import MAX_SECONDS
from ..codi_models.prompts import Prompt, encode_prompt
from .host.handle import CoDiHandle
from .schema import CodiModel, schema


def _schema(kind: str, description: str, prompt: Any) -> io.Schema:
    return schema(
        node_id=f"CoDiEncode{kind}",
        display_name=f"CoDi Encode {kind}",
        description=description,
        inputs=[CodiModel.Input("codi"), prompt],
        outputs=[io.Conditioning.Output(display_name="conditioning")],
    )


def _conditioning(codi: CoDiHandle, prompts: list[Prompt]) -> io.NodeOutput:
    """One row per prompt: (B, 1, D). Progress and interrupt between prompts."""
    rows, bar = [], comfy.utils.ProgressBar(len(prompts))
    for prompt in prompts:
        mm.throw_exception_if_processing_interrupted()
        rows.append(encode_prompt(codi.model, prompt).to(mm.intermediate_device()))
        bar.update(1)
    return io.NodeOutput([[torch.cat(rows), {}]])


class EncodeText(io.ComfyNode):
    """A sentence."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        text = io.String.Input(
            "text", multiline=True, dynamic_prompts=True, default="", tooltip="Any length; empty for an unconditional prompt."
        )
        return _schema("Text", "A text prompt. Connect one with an empty text as negative.", text)

    @classmethod
    def execute(cls, codi: CoDiHandle, text: str) -> io.NodeOutput:
        return _conditioning(codi, [Prompt("text", text)])


class EncodeImage(io.ComfyNode):
    """Pictures; a batch gives one prompt per picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("Image", "A picture prompt. A batch of pictures goes with a batch of outputs.", io.Image.Input("image"))

    @classmethod
    def execute(cls, codi: CoDiHandle, image: Tensor) -> io.NodeOutput:
        return _conditioning(codi, [Prompt("image", picture) for picture in _pixels(image)])


class EncodeAudio(io.ComfyNode):
    """Sounds; a batch gives one prompt per sound."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("Audio", f"A sound prompt, up to {MAX_SECONDS / 60:g} minutes.", io.Audio.Input("audio"))

    @classmethod
    def execute(cls, codi: CoDiHandle, audio: dict | None) -> io.NodeOutput:
        if audio is None:
            raise CoDiError("no sound was given: a clip without sound cannot be an audio prompt")
        wave, rate = audio["waveform"].float(), int(audio["sample_rate"])
        if wave.shape[-1] == 0:
            raise CoDiError("the sound has no samples: give one of at least a few milliseconds")
        if wave.shape[-1] > MAX_SECONDS * rate:
            raise CoDiError(
                f"the sound is {wave.shape[-1] / rate / 60:.1f} minutes long, a prompt may have {MAX_SECONDS / 60:g}: "
                "trim it first (Trim Audio Duration)"
            )
        return _conditioning(codi, [Prompt("audio", (sound, rate)) for sound in wave.mean(dim=1)])


class EncodeVideo(io.ComfyNode):
    """A clip, as VIDEO or as a batch of frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        clip = io.MultiType.Input(
            "video",
            types=[io.Video, io.Image],
            tooltip="A VIDEO, or its frames as a batch of images. Sound is ignored: use CoDi Encode Audio.",
        )
        return _schema("Video", "A clip prompt, from a video or from frames.", clip)

    @classmethod
    def execute(cls, codi: CoDiHandle, video: Any) -> io.NodeOutput:
        if not isinstance(video, Tensor):
            if (seconds := video.get_duration()) > MAX_SECONDS:
                raise CoDiError(f"the clip is {seconds / 60:.1f} minutes long, a prompt may have {MAX_SECONDS / 60:g}: trim it first")
            video = video.get_components().images
        frames = _pixels(video)
        wanted = min(codi.config.sampling.frames, len(frames))
        middles = [(2 * i + 1) * len(frames) // (2 * wanted) for i in range(wanted)]
        return _conditioning(codi, [Prompt("video", frames[middles])])


def _pixels(image: Tensor) -> Tensor:
    """(B, H, W, 3 or more) -> (B, 3, H, W), float32. Raises CoDiError for an empty batch."""
    if image.ndim != 4 or not image.numel():
        raise CoDiError(f"an IMAGE is (batch, height, width, channels) with at least one picture, got {tuple(image.shape)}")
    if image.shape[-1] == 1:
        image = image.expand(-1, -1, -1, 3)
    return image[..., :3].movedim(-1, 1).float().cpu()

"""Encode prompts of any kind to CONDITIONING in the shared space."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor

from ..codi_models.conditioning import Prompt, encode_prompt
from ..codi_models.encoders.preprocess import resize_image
from ..codi_models.errors import CoDiError
from ..codi_models.media import Audio, Limits, Span
from .host.frames import Frames, working
from .host.handle import CoDiHandle
from .host.unconditional import marked
from .keep import span_inputs
from .schema import CODI_TIP, PROMPTS, CodiModel, Node, schema


def _schema(kind: str, description: str, *prompt: Any, aliases: list[str]) -> io.Schema:
    return schema(
        node_id=f"CoDiEncode{kind}",
        display_name=f"CoDi Encode {kind}",
        category=PROMPTS,
        description=description,
        search_aliases=aliases,
        inputs=[CodiModel.Input("codi", tooltip=CODI_TIP), *prompt],
        outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="A point of the shared space, for samplers and mixers.")],
    )


def _conditioning(codi: CoDiHandle, prompts: list[Prompt]) -> io.NodeOutput:
    """One row per prompt of a kind: (B, 1, D). Progress and interrupt between prompts, and between parts of a long one."""
    rows, progress = [], working()
    for number, prompt in enumerate(prompts):

        def part(done: float, before: int = number) -> None:
            progress((before + done) / len(prompts))

        part(0.0)
        rows.append(encode_prompt(codi.model, prompt, part).to(mm.intermediate_device()))
    return io.NodeOutput(marked(codi, torch.cat(rows), prompts[0].kind))


class EncodeText(Node):
    """A sentence."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        text = io.String.Input(
            "text", multiline=True, dynamic_prompts=True, default="", tooltip="Any length; empty for an unconditional prompt."
        )
        return _schema("Text", "A text prompt.", text, aliases=["prompt", "clip text encode"])

    @classmethod
    def execute(cls, codi: CoDiHandle, text: str) -> io.NodeOutput:
        return _conditioning(codi, [Prompt("text", text)])


class EncodeImage(Node):
    """Images; a batch gives one prompt per image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        image = io.Image.Input("image", tooltip="One image, or a batch: one prompt for each.")
        mask = io.Mask.Input("mask", optional=True, tooltip="Where to look: the image is cut to the box around what is marked.")
        description = "An image prompt. A batch of images goes with a batch of outputs."
        return _schema("Image", description, image, mask, aliases=["image prompt", "picture prompt", "clip vision", "variation"])

    @classmethod
    def execute(cls, codi: CoDiHandle, image: Tensor, mask: Tensor | None = None) -> io.NodeOutput:
        pictures = _pixels(image)
        if mask is not None:
            return _conditioning(codi, [Prompt("image", picture) for picture in _cut(pictures, mask)])
        return _conditioning(codi, [Prompt("image", picture) for picture in pictures])


class EncodeAudio(Node):
    """Audio; a batch gives one prompt per item."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        audio = io.Audio.Input("audio", tooltip="Any sample rate; channels are averaged. A batch gives one prompt for each item.")
        aliases = ["sound prompt", "clap", "from audio"]
        return _schema("Audio", "An audio prompt, of up to ten minutes.", audio, *span_inputs(), aliases=aliases)

    @classmethod
    def execute(cls, codi: CoDiHandle, audio: dict, start: float = 0.0, length: float = 0.0) -> io.NodeOutput:
        wave, rate = Audio(audio["waveform"], audio["sample_rate"]).part(Span(start, length or None))
        Limits.current().check("seconds", wave.shape[-1] / rate, "the audio")
        return _conditioning(codi, [Prompt("audio", (sound.float().mean(dim=0), rate)) for sound in wave])


class EncodeVideo(Node):
    """Video, as VIDEO or as a batch of frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        video = io.MultiType.Input(
            "video",
            types=[io.Video, io.Image],
            tooltip="A VIDEO, or its frames as a batch of images. Its audio is ignored: use CoDi Encode Audio.",
        )
        aliases = ["clip prompt", "video to audio", "foley"]
        return _schema("Video", "A video prompt, from a video or from frames.", video, *span_inputs(), aliases=aliases)

    @classmethod
    def execute(cls, codi: CoDiHandle, video: Any, start: float = 0.0, length: float = 0.0) -> io.NodeOutput:
        usual, span = codi.config.sampling, Span(start, length or None)

        def fit(frame: Tensor) -> Tensor:
            return resize_image(frame[None], codi.config.clip.image_size)[0]

        read = Frames(video, usual.frame_rate).read(usual.frames, rate=None, span=span, fit=fit, progress=working())
        return _conditioning(codi, [Prompt("video", read)])


def _pixels(image: Tensor) -> Tensor:
    """(B, H, W, 1, 3 or 4) -> (B, 3, H, W), float32."""
    if image.shape[-1] == 1:
        image = image.expand(-1, -1, -1, 3)
    return image[..., :3].movedim(-1, 1).float().cpu()


def _cut(pictures: Tensor, mask: Tensor) -> list[Tensor]:
    """Pictures (B, 3, H, W) cut to the boxes around their masks (B or 1, h, w), which are scaled to the pictures' size.

    Raises CoDiError where a mask marks nothing, or where there are not as many masks as pictures."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
    if len(mask) not in (1, len(pictures)):
        raise CoDiError(f"{len(mask)} masks do not go with {len(pictures)} images: give one mask, or one per image")
    marked = torch.nn.functional.interpolate(mask, size=pictures.shape[-2:], mode="bilinear")[:, 0] > 0.5  # (B, H, W)
    cut = []
    for picture, where in zip(pictures, marked.expand(len(pictures), -1, -1), strict=True):
        rows, columns = where.any(dim=1).nonzero(), where.any(dim=0).nonzero()
        if not len(rows):
            raise CoDiError("the mask marks nothing of the image: paint where to look, or disconnect it")
        cut.append(picture[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1])
    return cut

"""Keep some outputs, or places of them, and generate the rest to fit (paper section 3.4: conditional joint generation)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..codi_models.errors import CoDiError
from ..codi_models.media import Span, moments_at_rate
from ..codi_models.modalities import MODALITIES
from ..codi_models.settings import unusual_sizes
from .host import parts as latents
from .host.frames import Frames, working
from .host.handle import CoDiHandle
from .host.masks import masks_of, spatial, with_masks
from .host.media import Note, encode_part
from .schema import ADVANCED, CODI_TIP, LATENTS, CodiModel, Node, schema


def _media() -> list[Any]:
    return [
        io.Image.Input("image", optional=True, tooltip="An image, or one for every sample of the batch."),
        io.MultiType.Input("video", types=[io.Video, io.Image], optional=True, tooltip="A VIDEO, or its frames as a batch of images."),
        io.Audio.Input("audio", optional=True, tooltip="Audio, or one for every sample of the batch."),
        io.String.Input("text", optional=True, force_input=True, tooltip="A caption."),
    ]


def span_inputs() -> list[Any]:
    """Widgets that choose a part of video and audio."""
    return [
        io.Float.Input(
            "start",
            default=0.0,
            min=0.0,
            max=86400.0,
            step=0.01,
            optional=True,
            tooltip="Seconds of video and audio that are passed over; both are taken from there.",
        ),
        io.Float.Input(
            "length",
            default=0.0,
            min=0.0,
            max=86400.0,
            step=0.01,
            optional=True,
            tooltip="Seconds of video and audio that are taken. 0: all there is, or as much as fits.",
        ),
    ]


def _extension() -> list[Any]:
    return [
        io.Int.Input(
            "last_frames",
            default=0,
            min=0,
            max=256,
            optional=True,
            tooltip="Extends a video: its last so many frames become the first of the one that is made. 0: the video from its beginning.",
        ),
        io.Float.Input(
            "last_seconds",
            default=0.0,
            min=0.0,
            max=60.0,
            step=0.01,
            optional=True,
            tooltip="Extends audio: its last so many seconds become the first of the one that is made. 0: the audio from its beginning.",
        ),
    ]


class MediaToLatent(Node):
    """What is connected as a joint LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiMediaToLatent",
            display_name="CoDi Media to Latent",
            category=LATENTS,
            description="Encodes what is connected, of image, video, audio and caption, to one joint LATENT, as for variations.",
            search_aliases=["encode latent", "vae encode", "img2img", "picture", "clip", "sound"],
            inputs=[
                CodiModel.Input("codi", tooltip=CODI_TIP),
                io.Int.Input("width", default=0, min=0, max=4096, step=8, tooltip="Pixels, of image and video; 0: the model's."),
                io.Int.Input("height", default=0, min=0, max=4096, step=8, tooltip="Pixels, of image and video; 0: the model's."),
                *_media(),
                *span_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="All parts, for CoDi Preview or the Decode nodes.")],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, width: int, height: int, start: float = 0.0, length: float = 0.0, **media: Any) -> io.NodeOutput:
        given, span, lines = _given(media), Span(start, length or None), list[str]()
        frames, seconds, rate = 1, 1.0, codi.config.sampling.frame_rate
        if "audio" in given:
            total = given["audio"]["waveform"].shape[-1] / int(given["audio"]["sample_rate"])
            seconds = max(0.01, min(span.end, total) - start)
        if "video" in given:
            given["video"] = Frames(given["video"], rate)
            most = codi.config.vision_denoiser.max_frames
            shown = min(span.end, given["video"].seconds(working())) - start
            frames = min(most, len(moments_at_rate(rate, most, shown)))
            if shown > most / rate:  # audio of the same span
                seconds = min(seconds, most / rate)
        counts = [len(given["image"])] if "image" in given else []
        counts += [len(given["audio"]["waveform"])] if "audio" in given else []
        sizes = latents.sizes_of(codi.config, list(given), width=width, height=height, frames=frames, seconds=seconds)
        lines += unusual_sizes(codi.config, sizes)
        out = latents.empty(codi.config, sizes, max(counts, default=1))
        parts, _ = _placed(codi, latents.split(out, codi.config), given, span=span, note=lines.append)
        return io.NodeOutput({**out, "samples": latents.join(parts)}, ui=said(lines))


class Keep(Node):
    """Media put into a joint LATENT, to stay as they are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiKeep",
            display_name="CoDi Keep Media",
            category=LATENTS,
            description="Puts media into a joint LATENT to stay as they are; the other outputs are generated to fit: audio for a video.",
            search_aliases=[
                "inpaint",
                "foley",
                "sound for a clip",
                "video to audio",
                "extend video",
                "extend clip",
                "picture to sound",
                "complete",
            ],
            inputs=[
                CodiModel.Input("codi", tooltip=CODI_TIP),
                io.Latent.Input("latent", tooltip="From CoDi Empty Joint Latent, with all outputs: the kept and the generated."),
                *_media(),
                io.Mask.Input("mask", optional=True, tooltip="White: generated anew, in the kept image and video."),
                *_extension(),
                *span_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="LATENT whose noise mask keeps what was connected.")],
        )

    @classmethod
    def execute(
        cls,
        codi: CoDiHandle,
        latent: dict,
        mask: Tensor | None = None,
        last_frames: int = 0,
        last_seconds: float = 0.0,
        start: float = 0.0,
        length: float = 0.0,
        **media: Any,
    ) -> io.NodeOutput:
        given, span, lines = _given(media), Span(start, length or None), list[str]()
        last = {"video": last_frames, "audio": last_seconds}
        parts, covered = _placed(codi, latents.split(latent, codi.config), given, last, span=span, note=lines.append)
        masks = masks_of(latent, codi.config)
        for m in given:
            keep = torch.zeros_like(masks[m])
            if m in ("video", "audio"):
                keep[:, :, covered[m] :] = 1
            if mask is not None and m in ("image", "video"):
                keep = torch.maximum(keep, spatial(mask, parts[m]))
            masks[m] = keep
        return io.NodeOutput(with_masks(latent, parts, masks), ui=said(lines))


class Mask(Node):
    """What of a joint LATENT is generated: by output, place and time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiMask",
            display_name="CoDi Mask Latent",
            category=LATENTS,
            description="Says which outputs of a joint LATENT are generated, and where and when; all else is kept.",
            search_aliases=["noise mask", "inpaint", "keep"],
            inputs=[
                CodiModel.Input("codi", tooltip=CODI_TIP),
                io.Latent.Input("latent", tooltip="A joint LATENT that holds what is to be kept."),
                *[io.Boolean.Input(m, default=False, tooltip=f"Generate {m}; off: keep it.") for m in MODALITIES],
                io.Mask.Input("mask", optional=True, tooltip="White: where image and video are generated."),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Video and audio are generated from here on; 0 is their beginning.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Video and audio are generated up to here; 1 is their end.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="All parts, for CoDi Preview or the Decode nodes.")],
        )

    @classmethod
    def execute(
        cls, codi: CoDiHandle, latent: dict, mask: Tensor | None = None, start: float = 0.0, end: float = 1.0, **generate: bool
    ) -> io.NodeOutput:
        if not start < end:
            raise CoDiError(f"generate from {start:g} to {end:g} of the length: start must come before end")
        parts = latents.split(latent, codi.config)
        masks = {m: torch.full((part.shape[0], 1, *part.shape[2:]), float(bool(generate.get(m)))) for m, part in parts.items()}
        for m, part in parts.items():
            if m in ("video", "audio"):
                first, stop = round(start * part.shape[2]), round(end * part.shape[2])
                masks[m][:, :, :first] = 0
                masks[m][:, :, stop:] = 0
            if mask is not None and m in ("image", "video"):
                masks[m] = masks[m] * spatial(mask, part)
        if not any(bool(m.any()) for m in masks.values()):
            raise CoDiError(f"nothing is left to generate: switch on one of {', '.join(parts)}, or mark a larger place or time")
        return io.NodeOutput(with_masks(latent, parts, masks))


def _given(media: dict[str, Any]) -> dict[str, Any]:
    given = {m: media[m] for m in MODALITIES if media.get(m) is not None}
    if not given:
        raise CoDiError("nothing was given: connect an image, a video, audio or a text")
    return given


def said(lines: list[str]) -> Any:
    """What a node tells its user, as it is shown on the node; None for nothing."""
    return ui.PreviewText("\n".join(lines)) if lines else None


def _placed(
    codi: CoDiHandle,
    parts: dict[str, Tensor],
    given: dict[str, Any],
    last: Mapping[str, float] | None = None,
    *,
    span: Span,
    note: Note,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Parts with the media, or the last frames or seconds of them, at their beginning; and how many frames or time steps each covers."""
    parts, covered, last = dict(parts), {}, last or {}
    for m, media in given.items():
        if m not in parts:
            raise CoDiError(f"{m} is to be kept, but this LATENT holds only {', '.join(parts)}: switch it on in CoDi Empty Joint Latent")
        z = encode_part(codi, m, media, parts[m].shape, last=last.get(m, 0), span=span, note=note).to(parts[m])
        whole = parts[m].clone()
        if m in ("video", "audio"):
            covered[m] = z.shape[2]
            whole[:, :, : z.shape[2]] = z
        else:
            whole[:] = z
        parts[m] = whole
    return parts, covered

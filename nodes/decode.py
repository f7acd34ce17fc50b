"""Decode the parts of a joint LATENT, and show them on the node."""

from __future__ import annotations

import math
import os
import uuid
from fractions import Fraction
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types, io, ui
from torch import Tensor

from ..codi_models.errors import CoDiError
from ..codi_models.latents import decode_text
from ..codi_models.media import LONGER_AUDIO, allowed_rate, fit_lengths, resample, write_mp4
from .host.frames import working
from .host.handle import CoDiHandle
from .host.media import Note
from .host.parts import check_room, take
from .host.vae import AudioVAE, ImageVAE
from .schema import ADVANCED, CODI_TIP, MEDIA, CodiModel, Node, schema


def _inputs(*more: Any) -> list[Any]:
    return [CodiModel.Input("codi", tooltip=CODI_TIP), io.Latent.Input("latent", tooltip="Sampled joint LATENT."), *more]


def frame_rate_input() -> Any:
    """Widget of a video's frame rate."""
    return io.Float.Input(
        "frame_rate",
        default=0.0,
        min=0.0,
        max=120.0,
        step=0.01,
        optional=True,
        extra_dict=ADVANCED,
        tooltip="Frames per second; 0: the model's own.",
    )


def longer_audio_input() -> Any:
    """Widget of what becomes of audio that is longer than its video."""
    return io.Combo.Input(
        "longer_audio",
        options=list(LONGER_AUDIO),
        default="cut",
        optional=True,
        extra_dict=ADVANCED,
        tooltip="Audio longer than its video, in the video: cut it, loop the frames, or hold the last one. The audio output has all of it.",
    )


def words_seed_input() -> Any:
    """Widget of the seed of captions."""
    return io.Int.Input(
        "words_seed",
        default=0,
        min=0,
        max=2**64 - 1,
        optional=True,
        extra_dict=ADVANCED,
        tooltip="Draws words where the model does not always take the likeliest.",
    )


class DecodeImage(Node):
    """Image part of a LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiDecodeImage",
            display_name="CoDi Decode Image",
            category=MEDIA,
            description="Decodes the image of a joint LATENT and shows it.",
            search_aliases=["latent to image", "picture", "vae decode"],
            is_output_node=True,
            inputs=_inputs(),
            outputs=[io.Image.Output(display_name="image", tooltip="For Save Image and any other image node.")],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict) -> io.NodeOutput:
        image = ImageVAE(codi).decode(take(latent, "image", codi.config))
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


class DecodeVideo(Node):
    """Video part of a LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiDecodeVideo",
            display_name="CoDi Decode Video",
            category=MEDIA,
            description="Decodes the video of a joint LATENT and plays it, with audio where some is connected.",
            search_aliases=["latent to video", "clip", "frames", "vae decode"],
            is_output_node=True,
            inputs=_inputs(
                io.Audio.Input("audio", optional=True, tooltip="Audio to put into the video, from CoDi Decode Audio."),
                frame_rate_input(),
                longer_audio_input(),
            ),
            outputs=[
                io.Image.Output(display_name="frames", tooltip="Frames of all videos of the batch, one after another."),
                io.Video.Output(display_name="video", tooltip="The first video of the batch."),
            ],
        )

    @classmethod
    def execute(
        cls, codi: CoDiHandle, latent: dict, audio: dict | None = None, frame_rate: float = 0.0, longer_audio: str = "cut"
    ) -> io.NodeOutput:
        clips = ImageVAE(codi).decode(take(latent, "video", codi.config))  # (B, F, H, W, 3)
        rate = Fraction(frame_rate or codi.config.sampling.frame_rate).limit_denominator(1000)
        lines: list[str] = []
        videos = [video_of(frames, _row(audio, row), rate, longer_audio, lines.append) for row, frames in enumerate(clips)]
        shown = {**ui.PreviewVideo([saved_video(video, cls) for video in videos]).as_dict(), **noted(lines)}
        return io.NodeOutput(clips.flatten(0, 1), videos[0], ui=shown)


class DecodeAudio(Node):
    """Audio part of a LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiDecodeAudio",
            display_name="CoDi Decode Audio",
            category=MEDIA,
            description="Decodes the audio of a joint LATENT and plays it.",
            search_aliases=["latent to audio", "sound", "vocoder", "vae decode"],
            is_output_node=True,
            inputs=_inputs(),
            outputs=[io.Audio.Output(display_name="audio", tooltip="For Save Audio and any other audio node.")],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict) -> io.NodeOutput:
        wave = AudioVAE(codi).decode(take(latent, "audio", codi.config)).movedim(-1, 1).float().cpu()  # (B, 1, N)
        audio = {"waveform": wave, "sample_rate": codi.config.mel.sample_rate}
        return io.NodeOutput(audio, ui=ui.PreviewAudio(audio, cls=cls))


class DecodeText(Node):
    """Text part of a LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiDecodeText",
            display_name="CoDi Decode Text",
            category=MEDIA,
            description="Decodes the caption of a joint LATENT and shows it.",
            search_aliases=["caption", "image to text", "describe", "interrogate"],
            is_output_node=True,
            inputs=_inputs(
                words_seed_input(),
            ),
            outputs=[io.String.Output(display_name="text", tooltip="One line per caption of the batch.")],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict, words_seed: int = 0) -> io.NodeOutput:
        part = take(latent, "text", codi.config).squeeze(-1)  # (B, D)
        z = part.to(codi.model.place("text_autoencoder"), torch.float32) * codi.config.text_autoencoder.scale
        text = "\n".join(decode_text(codi.model, z, [words_seed + i for i in range(len(z))]))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _row(audio: dict | None, row: int) -> dict | None:
    """One audio of a batch; that of a batch of one goes with every video."""
    if audio is None:
        return None
    wave = audio["waveform"]
    if len(wave) > 1 and row >= len(wave):
        raise CoDiError(f"audio of a batch of {len(wave)} does not go with {row + 1} or more videos: give one, or one for every video")
    return {**audio, "waveform": wave[min(row, len(wave) - 1)][None]}


def video_of(frames: Tensor, audio: dict | None, rate: Fraction, longer_audio: str = "cut", note: Note = lambda _: None) -> Any:
    """A VIDEO of frames (F, H, W, 3) and an AUDIO of any rate: one length, a rate that mp4 allows, two channels at most."""
    if audio is not None:
        wave, given = audio["waveform"], int(audio["sample_rate"])
        check_room(math.ceil(wave.shape[-1] / given * rate) * frames[0].numel(), "a video as long as this audio")
        frames, wave, line = fit_lengths(frames, float(rate), wave, given, longer_audio)
        if line:
            note(line)
        wave = wave if wave.shape[1] in (1, 2) else wave.mean(dim=1, keepdim=True)
        audio = {**audio, "waveform": resample(wave.float().cpu(), given, allowed_rate(given)), "sample_rate": allowed_rate(given)}
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=audio, frame_rate=rate))


def noted(lines: list[str]) -> dict[str, Any]:
    """What a node tells its user beside what it made, each line once, under a key that its view knows."""
    return {"codi_note": [*dict.fromkeys(lines)]} if lines else {}


def saved_video(video: Any, node: type[io.ComfyNode]) -> ui.SavedResult:
    """Writes a VIDEO to the host's temp folder, for the player on the node; with prompt and workflow, as the host's Save Video does."""
    parts, hidden = video.get_components(), getattr(node, "hidden", None)
    metadata = {**(getattr(hidden, "extra_pnginfo", None) or {}), "prompt": getattr(hidden, "prompt", None)}
    metadata = {} if args.disable_metadata else {key: value for key, value in metadata.items() if value is not None}
    audio = {} if parts.audio is None else {"audio": parts.audio["waveform"][0], "sample_rate": parts.audio["sample_rate"]}
    name = f"codi_{uuid.uuid4().hex}.mp4"
    path = os.path.join(folder_paths.get_temp_directory(), name)
    write_mp4(path, parts.images.movedim(-1, 1), float(parts.frame_rate), **audio, metadata=metadata, progress=working())
    return ui.SavedResult(name, "", io.FolderType.temp)

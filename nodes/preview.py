"""Everything that was generated, on one node: image, video with its audio, spectrogram and caption."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..codi_models.figures import draw_spectrogram, to_image
from .decode import frame_rate_input, longer_audio_input, noted, saved_video, video_of, words_seed_input
from .host import shared
from .host.handle import CoDiHandle
from .host.spectrum import loudness
from .schema import MEDIA, CodiModel, Node, schema

_SPECTROGRAM = (512, 96)  # pixels


class Preview(Node):
    """Decodes and shows all parts of a LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiPreview",
            display_name="CoDi Preview",
            category=MEDIA,
            description="Decodes all parts of a joint LATENT and shows them together: image, video with its audio, spectrogram, caption.",
            search_aliases=["show all", "decode all", "player", "view", "picture", "clip", "sound"],
            is_output_node=True,
            inputs=[
                CodiModel.Input("codi", tooltip="The model that made the LATENT."),
                io.Latent.Input("latent", tooltip="Sampled joint LATENT."),
                frame_rate_input(),
                words_seed_input(),
                longer_audio_input(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="For Save Image. Nothing runs on an output that the LATENT does not hold."),
                io.Video.Output(display_name="video", tooltip="The first video of the batch with its audio, for Save Video."),
                io.Audio.Output(display_name="audio", tooltip="For Save Audio."),
                io.String.Output(display_name="text", tooltip="One caption a line."),
            ],
        )

    @classmethod
    def execute(
        cls, codi: CoDiHandle, latent: dict, frame_rate: float = 0.0, words_seed: int = 0, longer_audio: str = "cut"
    ) -> io.NodeOutput:
        from comfy_execution.graph_utils import ExecutionBlocker

        made = shared.decode_parts(codi, latent, words_seed)
        rate = Fraction(frame_rate or codi.config.sampling.frame_rate).limit_denominator(1000)
        nothing: Any = ExecutionBlocker(None)
        image, video, audio, text = (nothing for _ in range(4))
        show: dict[str, Any] = {}  # under the host's own keys, so that its queue, assets and clients of its API show them
        if "audio" in made:
            audio = {"waveform": made["audio"][:, None], "sample_rate": codi.config.mel.sample_rate}  # (B, 1, N)
            show["audio"] = ui.PreviewAudio(audio, cls=cls).as_dict()["audio"]
            drawn = [to_image(draw_spectrogram(loudness(row, codi.config.mel), _SPECTROGRAM)) for row in made["audio"]]
            # By name only: spectrograms belong to the node and are no results.
            saved = ui.PreviewImage(torch.stack(drawn), cls=cls).as_dict()["images"]
            show["codi_spectrogram"] = [entry["filename"] for entry in saved]
        if "image" in made:
            image = made["image"]
            show["images"] = ui.PreviewImage(image, cls=cls).as_dict()["images"]
        if "video" in made:
            videos, lines = [], list[str]()
            for row, frames in enumerate(made["video"]):
                track = {**audio, "waveform": audio["waveform"][row][None]} if "audio" in made else None
                videos.append(video_of(frames, track, rate, longer_audio, lines.append))
            video = videos[0]
            show |= {"video": [saved_video(one, cls) for one in videos], **noted(lines)}
        if "text" in made:
            text = "\n".join(made["text"])
            show["text"] = tuple(made["text"])
        return io.NodeOutput(image, video, audio, text, ui=show)

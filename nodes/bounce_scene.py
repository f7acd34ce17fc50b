"""A scene of Bounce World as image, audio, video and caption: prompts to try codi-mini with, nothing to download."""

from __future__ import annotations

from fractions import Fraction

import torch
from comfy_api.latest import InputImpl, Types, io, ui

from ..codi_models.bounce_world import render
from ..codi_models.bounce_world import world as bounce
from .schema import TOOLS, Node, schema


class BounceScene(Node):
    """Renders one scene of the world that codi-mini was trained on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiBounceScene",
            display_name="CoDi Example Scene",
            category=TOOLS,
            description="Renders a bouncing shape as image, audio, video and caption: example prompts for codi-mini.",
            search_aliases=["bounce world", "test data", "bouncing shape"],
            is_output_node=True,
            inputs=[
                io.Combo.Input("shape", options=list(bounce.SHAPES), tooltip="What bounces; in audio, the timbre."),
                io.Combo.Input("colour", options=list(bounce.COLOURS), tooltip="Its colour; in audio, the pitch."),
                io.Combo.Input("beats", options=[str(b) for b in bounce.BEATS], tooltip="How often it hits the floor."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    tooltip="Draws what a scene leaves open: place, size, background, tuning, loudness.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="One frame at a random time."),
                io.Audio.Output(display_name="audio", tooltip="A note at each hit of the floor."),
                io.Video.Output(display_name="video", tooltip="The video with its audio."),
                io.String.Output(display_name="caption", tooltip="A sentence that names shape, colour and beats."),
            ],
        )

    @classmethod
    def execute(cls, shape: str, colour: str, beats: str, seed: int) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(seed)
        indices = bounce.SHAPES.index(shape), bounce.COLOURS.index(colour), [str(b) for b in bounce.BEATS].index(beats)
        scene = bounce.Scenes(*torch.tensor([indices]).unbind(1))
        nuisance = bounce.sample_nuisance(1, generator=generator)
        image = render.render_image(scene, nuisance).movedim(1, -1)  # (1, H, W, 3)
        frames = render.render_video(scene, nuisance)[0].movedim(1, -1)  # (F, H, W, 3)
        audio = {"waveform": render.render_audio(scene, nuisance)[:, None], "sample_rate": bounce.SAMPLE_RATE}  # (1, 1, N)
        rate = Fraction(frames.shape[0] / bounce.DURATION).limit_denominator(1000)
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=audio, frame_rate=rate))
        caption = bounce.captions(scene, generator=generator, full=True)[0]
        show = {**ui.PreviewImage(image, cls=cls).as_dict(), **ui.PreviewAudio(audio, cls=cls).as_dict()}
        return io.NodeOutput(image, audio, video, caption, ui=show)

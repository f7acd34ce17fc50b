"""The LATENT that a joint MODEL starts from."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..codi_models.modalities import MODALITIES
from ..codi_models.settings import unusual_sizes
from .host import handle, parts
from .keep import said
from .schema import CODI_TIP, LATENTS, CodiModel, Node, schema


class EmptyJointLatent(Node):
    """Zeros for the chosen outputs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiEmptyJointLatent",
            display_name="CoDi Empty Joint Latent",
            category=LATENTS,
            description="Chooses what is generated, and how large; by default as large as the model was trained for.",
            has_intermediate_output=True,
            search_aliases=["empty latent", "outputs", "size", "duration", "picture", "clip", "sound"],
            inputs=[
                CodiModel.Input("codi", tooltip=CODI_TIP),
                *[io.Boolean.Input(m, default=True, tooltip=f"Generate {m}.") for m in MODALITIES],
                io.Int.Input("width", default=0, min=0, max=4096, step=8, tooltip="Pixels, of image and video; 0: the model's."),
                io.Int.Input("height", default=0, min=0, max=4096, step=8, tooltip="Pixels, of image and video; 0: the model's."),
                io.Int.Input("frames", default=0, min=0, max=256, tooltip="Frames of the video; 0: the model's."),
                io.Float.Input(
                    "seconds", default=0.0, min=0.0, max=60.0, step=0.01, round=0.01, tooltip="Length of the audio; 0: the model's."
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many of each."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Joint LATENT: video, image, text, audio, as far as chosen.")],
        )

    @classmethod
    def execute(
        cls, codi: handle.CoDiHandle, width: int, height: int, frames: int, seconds: float, batch_size: int, **outputs: Any
    ) -> io.NodeOutput:
        chosen = [m for m in MODALITIES if outputs.get(m)]
        sizes = parts.sizes_of(codi.config, chosen, width=width, height=height, frames=frames, seconds=seconds)
        return io.NodeOutput(parts.empty(codi.config, sizes, batch_size), ui=said(unusual_sizes(codi.config, sizes)))

"""Nodes whose work others do as well: graphs saved with them go on to run, and the menu does not offer them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..codi_models.coherence import similarities
from . import joint_latent
from .coherence import compared, shared_map
from .host import joining, shared
from .host.handle import CoDiHandle
from .schema import LATENTS, MEDIA, TOOLS, CodiModel, Node, schema


def _former(instead: str, **fields: Any) -> io.Schema:
    description = f"Of earlier versions: {instead} does the same."
    return schema(**fields, description=description, search_aliases=[fields["display_name"]], is_deprecated=True)


def _latents(kind: str, name: str, instead: str, *inputs: Any) -> io.Schema:
    return _former(
        instead,
        node_id=kind,
        display_name=name,
        category=LATENTS,
        inputs=[CodiModel.Input("codi", tooltip="The model that made the LATENT."), *inputs],
        outputs=[io.Latent.Output(display_name="latent", tooltip="A joint LATENT, mask included.")],
    )


class BatchLatents(Node):
    """Samples put together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _latents("CoDiBatchLatents", "CoDi Batch Latents", "CoDi Join Latents", joint_latent.latents_input())

    @classmethod
    def execute(cls, codi: CoDiHandle, latents: dict | None = None) -> io.NodeOutput:
        return io.NodeOutput(joining.batched(joint_latent.given(latents), codi.config))


class RepeatLatent(Node):
    """A batch of the same."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Latent.Input("latent", tooltip="A joint LATENT."),
            io.Int.Input("amount", default=2, min=1, max=64, tooltip="How often each sample comes."),
        ]
        return _latents("CoDiRepeatLatent", "CoDi Repeat Latent", "CoDi Select from Batch", *inputs)

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict, amount: int) -> io.NodeOutput:
        return io.NodeOutput(joining.rows(latent, None, codi.config, repeat=amount))


class SharedSpacePlot(Node):
    """Prompts, mixture and outputs on two axes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _former(
            "CoDi Coherence",
            node_id="CoDiSharedSpace",
            display_name="CoDi Shared Space",
            category=TOOLS,
            is_output_node=True,
            inputs=compared("The model that made prompts and LATENT."),
            outputs=[io.Image.Output(display_name="plot", tooltip="The figure; where there is a batch, each item is a point.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict | None = None, prompts: dict | None = None, names: str = "") -> io.NodeOutput:
        points = shared.prompt_points(prompts, names, cls.hidden.prompt, cls.hidden.unique_id) + shared.output_points(codi, latent)
        similarities([p.embedding for p in points])  # refuses what does not belong to one model
        image = shared_map(points)
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


class ShowText(Node):
    """Shows and hands on a STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _former(
            "ComfyUI's own Preview as Text",
            node_id="CoDiShowText",
            display_name="CoDi Show Text",
            category=MEDIA,
            is_output_node=True,
            inputs=[io.String.Input("text", force_input=True, tooltip="Any text.")],
            outputs=[io.String.Output(display_name="text", tooltip="The same text.")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput(text, ui=ui.PreviewText(text))

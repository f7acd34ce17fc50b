"""Compose denoisers into a joint MODEL, and set how its outputs listen to each other."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host import compose
from .schema import schema


def alignment_inputs() -> list[Any]:
    """Widgets of the latent alignment, the same wherever it is set."""
    return [
        io.Combo.Input(
            "wiring",
            options=list(compose.WIRINGS),
            default="cross",
            tooltip="cross: every output attends to all the others (the paper). self: each to itself (as published). off: not at all.",
        ),
        io.Float.Input(
            "alignment", default=1.0, min=0.0, max=4.0, step=0.05, tooltip="Strength of the alignment; 0 switches it off, 1 is as trained."
        ),
        io.Float.Input(
            "alignment_guidance",
            default=3.0,
            min=0.0,
            max=20.0,
            step=0.1,
            tooltip="Pushes outputs to agree: noise = off + guidance * (aligned - off). 1 takes one pass, other values two.",
        ),
    ]


class Compose(io.ComfyNode):
    """Denoisers in lock-step as one MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(io.Model.Input("model", tooltip="A MODEL from CoDi Denoiser."), prefix="model", min=1, max=4)
        return schema(
            node_id="CoDiCompose",
            display_name="CoDi Compose",
            description="Joins denoisers into one joint MODEL for any sampler. A LoRA on one of them stays in force.",
            inputs=[io.Autogrow.Input("models", template=template), *alignment_inputs()],
            outputs=[io.Model.Output(display_name="model", tooltip="Joint MODEL.")],
        )

    @classmethod
    def execute(cls, wiring: str, alignment: float, alignment_guidance: float, models: dict | None = None) -> io.NodeOutput:
        settings = compose.Alignment(wiring, alignment, alignment_guidance)
        return io.NodeOutput(compose.compose([m for m in (models or {}).values() if m is not None], settings))


class Alignment(io.ComfyNode):
    """Other alignment settings for a joint MODEL, for use with the stock samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiAlignment",
            display_name="CoDi Alignment",
            description="Sets how the outputs of a joint MODEL listen to each other. The stock samplers follow it.",
            inputs=[io.Model.Input("model", tooltip="A joint MODEL."), *alignment_inputs()],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: Any, wiring: str, alignment: float, alignment_guidance: float) -> io.NodeOutput:
        return io.NodeOutput(compose.Alignment(wiring, alignment, alignment_guidance).put(model))

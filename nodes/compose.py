"""Compose denoisers into a joint MODEL, and set how its outputs listen to each other."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..codi_models.config import MODALITIES
from ..codi_models.coupling import WIRINGS, Coupling
from .host import compose
from .schema import ADVANCED, Node, schema

_PAIRS = [(listener, speaker) for listener in MODALITIES for speaker in MODALITIES if listener != speaker]


def alignment_inputs() -> list[Any]:
    """Widgets of the latent alignment, the same wherever it is set."""
    return [
        io.Combo.Input(
            "wiring",
            options=list(WIRINGS),
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
        *[
            io.Float.Input(
                f"alignment_{name}",
                default=float(value),
                min=0.0,
                max=1.0,
                step=0.01,
                optional=True,
                extra_dict=ADVANCED,
                tooltip=f"Part of the run at which outputs {does} listening to each other: 0 is the first step, 1 the last.",
            )
            for name, value, does in (("start", 0, "begin"), ("end", 1, "stop"))
        ],
    ]


def coupling(wiring: str, alignment: float, alignment_guidance: float, start: float, end: float) -> dict[str, Any]:
    """The widgets of `alignment_inputs` as fields of Coupling."""
    return {"wiring": wiring, "strength": alignment, "guidance": alignment_guidance, "start": start, "end": end}


class Compose(Node):
    """Denoisers in lock-step as one MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(io.Model.Input("model", tooltip="A MODEL from CoDi Denoiser."), prefix="model", min=1, max=4)
        return schema(
            node_id="CoDiCompose",
            display_name="CoDi Compose",
            description="Joins denoisers into one joint MODEL for any sampler. A LoRA on one of them stays in force.",
            search_aliases=["join models", "merge", "lock-step"],
            inputs=[
                io.Autogrow.Input("models", template=template, tooltip="MODELs from CoDi Denoiser, each denoiser once."),
                *alignment_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="Joint MODEL.")],
        )

    @classmethod
    def execute(
        cls,
        wiring: str,
        alignment: float,
        alignment_guidance: float,
        alignment_start: float = 0.0,
        alignment_end: float = 1.0,
        models: dict | None = None,
    ) -> io.NodeOutput:
        settings = Coupling(**coupling(wiring, alignment, alignment_guidance, alignment_start, alignment_end))
        return io.NodeOutput(compose.compose([m for m in (models or {}).values() if m is not None], settings))


class Alignment(Node):
    """Other alignment settings for a joint MODEL, for use with the stock samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiAlignment",
            display_name="CoDi Alignment",
            description="Sets how the outputs of a joint MODEL listen to each other. The stock samplers follow it.",
            search_aliases=["latent alignment", "wiring", "coupling"],
            inputs=[io.Model.Input("model", tooltip="A joint MODEL."), *alignment_inputs()],
            outputs=[io.Model.Output(display_name="model", tooltip="The same MODEL with these settings.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        wiring: str,
        alignment: float,
        alignment_guidance: float,
        alignment_start: float = 0.0,
        alignment_end: float = 1.0,
    ) -> io.NodeOutput:
        return io.NodeOutput(compose.couple(model, **coupling(wiring, alignment, alignment_guidance, alignment_start, alignment_end)))


class AlignmentMatrix(Node):
    """A strength for every direction between outputs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiAlignmentMatrix",
            display_name="CoDi Alignment Matrix",
            description="How strongly each output listens to each of the others, in wiring cross; kept by CoDi Alignment and the samplers.",
            search_aliases=["audio to video strength", "alignment direction"],
            inputs=[
                io.Model.Input("model", tooltip="A joint MODEL."),
                *[
                    io.Float.Input(
                        f"{listener}_hears_{speaker}",
                        default=1.0,
                        min=0.0,
                        max=4.0,
                        step=0.05,
                        tooltip=f"How strongly {listener} listens to {speaker}, times the strength of the alignment; 0 is not at all.",
                    )
                    for listener, speaker in _PAIRS
                ],
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same MODEL with these settings.")],
        )

    @classmethod
    def execute(cls, model: Any, **strengths: float) -> io.NodeOutput:
        pairs = {(a, b): strengths[f"{a}_hears_{b}"] for a, b in _PAIRS}
        return io.NodeOutput(compose.couple(model, pairs=pairs))

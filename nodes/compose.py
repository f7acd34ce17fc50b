"""Compose denoisers into a joint MODEL, and set its latent alignment."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..codi_models.alignment import COMBINATIONS, WIRINGS
from ..codi_models.config import SamplingConfig
from ..codi_models.modalities import MODALITIES
from .host import compose
from .schema import ADVANCED, MODELS, MODELS_OWN, SAMPLING, UNSET, Node, own, schema

_DIRECTIONS = [(target, source) for target in MODALITIES for source in MODALITIES if target != source]


def alignment_inputs() -> list[Any]:
    """Widgets of the latent alignment, the same wherever it is set."""
    return [
        io.Combo.Input(
            "wiring",
            options=[MODELS_OWN, *WIRINGS],
            default=MODELS_OWN,
            tooltip="cross: every output attends to all the others (the paper), so that they fit each other. self: each to itself, as the "
            "official model was published: nothing crosses between outputs. off: no alignment.",
        ),
        io.Float.Input(
            "alignment",
            default=UNSET,
            min=UNSET,
            max=4.0,
            step=0.05,
            tooltip="Strength of the alignment: 0 is none, 1 as trained, -1 the model's own.",
        ),
        io.Float.Input(
            "alignment_guidance",
            default=UNSET,
            min=UNSET,
            max=20.0,
            step=0.1,
            tooltip="Weight of the prediction with alignment against the one without: 1 takes no extra pass; -1 is the model's own.",
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
                tooltip=f"Part of the run at which the alignment {does}: 0 is the first step, 1 the last.",
            )
            for name, value, does in (("start", 0, "begins"), ("end", 1, "ends"))
        ],
    ]


def combine_input() -> Any:
    """The last widget of the latent alignment: it stands at the end, for saved workflows keep widgets by their place."""
    return io.Combo.Input(
        "alignment_combine",
        options=[MODELS_OWN, *COMBINATIONS],
        default=MODELS_OWN,
        optional=True,
        extra_dict=ADVANCED,
        tooltip="Of several sources. attention: all at once (the paper). sum: each in a pass of its own, what they change is added up.",
    )


def alignment_settings(
    usual: SamplingConfig, wiring: str, alignment: float, alignment_guidance: float, start: float, end: float, combine: str
) -> dict[str, Any]:
    """The widgets of `alignment_inputs` as fields of Alignment, with the model's defaults filled in."""
    return {
        "wiring": own(wiring, usual.wiring),
        "strength": own(alignment, usual.alignment),
        "guidance": own(alignment_guidance, usual.alignment_guidance),
        "start": start,
        "end": end,
        "combine": own(combine, usual.alignment_combine),
    }


class Compose(Node):
    """Denoisers in lock-step as one MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(io.Model.Input("model", tooltip="A MODEL from CoDi Denoiser."), prefix="model", min=1, max=4)
        return schema(
            node_id="CoDiCompose",
            display_name="CoDi Compose",
            category=MODELS,
            description="Joins denoisers into one joint MODEL for any sampler. A LoRA on one of them stays in force.",
            search_aliases=["join models", "merge", "lock-step"],
            inputs=[
                io.Autogrow.Input("models", template=template, tooltip="MODELs from CoDi Denoiser, each denoiser once."),
                *alignment_inputs(),
                combine_input(),
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
        alignment_combine: str = MODELS_OWN,
        models: dict | None = None,
    ) -> io.NodeOutput:
        model = compose.compose([m for m in (models or {}).values() if m is not None])
        usual = model.model.codi.config.sampling
        settings = alignment_settings(usual, wiring, alignment, alignment_guidance, alignment_start, alignment_end, alignment_combine)
        return io.NodeOutput(compose.align(model, **settings))


class Alignment(Node):
    """Latent alignment of a joint MODEL, for use with the stock samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiAlignment",
            display_name="CoDi Alignment",
            category=SAMPLING,
            description="Sets which output of a joint MODEL attends to which, and how strongly. The stock samplers follow it.",
            search_aliases=["latent alignment", "wiring", "cross-attention"],
            inputs=[io.Model.Input("model", tooltip="A joint MODEL."), *alignment_inputs(), combine_input()],
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
        alignment_combine: str = MODELS_OWN,
    ) -> io.NodeOutput:
        usual = compose.sampling_of(model)
        settings = alignment_settings(usual, wiring, alignment, alignment_guidance, alignment_start, alignment_end, alignment_combine)
        return io.NodeOutput(compose.align(model, **settings))


class AlignmentMatrix(Node):
    """A strength for every direction between outputs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiAlignmentMatrix",
            display_name="CoDi Alignment Matrix",
            category=SAMPLING,
            description="How strongly each output attends to each of the others, in wiring cross; CoDi Alignment and the samplers keep it.",
            search_aliases=["audio to video strength", "alignment direction"],
            inputs=[
                io.Model.Input("model", tooltip="A joint MODEL."),
                *[
                    io.Float.Input(
                        f"{target}_hears_{source}",
                        default=1.0,
                        min=0.0,
                        max=4.0,
                        step=0.05,
                        tooltip=f"How strongly {target} attends to {source}, times the strength of the alignment; 0 is not at all.",
                    )
                    for target, source in _DIRECTIONS
                ],
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same MODEL with these settings.")],
        )

    @classmethod
    def execute(cls, model: Any, **strengths: float) -> io.NodeOutput:
        directions = {(target, source): strengths[f"{target}_hears_{source}"] for target, source in _DIRECTIONS}
        return io.NodeOutput(compose.align(model, directions=directions))

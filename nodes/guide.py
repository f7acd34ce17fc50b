"""A guider for SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..codi_models.errors import CoDiError
from ..codi_models.modalities import MODALITIES
from .host import compose
from .host.guider import ModalityGuider
from .host.unconditional import negative_of
from .schema import SAMPLING, UNSET, Node, own, schema


def negative_input() -> Any:
    """Link for what guidance leads away from."""
    return io.Conditioning.Input(
        "negative",
        optional=True,
        tooltip="What to move away from. Unconnected: as published, no prompt of the kinds in positive: empty text, grey, silence.",
    )


class Guider(Node):
    """One guidance scale per modality, rescale, and guidance on the alignment."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        scales: list[Any] = [
            io.Float.Input(
                f"cfg_{m}",
                default=UNSET,
                min=UNSET,
                max=100.0,
                step=0.1,
                tooltip=f"How closely {m} follows the prompt; 1 is none, -1 the model's own.",
            )
            for m in MODALITIES
        ]
        return schema(
            node_id="CoDiGuider",
            display_name="CoDi Guider",
            category=SAMPLING,
            description="Guidance for SamplerCustomAdvanced with a scale for every modality. Passes that no scale needs are left out.",
            search_aliases=["cfg per modality", "codi cfg"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL of CoDi; its alignment settings stay in force."),
                io.Conditioning.Input("positive", tooltip="What to make."),
                negative_input(),
                *scales,
                io.Float.Input(
                    "cfg_rescale",
                    default=UNSET,
                    min=UNSET,
                    max=1.0,
                    step=0.05,
                    tooltip="Takes back what strong guidance adds to contrast: 0 none, 1 all, -1 the model's own.",
                ),
                io.Float.Input(
                    "alignment_guidance",
                    default=UNSET,
                    min=UNSET,
                    max=20.0,
                    step=0.1,
                    tooltip="Weight of the prediction with latent alignment against the one without; 1 takes no extra pass, -1 is the "
                    "MODEL's own.",
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, cfg_rescale: float, alignment_guidance: float, negative: Any = None, **scales: float
    ) -> io.NodeOutput:
        if getattr(getattr(model, "model", None), "codi", None) is None:
            raise CoDiError("CoDi Guider needs a MODEL of CoDi: give one from Load CoDi (joint), CoDi Compose or CoDi Denoiser")
        usual = model.model.codi.config.sampling
        cfg = {m: own(scales[f"cfg_{m}"], usual.cfg) for m in MODALITIES}
        if isinstance(model.model, compose.JointModel) and alignment_guidance != UNSET:
            model = compose.align(model, guidance=alignment_guidance)
        guider = ModalityGuider(model, cfg, rescale=own(cfg_rescale, usual.cfg_rescale))
        guider.set_conds(positive, negative or negative_of(model.model.codi, positive))
        return io.NodeOutput(guider)

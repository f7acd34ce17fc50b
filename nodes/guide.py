"""A guider for SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..codi_models.config import MODALITIES
from .host.guider import ModalityGuider
from .schema import Node, schema


class Guider(Node):
    """One guidance scale per modality, rescale, and guidance on the alignment."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        scales: list[Any] = [
            io.Float.Input(f"cfg_{m}", default=3.0, min=0.0, max=100.0, step=0.1, tooltip=f"How closely {m} follows the prompt; 1 is none.")
            for m in MODALITIES
        ]
        return schema(
            node_id="CoDiGuider",
            display_name="CoDi Guider",
            description="Guidance for SamplerCustomAdvanced with a scale for every modality. Passes that no scale needs are left out.",
            search_aliases=["cfg per modality", "codi cfg"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL of CoDi; its alignment settings stay in force."),
                io.Conditioning.Input("positive", tooltip="What to make."),
                io.Conditioning.Input("negative", tooltip="What to move away from."),
                *scales,
                io.Float.Input(
                    "cfg_rescale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Takes back what strong guidance adds to contrast: 0 none, 1 all.",
                ),
                io.Float.Input(
                    "alignment_guidance",
                    default=1.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="Pushes outputs to agree, by a pass in which they do not listen to each other. 1 takes no extra pass. "
                    "Used instead of the MODEL's own.",
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, cfg_rescale: float, alignment_guidance: float, **scales: float
    ) -> io.NodeOutput:
        cfg = {m: scales[f"cfg_{m}"] for m in MODALITIES}
        guider = ModalityGuider(model, cfg, rescale=cfg_rescale, alignment_guidance=alignment_guidance)
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)

"""Sample any set of outputs jointly."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..codi_models.order import ORDERS, TOGETHER
from .compose import alignment_inputs, coupling
from .host import compose
from .host.turns import sample_in_turns
from .schema import Node, schema


class JointSampler(Node):
    """The stock KSampler with the alignment's settings beside it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiJointSampler",
            display_name="CoDi Joint Sampler",
            description="Generates all parts of a joint LATENT together. The same as KSampler after CoDi Alignment with these settings.",
            search_aliases=["ksampler", "generate", "joint generation"],
            inputs=[
                io.Model.Input("model", tooltip="A joint MODEL."),
                io.Conditioning.Input("positive", tooltip="What to make, from CoDi's Encode nodes or the Condition Mixer."),
                io.Conditioning.Input("negative", tooltip="What to move away from; CoDi Encode Text with an empty text for none."),
                io.Latent.Input("latent", tooltip="From CoDi Empty Joint Latent."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Draws the noise that sampling starts from.",
                ),
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Denoising steps."),
                io.Float.Input(
                    "cfg", default=3.0, min=0.0, max=100.0, step=0.1, tooltip="Classifier-free guidance: how closely to follow the prompt."
                ),
                io.Combo.Input(
                    "sampler_name", options=list(comfy.samplers.KSampler.SAMPLERS), default="ddim", tooltip="How a step is computed."
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(comfy.samplers.KSampler.SCHEDULERS),
                    default="ddim_uniform",
                    tooltip="How noise falls from step to step.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="1 starts from noise; less keeps some of the given LATENT."
                ),
                *alignment_inputs(),
                io.Boolean.Input(
                    "independent",
                    default=False,
                    optional=True,
                    tooltip="Also samples from the same seed without alignment, for comparison: a second run, in the second output.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default=TOGETHER,
                    optional=True,
                    tooltip="together: all outputs at once, as in the paper. in turn: text, sound, clip, picture one after the other, each "
                    "hearing the finished ones, in the same number of steps each; a picture and a clip without the others hear a caption "
                    "that is not given out, where the MODEL can make one.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="All parts, for CoDi Preview or the Decode nodes."),
                io.Latent.Output(display_name="independent", tooltip="The same without alignment; nothing where the switch is off."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        wiring: str,
        alignment: float,
        alignment_guidance: float,
        alignment_start: float = 0.0,
        alignment_end: float = 1.0,
        independent: bool = False,
        order: str = TOGETHER,
    ) -> io.NodeOutput:
        from nodes import common_ksampler  # type: ignore[attr-defined]  # the host's module of that name

        settings = coupling(wiring, alignment, alignment_guidance, alignment_start, alignment_end)

        def run(**changes: Any) -> Any:
            coupled = compose.couple(model, **{**settings, **changes})

            def turn(part: Any) -> Any:
                return common_ksampler(coupled, seed, steps, cfg, sampler_name, scheduler, positive, negative, part, denoise=denoise)[0]

            heard = not compose.coupling_of(coupled.model_options, coupled.model.codi.config.sampling).silent
            lent = coupled.model.outputs if heard and denoise >= 1 else ()  # an empty part has nothing that less could keep
            return sample_in_turns(turn, latent, coupled.model.codi.config, order, lent)

        return io.NodeOutput(run(), run(wiring="off") if independent else ExecutionBlocker(None))

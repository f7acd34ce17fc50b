"""Sample any set of outputs jointly."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..codi_models import version_0_3
from ..codi_models.stages import SCHEDULES
from .compose import alignment_inputs, alignment_settings, combine_input
from .guide import negative_input
from .host import compose
from .host.stages import sample_in_stages
from .host.unconditional import negative_of
from .schema import ADVANCED, MODELS_OWN, SAMPLING, UNSET, Node, own, schema


class JointSampler(Node):
    """The stock KSampler with the alignment's settings beside it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiJointSampler",
            display_name="CoDi Joint Sampler",
            category=SAMPLING,
            description="Generates all parts of a joint LATENT with latent alignment: KSampler after CoDi Alignment with these settings.",
            search_aliases=["ksampler", "generate", "joint generation"],
            inputs=[
                io.Model.Input("model", tooltip="A joint MODEL."),
                io.Conditioning.Input("positive", tooltip="What to make, from CoDi's Encode nodes or the Condition Mixer."),
                negative_input(),
                io.Latent.Input("latent", tooltip="From CoDi Empty Joint Latent."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Draws the noise that sampling starts from.",
                ),
                io.Int.Input("steps", default=UNSET, min=UNSET, max=1000, tooltip="Denoising steps; -1: the model's own."),
                io.Float.Input(
                    "cfg",
                    default=UNSET,
                    min=UNSET,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance: how closely to follow the prompt; -1: the model's own.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=[MODELS_OWN, *comfy.samplers.KSampler.SAMPLERS],
                    default=MODELS_OWN,
                    tooltip="How a step is computed.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=[MODELS_OWN, *comfy.samplers.KSampler.SCHEDULERS],
                    default=MODELS_OWN,
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
                    options=[MODELS_OWN, *SCHEDULES],
                    default=MODELS_OWN,
                    optional=True,
                    tooltip="together: all outputs at once, as in the paper. sequential: text, audio, video, image one after the other, "
                    "each attending to the finished ones, in the same number of steps each.",
                ),
                io.String.Input(
                    "stages",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Stages of your own, such as: video, audio+text. Used instead of the order where it is not empty.",
                ),
                combine_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="All parts, for CoDi Preview or the Decode nodes."),
                io.Latent.Output(display_name="independent", tooltip="The same without alignment; nothing where the switch is off."),
            ],
        )

    @classmethod
    def validate_inputs(cls, order: str | None = None) -> bool | str:
        known = [MODELS_OWN, *SCHEDULES]
        if order is None or version_0_3.schedule(order) in known:
            return True
        return f"order {order[:80]!r} is unknown: give one of {', '.join(known)}"

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
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
        negative: Any = None,
        alignment_start: float = 0.0,
        alignment_end: float = 1.0,
        alignment_combine: str = MODELS_OWN,
        independent: bool = False,
        order: str = MODELS_OWN,
        stages: str = "",
    ) -> io.NodeOutput:
        from nodes import common_ksampler  # type: ignore[attr-defined]  # the host's module of that name

        usual = compose.sampling_of(model)
        negative = negative or negative_of(model.model.codi, positive)
        steps, cfg = own(steps, usual.steps), own(cfg, usual.cfg)
        sampler_name, scheduler = own(sampler_name, usual.sampler), own(scheduler, usual.scheduler)
        schedule = stages.strip() or own(version_0_3.schedule(order), usual.schedule)
        settings = alignment_settings(usual, wiring, alignment, alignment_guidance, alignment_start, alignment_end, alignment_combine)

        def run(**changes: Any) -> Any:
            aligned = compose.align(model, **{**settings, **changes})

            def stage(part: Any) -> Any:
                return common_ksampler(aligned, seed, steps, cfg, sampler_name, scheduler, positive, negative, part, denoise=denoise)[0]

            return sample_in_stages(stage, latent, aligned.model.codi.config, schedule)

        return io.NodeOutput(run(), run(wiring="off") if independent else ExecutionBlocker(None))

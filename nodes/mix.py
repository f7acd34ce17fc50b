"""Mix prompts of any kind in the shared space (paper section 3.1)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..codi_models.conditioning import MIX_METHODS, mix
from ..codi_models.errors import CoDiError
from .schema import schema


class ConditionMixer(io.ComfyNode):
    """Weighted mean of prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(
            io.Conditioning.Input("prompt", tooltip="From any of CoDi's Encode nodes."), prefix="prompt", min=1, max=16
        )
        return schema(
            node_id="CoDiConditionMixer",
            display_name="CoDi Condition Mixer",
            description="Mixes any number of text, image, audio and video prompts into one.",
            search_aliases=["mix prompts", "blend", "average", "interpolate"],
            inputs=[
                io.Autogrow.Input("prompts", template=template, tooltip="Prompts to mix; an input appears when the last is connected."),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="One number per prompt, separated by commas; empty: all alike. Negative numbers move away from a prompt.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(MIX_METHODS),
                    default="renormalised",
                    tooltip="linear: weighted mean, as published. renormalised: the same at unit length. spherical: mean along the sphere.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="The mixture, a prompt like any other.")],
        )

    @classmethod
    def execute(cls, weights: str, method: str, prompts: dict | None = None) -> io.NodeOutput:
        given = [c for c in (prompts or {}).values() if c is not None]
        if any(len(c) != 1 for c in given):
            raise CoDiError(
                "the Condition Mixer takes prompts from CoDi's Encode nodes; this CONDITIONING holds several: mix before combining"
            )
        embeddings = [c[0][0] for c in given]
        batch = max((e.shape[0] for e in embeddings), default=1)
        embeddings = [e.expand(batch, -1, -1) if e.shape[0] == 1 else e for e in embeddings]
        blend = mix(embeddings, parse_weights(weights), method)
        extra: dict[str, Any] = dict(given[0][0][1])
        return io.NodeOutput([[blend, extra]])


def parse_weights(text: str) -> list[float] | None:
    """Numbers separated by commas, or None for an empty text. Raises CoDiError naming what is no number."""
    if not text.strip():
        return None
    words = [w.strip() for w in text.replace("\n", ",").replace(";", ",").split(",") if w.strip()]
    try:
        return [float(w) for w in words]
    except ValueError as error:
        raise CoDiError(f"weights must be numbers separated by commas, such as 1, 0.5, -0.2; got {text.strip()!r}") from error

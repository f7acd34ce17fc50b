"""Mix prompts of any kind in the shared space (paper section 3.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..codi_models.conditioning import DEFAULT_MIX, MIX_METHODS
from ..codi_models.errors import CoDiError
from ..codi_models.keyframes import OVER, Curve, Segment, WeightedPrompt, blend, describe
from .host.latent_model import FRAMES
from .host.unconditional import UNCOND
from .schema import ADVANCED, PROMPTS, Node, schema

WEIGHTING = "codi_weighting"
"""Key of CONDITIONING under which Prompt Weight leaves what the mixer is to do with a prompt."""


class ConditionMixer(Node):
    """Weighted mean of prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(
            io.Conditioning.Input("prompt", tooltip="From any of CoDi's Encode nodes."), prefix="prompt", min=1, max=16
        )
        return schema(
            node_id="CoDiConditionMixer",
            display_name="CoDi Condition Mixer",
            category=PROMPTS,
            description="Mixes any number of text, image, audio and video prompts into one.",
            search_aliases=["mix prompts", "blend", "average", "interpolate"],
            has_intermediate_output=True,
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
                    default=DEFAULT_MIX,
                    tooltip="linear: weighted mean, as published. renormalised: the same at unit length. spherical: mean along the sphere. "
                    "add-subtract: plain sum, the weights may sum to 0.",
                ),
                io.String.Input(
                    "starts",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Where in the run each prompt begins to count, 0 to 1, separated by commas; empty: from the first step.",
                ),
                io.String.Input(
                    "ends",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Where in the run each prompt ceases to count, 0 to 1, separated by commas; empty: after the last step.",
                ),
                io.String.Input(
                    "keyframes",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A line for each prompt: place:factor of its weight, such as 0:1, 0.5:0.2, 1:0. Empty lines stay level.",
                ),
                *over_inputs(),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="The mixture, a prompt like any other.")],
        )

    @classmethod
    def execute(
        cls,
        weights: str,
        method: str,
        prompts: dict | None = None,
        starts: str = "",
        ends: str = "",
        keyframes: str = "",
        over: str = "steps",
        count: int = 8,
    ) -> io.NodeOutput:
        given = [c for c in (prompts or {}).values() if c is not None]
        if any(len(c) != 1 for c in given):
            raise CoDiError(
                "the Condition Mixer takes prompts from CoDi's Encode nodes; this CONDITIONING holds several: mix before combining"
            )
        lines = [Curve.parse(line) for line in keyframes.split("\n")] if keyframes.strip() else []
        if len(lines) > len(given) and any(lines[len(given) :]):
            raise CoDiError(f"keyframes have {len(lines)} lines for {len(given)} prompts: give one line per prompt")
        columns = [_column(name, text, len(given)) for name, text in (("weights", weights), ("starts", starts), ("ends", ends))]
        weighted = []
        for i, conditioning in enumerate(given):
            own = conditioning[0][1].get(WEIGHTING, {})
            weight, start, end = (column[i] if column else None for column in columns)
            weighted.append(
                WeightedPrompt(
                    conditioning[0][0],
                    (1.0 if weight is None else weight) * own.get("weight", 1.0),
                    own.get("start", 0.0) if start is None else start,
                    own.get("end", 1.0) if end is None else end,
                    (lines[i] if i < len(lines) else None) or own.get("curve"),
                )
            )
        return _mixed(given, weighted, method, over, count)


class PromptWeight(Node):
    """A prompt with the weight, range of steps and curve that the Condition Mixer will give it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiPromptWeight",
            display_name="CoDi Prompt Weight",
            category=PROMPTS,
            description="Weight, range of steps and curve of one prompt for the Condition Mixer; a list of numbers may be the curve.",
            search_aliases=["audio reactive", "weight curve", "prompt schedule"],
            is_input_list=True,
            inputs=[
                io.Conditioning.Input("prompt", tooltip="From any of CoDi's Encode nodes."),
                io.Float.Input(
                    "weight", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Times the weight in CoDi Condition Mixer and the curve."
                ),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Where in the run the prompt begins to count."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Where in the run it ceases to count."),
                io.String.Input("keyframes", default="", optional=True, tooltip="place:factor, such as 0:1, 1:0; empty: level."),
                io.MultiType.Input(
                    "floats",
                    types=[io.Float, io.Custom("FLOATS")],
                    optional=True,
                    tooltip="A list of numbers instead, spread evenly: as audio-reactive nodes make them.",
                ),
                # Newer hosts would put a widget here, whose ramp would count before the keyframes.
                io.Custom("CURVE").Input(
                    "curve", optional=True, extra_dict={"forceInput": True}, tooltip="The host's curve instead, where it has one."
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="prompt", is_output_list=True, tooltip="For the Condition Mixer; else the prompt as it was."
                )
            ],
        )

    @classmethod
    def execute(
        cls, prompt: list, weight: list, start: list, end: list, keyframes: list | None = None, floats: Any = None, curve: Any = None
    ) -> io.NodeOutput:
        """Only the numbers are one list; of the others every entry makes a prompt, and the last of a shorter list counts on."""
        lists = (prompt, weight, start, end, keyframes or [None], curve or [None])
        most = max(map(len, lists)) if all(lists) else 0
        rows = [tuple(entries[min(i, len(entries) - 1)] for entries in lists) for i in range(most)]
        return io.NodeOutput([cls._weighted(row, floats) for row in rows])

    @classmethod
    def _weighted(cls, row: tuple[Any, ...], floats: Any) -> list:
        prompt, weight, start, end, keyframes, curve = row
        track = Curve.parse(keyframes) if keyframes else None
        if curve:
            track = _host_curve(curve)
        if floats:
            track = Curve.of(_numbers(floats))
        WeightedPrompt(prompt[0][0], weight, start, end, track)  # says what is wrong with the range
        weighting = {"weight": weight, "start": start, "end": end, "curve": track}
        return [[tensor, {**extra, WEIGHTING: weighting}] for tensor, extra in prompt]


class PromptTravel(Node):
    """From one prompt to another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiPromptTravel",
            display_name="CoDi Prompt Travel",
            category=PROMPTS,
            description="Goes from one prompt to another over the frames of a video, the samples of a batch or the steps of the run.",
            search_aliases=["interpolate prompts", "morph", "prompt schedule"],
            has_intermediate_output=True,
            inputs=[
                io.Conditioning.Input("origin", tooltip="Prompt at the beginning."),
                io.Conditioning.Input("destination", tooltip="Prompt at the end."),
                io.Combo.Input("method", options=list(MIX_METHODS), default="spherical", tooltip="As in the Condition Mixer."),
                *over_inputs("frames"),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="The mixture, a prompt like any other.")],
        )

    @classmethod
    def execute(cls, origin: list, destination: list, method: str, over: str = "frames", count: int = 8) -> io.NodeOutput:
        if len(origin) != 1 or len(destination) != 1:
            raise CoDiError("Prompt Travel takes prompts from CoDi's Encode nodes; this CONDITIONING holds several")
        ways = [Curve((0.0, 1.0), (1.0, 0.0)), Curve((0.0, 1.0), (0.0, 1.0))]
        weighted = [WeightedPrompt(c[0][0], curve=way) for c, way in zip((origin, destination), ways, strict=True)]
        return _mixed([origin, destination], weighted, method, over, count)


def over_inputs(default: str = "steps") -> list[Any]:
    """Along what weights change."""
    return [
        io.Combo.Input(
            "over",
            options=list(OVER),
            default=default,
            optional=True,
            tooltip="Along what curves run: the steps, the frames of the video (other outputs follow the mean), or the batch.",
        ),
        io.Int.Input(
            "count",
            default=8,
            min=1,
            max=1024,
            optional=True,
            tooltip="Frames of the video, samples of the batch, or parts that the run is divided into.",
        ),
    ]


def _mixed(given: list[list], weighted: list[WeightedPrompt], method: str, over: str, count: int) -> io.NodeOutput:
    """The mixture of prompts as CONDITIONING: one entry for each part of the run, which stock nodes take like any other.

    What guidance leads away from is mixed in the same way, unless a prompt does not tell it or the weights may sum to 0."""
    segments = blend(weighted, method, over, count)
    own = {k: v for k, v in given[0][0][1].items() if k not in (WEIGHTING, UNCOND, FRAMES)}
    unconds = [c[0][1].get(UNCOND) for c in given]
    away: list[Segment] = []
    if method != "add-subtract" and all(u is not None for u in unconds):
        away = blend([replace(v, embedding=u) for v, u in zip(weighted, unconds, strict=True)], method, over, count)
    out = []
    for i, segment in enumerate(segments):
        more = dict(own) if segment.frames is None else {**own, FRAMES: segment.frames}
        if len(segments) > 1:
            more |= {"start_percent": segment.start, "end_percent": segment.end}
        if away:
            more[UNCOND] = away[i].prompt
        out.append([segment.prompt, more])
    return io.NodeOutput(out, ui=ui.PreviewText(describe(segments, weighted)))


def _column(name: str, text: str, count: int) -> list[float] | None:
    numbers = parse_weights(text, name)
    if numbers is not None and len(numbers) != count:
        raise CoDiError(f"{len(numbers)} {name} for {count} prompts: give one per prompt")
    return numbers


def _numbers(given: Any) -> list[float]:
    """Numbers of a list, a list of lists or tensors. Raises CoDiError for anything else."""
    flat: list[float] = []
    for entry in given:
        try:
            many = entry.flatten().tolist() if hasattr(entry, "flatten") else entry if isinstance(entry, (list, tuple)) else [entry]
            flat += [float(v) for v in many]
        except (TypeError, ValueError) as error:
            raise CoDiError(f"floats must be numbers, or a list of them, got {type(entry).__name__} {str(entry)[:80]!r}") from error
    return flat


def _host_curve(raw: Any) -> Curve:
    """A curve of the host, read at its own points and between them. Raises CoDiError for what is no curve, or has no points."""
    try:
        from comfy_api.input import CurveInput
    except ImportError as error:
        raise CoDiError("this version of ComfyUI has no curves: use keyframes or floats instead") from error
    try:
        drawn = CurveInput.from_raw(raw)
        points = [float(x) for x, _ in drawn.points]
    except (TypeError, ValueError, KeyError) as error:
        raise CoDiError(f"the curve must be a curve of ComfyUI with points [x, y], got {str(raw)[:80]}") from error
    if not points:
        raise CoDiError("the curve has no points: draw at least one")
    places = sorted({i / 32 for i in range(33)} | {p for p in points if 0 <= p <= 1})
    return Curve(tuple(places), tuple(float(drawn.interp(p)) for p in places))


def parse_weights(text: str, name: str = "weights") -> list[float] | None:
    """Numbers separated by commas, or None for an empty text. Raises CoDiError naming what is no number."""
    if not text.strip():
        return None
    words = [w.strip() for w in text.replace("\n", ",").replace(";", ",").split(",") if w.strip()]
    try:
        return [float(w) for w in words]
    except ValueError as error:
        raise CoDiError(f"{name} must be numbers separated by commas, such as 1, 0.5, -0.2; got {text.strip()!r}") from error

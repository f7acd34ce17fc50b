"""Mixtures that change along the run, the frames of a clip or a batch, as plain CONDITIONING."""

from __future__ import annotations

import pytest
import torch
from codi.codi_models.conditioning import mix
from host.graph import node, sampled, shown
from host.session import Failed


def mixed(*names: str, weights: str = "", method: str = "spherical", count: int = 4, **changes) -> dict:
    graph = sampled(*names, frames=4, **changes.pop("sampler", {}))
    graph["other"] = node("CoDiEncodeText", codi=["load", 1], text="a green star bounces once")
    prompts = {"prompts.prompt0": ["yes", 0], "prompts.prompt1": ["other", 0]}
    graph["mix"] = node("CoDiConditionMixer", **prompts, weights=weights, method=method, count=count, **changes)
    graph["sample"]["inputs"]["positive"] = ["mix", 0]
    return graph


def value(session, graph: dict, link: list):
    session.run(shown(graph, link))
    return session.value(*link)


def parts(latent: dict) -> list[torch.Tensor]:
    samples = latent["samples"]
    return list(samples.unbind()) if samples.is_nested else [samples]


def register_floats(session) -> None:
    """A node that hands on a list, as audio-reactive packs do."""
    from comfy_api.latest import io

    class Floats(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="TestFloats", category="test", outputs=[io.Float.Output()])

        @classmethod
        def execute(cls):
            return io.NodeOutput([0.0, 1.0, 0.5, 0.25])

    session.classes["TestFloats"] = Floats


def embeddings(session) -> tuple[torch.Tensor, torch.Tensor]:
    return session.value("yes")[0][0], session.value("other")[0][0]


def test_a_mixture_without_curves_is_one_prompt_and_shows_its_norm(session):
    graph = mixed("text", weights="1, 2")
    session.forget()
    shown_ui = session.run(shown(graph, ["mix", 0]))
    (entry,) = session.value("mix")
    assert torch.equal(entry[0], mix(list(embeddings(session)), [1, 2], "spherical")) and entry[1].keys() <= {"codi_uncond"}
    assert "norm 1.000" in str(shown_ui["mix"]["text"]) and "similarity" in str(shown_ui["mix"]["text"])


def test_weights_over_steps_and_ranges_of_steps(session):
    conditioning = value(session, mixed("text", keyframes="0:1, 1:0\n0:0, 1:1"), ["mix", 0])
    a, b = embeddings(session)
    assert [(c[1]["start_percent"], c[1]["end_percent"]) for c in conditioning] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert torch.allclose(conditioning[0][0], mix([a, b], [0.875, 0.125], "spherical"), atol=1e-6)
    conditioning = value(session, mixed("text", starts="0, 0.5", ends="0.5, 1"), ["mix", 0])
    assert torch.equal(conditioning[0][0], mix([a], [1], "spherical")) or torch.allclose(conditioning[0][0], a, atol=1e-6)
    assert torch.allclose(conditioning[1][0], b, atol=1e-6)
    both = parts(value(session, mixed("text", starts="0, 0.5", ends="0.5, 1", sampler={"steps": 4}), ["sample", 0]))[0]
    first = parts(value(session, mixed("text", weights="1, 0", sampler={"steps": 4}), ["sample", 0]))[0]
    assert torch.isfinite(both).all() and not torch.allclose(both, first, atol=1e-4)


def test_weights_over_the_frames_of_a_clip(session):
    def clip(**changes):
        return parts(value(session, mixed("video", "audio", over="frames", **changes), ["sample", 0]))

    level, travel = clip(weights="1, 1"), clip(keyframes="0:1, 1:0\n0:0, 1:1")
    assert all(torch.equal(a, b) for a, b in zip(level, clip(keyframes="0:1\n0:1"), strict=True))  # frames alike are the plain path
    assert not torch.allclose(level[0], travel[0], atol=1e-4)
    back = clip(keyframes="0:0, 1:1\n0:1, 1:0")
    assert not torch.allclose(travel[0], back[0], atol=1e-4)
    assert torch.allclose(travel[1], back[1], atol=0.3 * float(travel[1].std()))  # sound follows the mean of the frames
    with pytest.raises(Failed, match="prompts for 3 frames and the video has 4"):
        clip(keyframes="0:1, 1:0\n0:0, 1:1", count=3)


def test_stock_nodes_take_the_mixture(session):
    graph = mixed("video", "text", over="frames", keyframes="0:1, 1:0\n0:0, 1:1")
    graph["average"] = node("ConditioningAverage", conditioning_to=["mix", 0], conditioning_from=["yes", 0], conditioning_to_strength=0.5)
    graph["concat"] = node("ConditioningConcat", conditioning_to=["average", 0], conditioning_from=["other", 0])
    graph["range"] = node("ConditioningSetTimestepRange", conditioning=["yes", 0], start=0.0, end=1.0)
    graph["combine"] = node("ConditioningCombine", conditioning_1=["concat", 0], conditioning_2=["range", 0])
    graph["sample"]["inputs"]["positive"] = ["combine", 0]
    assert all(torch.isfinite(p).all() for p in parts(value(session, graph, ["sample", 0])))


def test_prompt_travel(session):
    graph = mixed("image", sampler={"batch_size": 3})
    links = {"origin": ["yes", 0], "destination": ["other", 0]}
    graph["travel"] = node("CoDiPromptTravel", **links, method="spherical", over="batch", count=3)
    graph["sample"]["inputs"]["positive"] = ["travel", 0]
    assert parts(value(session, graph, ["sample", 0]))[0].shape[0] == 3
    rows = session.value("travel")[0][0]
    a, b = session.value("yes")[0][0], value(session, graph, ["other", 0])[0][0]
    assert torch.allclose(rows, torch.cat([a, mix([a, b], [1, 1], "spherical"), b]), atol=1e-5)


def test_a_list_of_numbers_drives_a_prompt(session):
    register_floats(session)
    graph = mixed("text", over="frames")
    graph["numbers"] = node("TestFloats")
    settings = {"weight": 2.0, "start": 0.0, "end": 1.0}
    graph["voice"] = node("CoDiPromptWeight", prompt=["yes", 0], floats=["numbers", 0], **settings)
    graph["mix"]["inputs"]["prompts.prompt0"] = ["voice", 0]
    (entry,) = value(session, graph, ["mix", 0])
    a, b = embeddings(session)
    frames = entry[0][:, None] + entry[1]["codi_frames"]
    for i, factor in enumerate((0.0, 1.0, 0.5, 0.25)):
        assert torch.allclose(frames[:, i], mix([a, b], [2 * factor, 1], "spherical"), atol=1e-5)
    assert torch.equal(session.value("voice")[0][0], a)


def with_curve(session, points: list) -> dict:
    """Prompt Weight driven by a curve of the host, or by its value where the host has no node for it."""
    graph = mixed("text", over="frames", count=3)
    value = {"points": points, "interpolation": "linear"}
    graph["voice"] = node("CoDiPromptWeight", prompt=["yes", 0], weight=1.0, start=0.0, end=1.0, keyframes="0:5", curve=value)
    if "CurveEditor" in session.classes:
        graph["drawn"] = node("CurveEditor", curve=value)
        graph["voice"]["inputs"]["curve"] = ["drawn", 0]
    graph["mix"]["inputs"]["prompts.prompt0"] = ["voice", 0]
    return graph


def test_the_hosts_curve_drives_a_prompt(session):
    options = session.classes["CoDiPromptWeight"].INPUT_TYPES()["optional"]["curve"]
    assert options[0] == "CURVE" and options[1]["forceInput"]  # no widget whose ramp would count before the keyframes
    graph = with_curve(session, [[0, 0.25], [0.5, 1], [1, 0]])
    if "CurveEditor" not in session.classes:
        with pytest.raises(Failed, match="has no curves: use keyframes or floats") as failure:
            value(session, graph, ["mix", 0])
        assert failure.value.node == "CoDiPromptWeight"
        return
    (entry,) = value(session, graph, ["mix", 0])
    a, b = embeddings(session)
    frames = entry[0][:, None] + entry[1]["codi_frames"]
    for i, factor in enumerate((0.25, 1.0, 0.0)):
        assert torch.allclose(frames[:, i], mix([a, b], [factor, 1], "spherical"), atol=1e-5)
    with pytest.raises(Failed, match="the curve has no points"):
        value(session, with_curve(session, []), ["mix", 0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keyframes": "0.5:1, 0.2:0"}, "ascend"),
        ({"keyframes": "0:nan"}, "finite"),
        ({"keyframes": "soon"}, "no key of a curve"),
        ({"keyframes": "0:1\n0:1\n0:1"}, "3 lines for 2 prompts"),
        ({"ends": "0.5, 0.5"}, "50 to 100 % of the run"),
        ({"starts": "0.5"}, "1 starts for 2 prompts"),
        ({"starts": "0, 2"}, "start comes before end"),
    ],
)
def test_what_is_refused(session, changes, words):
    with pytest.raises(Failed, match=words) as failure:
        session.run(shown(mixed("text", **changes), ["mix", 0]))
    assert failure.value.node == "CoDiConditionMixer"

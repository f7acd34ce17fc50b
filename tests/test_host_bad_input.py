"""What the graph says to input that it cannot use; after each the host still works."""

from __future__ import annotations

import shutil

import pytest
from host.graph import base_graph, decoded, node, outputs, sampled, shown
from host.session import Failed


@pytest.fixture
def refuses(session):
    """Runs a graph that must fail with all the given words, then one that must not."""

    def check(graph: dict, *words: str, node_class: str | None = None) -> None:
        session.forget()
        with pytest.raises(Failed) as failure:
            session.run(graph)
        for word in words:
            assert word in str(failure.value)
        assert node_class is None or failure.value.node == node_class
        assert session.run(shown(base_graph("text"), ["yes", 0]))["show"]

    return check


@pytest.mark.parametrize("damage", ["missing", "truncated", "wrong kind", "other network"])
def test_model_files(session, base, refuses, damage):
    models = base / "models" / "codi"
    broken = models / f"broken {damage}"
    shutil.copytree(models / "tiny", broken)
    file = broken / "text_denoiser.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "wrong kind":
        file.write_bytes(b"\x89PNG not a model")
    else:
        shutil.copy(broken / "audio_denoiser.safetensors", file)
    graph = shown({"load": node("CoDiLoadJoint", name=broken.name, dtype="auto", **outputs("text"))}, ["load", 0])
    session.classes["CoDiLoadJoint"].GET_SCHEMA()
    refuses(graph, "text_denoiser.safetensors")
    costs = session.run(shown({"load": node("CoDiLoad", name=broken.name)}, ["load", 0]))["load"]["text"][0]
    said = {"missing": "missing", "other network": "unusable, text_denoiser.safetensors holds the weights of audio_denoiser"}
    line = next(line for line in costs.splitlines() if line.startswith("text_denoiser"))
    assert said.get(damage, "not a whole safetensors file") in line
    for entry in sampled("audio", model=broken.name).values():  # what does not need the file still works
        if entry["class_type"] == "CoDiLoadJoint":
            assert session.run(shown({"load": entry}, ["load", 0]))["show"]


def test_model_that_is_not_there(refuses):
    refuses(shown({"load": node("CoDiLoad", name="nowhere")}, ["load", 0]), "nowhere")


def test_no_output_chosen(refuses):
    refuses(shown(base_graph("text", composed=()), ["load", 0]), "no output chosen", "text", node_class="CoDiLoadJoint")
    graph = base_graph("text")
    graph["empty"]["inputs"]["text"] = False
    refuses(shown(graph, ["empty", 0]), "no output chosen", node_class="CoDiEmptyJointLatent")


def test_more_outputs_than_composed(refuses):
    graph = sampled("image", "audio", composed=("audio", "text"))
    refuses(shown(graph, ["sample", 0]), "image", "audio", "compose", node_class="CoDiJointSampler")


@pytest.mark.parametrize(
    ("latent", "shape"),
    [
        (node("EmptySD3LatentImage", width=64, height=64, batch_size=1), "(1, 16, 8, 8)"),
        (node("EmptyLatentAudio", seconds=2.0, batch_size=1), "(1, 64,"),
        (node("EmptyMochiLatentVideo", width=64, height=64, length=7, batch_size=1), "(1, 12,"),
    ],
    ids=["image", "sound", "clip"],
)
def test_latent_of_another_model(session, refuses, latent, shape):
    graph = sampled("image", "audio")
    graph["other"] = latent
    graph["noisy"] = node("LatentMultiply", samples=["other", 0], multiplier=1.0)
    graph["decode"] = node("CoDiDecodeImage", codi=["load", 1], latent=["noisy", 0])
    del graph["sample"]
    refuses(graph, shape, "video (batch, 4, any, any, any)", node_class="CoDiDecodeImage")


def test_foreign_latent_in_the_sampler(session, refuses):
    graph = sampled("audio", "text")
    graph["empty"] = node("EmptyLatentAudio", seconds=2.0, batch_size=1)
    refuses(shown(graph, ["sample", 0]), "latent of shape", node_class="CoDiJointSampler")


def test_part_that_is_not_in_the_latent(refuses):
    refuses(decoded(sampled("text"), "video"), "holds no video", "only text", node_class="CoDiDecodeVideo")


def test_sizes_the_networks_cannot_make(refuses):
    for size, words in (({"width": 72}, ("72 x 64", "multiples of 16")), ({"frames": 200}, ("200 frames", "30"))):
        graph = base_graph("video")
        graph["empty"]["inputs"].update(size)
        refuses(shown(graph, ["empty", 0]), *words, node_class="CoDiEmptyJointLatent")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("1, -1", ("sum", "0")),
        ("nan, 1", ("finite",)),
        ("1", ("1 weights for 2",)),
        ("1, two", ("numbers separated by commas", "two")),
        ("0,0", ("0",)),
    ],
)
def test_weights(refuses, weights, words):
    graph = base_graph("text")
    graph["mix"] = node(
        "CoDiConditionMixer", **{"prompts.prompt0": ["yes", 0], "prompts.prompt1": ["no", 0]}, weights=weights, method="linear"
    )
    refuses(shown(graph, ["mix", 0]), *words, node_class="CoDiConditionMixer")


def test_conditioning_of_another_model(session, refuses):
    import torch
    from comfy_api.latest import io

    class Foreign(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="ForeignConditioning", category="test", outputs=[io.Conditioning.Output()])

        @classmethod
        def execute(cls):
            return io.NodeOutput([[torch.zeros(1, 77, 768), {}]])

    session.classes["ForeignConditioning"] = Foreign
    graph = sampled("text", positive=["other", 0])
    graph["other"] = node("ForeignConditioning")
    refuses(shown(graph, ["sample", 0]), "768 wide", "takes 128", node_class="CoDiJointSampler")


def test_area_conditioning(refuses):
    graph = sampled("image", positive=["area", 0])
    graph["area"] = node("ConditioningSetArea", conditioning=["yes", 0], width=64, height=64, x=0, y=0, strength=1.0)
    refuses(shown(graph, ["sample", 0]), "area", node_class="CoDiJointSampler")


def test_three_hours_of_sound(refuses):
    graph = {"codi": node("CoDiLoad", name="tiny"), "long": node("EmptyAudio", duration=3 * 3600.0, sample_rate=8000, channels=1)}
    graph["encode"] = node("CoDiEncodeAudio", codi=["codi", 0], audio=["long", 0])
    refuses(shown(graph, ["encode", 0]), "10800 s", "600", "start and length", node_class="CoDiEncodeAudio")


def test_compose_takes_denoisers_of_one_model_once(session, refuses):
    graph = base_graph("text")
    graph["d"] = node("CoDiDenoiser", codi=["load", 1], denoiser="text_denoiser", dtype="auto")
    settings = {"wiring": "cross", "alignment": 1.0, "alignment_guidance": 1.0}
    graph["joint"] = node("CoDiCompose", **{"models.model0": ["d", 0], "models.model1": ["d", 0]}, **settings)
    refuses(shown(graph, ["joint", 0]), "text_denoiser", "once", node_class="CoDiCompose")
    graph["joint"] = node("CoDiCompose", **{"models.model0": ["load", 0]}, **settings)
    refuses(shown(graph, ["joint", 0]), "CoDi Denoiser", node_class="CoDiCompose")
    graph["align"] = node("CoDiAlignment", model=["d", 0], **settings)
    refuses(shown(graph, ["align", 0]), "joint MODEL", node_class="CoDiAlignment")

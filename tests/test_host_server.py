"""A ComfyUI server with the pack in custom_nodes, over HTTP and websocket."""

from __future__ import annotations

import json

import pytest
from host.graph import NAMES, sampled, shown, workflow

OUTPUTS = {
    "text_to_everything": {"6": "images", "7": "audio", "8": "images", "9": "text"},
    "picture_and_sound_to_clip": {"7": "audio", "8": "images", "10": "images"},
    "mix_two_prompts": {"6": "images", "7": "audio", "8": "images", "9": "text"},
}


def test_the_pack_is_loaded_with_docs_and_names(server):
    assert "IMPORT FAILED" not in server.log()
    ours = {k: v for k, v in server.json("/object_info").items() if k.startswith("CoDi")}
    assert {"CoDiLoadJoint", "CoDiEncodeText", "CoDiJointSampler", "CoDiDecodeVideo"} <= set(ours)
    names = server.json("/i18n")["en"]["nodeDefs"]
    for kind, entry in ours.items():
        assert entry["description"] and entry["category"].startswith("CoDi")
        assert server.get(f"/extensions/ComfyUI-CoDi/docs/{kind}.md").decode().startswith("# ")
        named = names[kind]
        inputs = {k for group in entry["input"].values() for k in group}
        assert set(named["inputs"]) <= inputs and named["display_name"] == entry["display_name"]


def test_example_workflows_are_offered_with_thumbnails(server):
    assert sorted(server.json("/workflow_templates")["ComfyUI-CoDi"]) == NAMES == sorted(OUTPUTS)
    for name in NAMES:
        graph = json.loads(server.get(f"/api/workflow_templates/ComfyUI-CoDi/{name}.json"))
        assert {n["type"] for n in graph["nodes"]} == {n["class_type"] for n in workflow(name).values()}
        assert server.get(f"/api/workflow_templates/ComfyUI-CoDi/{name}.jpg")[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize("name", NAMES)
def test_example_workflows_run(server, name):
    run = server.run(workflow(name, steps=3), preview_method="latent2rgb")
    assert run.end == "execution_success", run.error
    shown_by = {i: kind for i, output in run.outputs.items() for kind in ("text", "images", "audio") if output.get(kind)}
    assert OUTPUTS[name].keys() <= shown_by.keys()
    for i, kind in OUTPUTS[name].items():
        first = run.outputs[i][kind][0]
        if kind == "text":
            assert first.strip()
        else:
            body = server.file(first)
            start = {"png": b"\x89PNG", "mp4": b"ftyp", "flac": b"fLaC"}[first["filename"].rsplit(".")[-1]]
            assert start in body[:12] and len(body) > 200
    steps = [d["value"] for k, d in run.events if k == "progress" and d["max"] == 3]
    assert {1, 2, 3} <= set(steps)
    assert any(b"\xff\xd8\xff" in frame[:64] for frame in run.binary)


def test_an_error_is_reported_and_the_queue_goes_on(server):
    graph = shown(sampled("image", "audio", composed=("audio",)), ["sample", 0])
    run = server.run(graph)
    assert run.end == "execution_error" and "compose" in run.error
    assert server.run(shown(sampled("audio"), ["sample", 0])).end == "execution_success"


def test_interrupt(server):
    def stop(kind, data):
        if kind == "progress" and data["max"] == 1000:
            server.post("/interrupt", {})

    graph = shown(sampled("video", "text", steps=1000), ["sample", 0])
    assert server.run(graph, at=stop).end == "execution_interrupted"
    assert server.run(shown(sampled("text", seed=98), ["sample", 0])).end == "execution_success"
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert server.run(shown(sampled("text", seed=97), ["sample", 0])).end == "execution_success"


def test_a_wrong_widget_value_is_refused_by_name(server):
    graph = shown(sampled("text", wiring="sideways"), ["sample", 0])
    run = server.run(graph)
    assert run.end == "refused" and "wiring" in run.error and "sideways" in run.error

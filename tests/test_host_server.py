"""A ComfyUI server with the pack in custom_nodes, over HTTP and websocket."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from host.graph import NAMES, OFFICIAL, WORKFLOWS, note, sampled, shown, template, workflow
from host.setting import PACK

STARTS = {"png": b"\x89PNG", "mp4": b"ftyp", "flac": b"fLaC", "webp": b"RIFF", "safetensors": b"{"}


def test_the_pack_is_loaded_with_docs_and_names(server):
    assert "IMPORT FAILED" not in server.log()
    ours = {k: v for k, v in server.json("/object_info").items() if k.startswith("CoDi")}
    assert {"CoDiLoadJoint", "CoDiEncodeText", "CoDiJointSampler", "CoDiDecodeVideo"} <= set(ours)
    for kind, entry in ours.items():
        assert entry["description"] and entry["category"].startswith("CoDi")
        assert server.get(f"/extensions/ComfyUI-CoDi/docs/{kind}.md").decode().startswith("# ")


def test_templates_are_offered_with_thumbnails(server):
    assert sorted(server.json("/workflow_templates")["ComfyUI-CoDi"]) == [template(name) for name in NAMES]
    for name in NAMES:
        address = f"/api/workflow_templates/ComfyUI-CoDi/{quote(template(name))}"
        graph = json.loads(server.get(f"{address}.json"))
        (about,) = (n for n in graph["nodes"] if n["type"] == "MarkdownNote")
        assert about["widgets_values"] == [note(name)] and len(graph["groups"]) >= 3
        drawn = {str(n["id"]): n for n in graph["nodes"] if n is not about}
        assert {i: n["type"] for i, n in drawn.items()} == {i: n["class_type"] for i, n in workflow(name).items()}
        for i, entry in workflow(name).items():
            set_by_hand = [v for v in entry["inputs"].values() if not isinstance(v, list)]
            assert all(v in drawn[i].get("widgets_values", []) for v in set_by_hand), f"{name}: {entry}: run tests/host/make_workflows.py"
            title = entry["_meta"]["title"]
            assert title and drawn[i].get("title", title) == title
        body = server.get(f"{address}.jpg")
        moves = name not in OFFICIAL and any(n["class_type"] in ("CoDiPreview", "CoDiDecodeVideo") for n in workflow(name).values())
        # Browsers go by what a file holds: where a video comes out, the thumbnail moves.
        assert body[:3] == b"\xff\xd8\xff" if not moves else body[:4] == b"RIFF" and b"ANIM" in body[:64]


def test_notes_are_a_heading_and_a_few_sentences():
    assert {p.stem for p in WORKFLOWS.glob("*.json")} == {p.stem for p in (WORKFLOWS / "notes").glob("*.md")} == set(NAMES)
    for name in NAMES:
        heading, body, *more = note(name).split("\n\n")
        assert heading.startswith("## ") and 1 <= body.count(". ") + 1 <= 5, name
        assert len(more) == (name in OFFICIAL) and all(text.startswith("**What to expect.** ") for text in more), name


def test_official_templates_come_last_and_load_the_official_model():
    assert not [name for name in NAMES if set(template(name)) & set('<>:"/\\|?*')]  # what names of files may not hold on Windows
    assert len(OFFICIAL) == 6 and NAMES[-6:] == OFFICIAL and 12 <= len(NAMES) <= 15
    for name in NAMES:
        models = {n["inputs"]["name"] for n in workflow(name).values() if n["class_type"] in ("CoDiLoad", "CoDiLoadJoint")}
        assert models == {"codi" if name in OFFICIAL else "codi-mini"}, name


def test_templates_save_what_they_make_and_leave_defaults_to_the_model():
    for name in NAMES:
        kinds = {n["class_type"] for n in workflow(name).values()}
        assert kinds & {"SaveImage", "SaveVideo", "SaveAudio", "CoDiDecodeText"}, name
        for entry in workflow(name).values():
            if entry["class_type"] == "CoDiJointSampler":
                assert entry["inputs"]["steps"] == -1 and entry["inputs"]["sampler_name"] == "model's own", name


def test_there_is_a_workflow_for_every_capability(server):
    used = {n["class_type"] for name in NAMES for n in workflow(name).values()}
    assert {"VAEDecode", "VAEDecodeAudio", "SamplerCustomAdvanced", "SaveImage", "SaveVideo", "SaveAudio"} <= used
    ours = {kind for kind in server.json("/object_info") if kind.startswith("CoDi")}
    assert len(ours & used) >= 24  # test_host_saved_workflows.py runs the others


@pytest.mark.parametrize("name", NAMES)
def test_example_workflows_leave_at_its_default_what_their_prompts_leave_out(server, name):
    graph = json.loads((PACK / "example_workflows" / f"{template(name)}.json").read_text(encoding="utf-8"))
    drawn = {str(n["id"]): n.get("widgets_values_named", {}) for n in graph["nodes"]}
    for i, entry in workflow(name).items():
        declared = server.json(f"/object_info/{entry['class_type']}")[entry["class_type"]]["input"]
        for widget, (_, *options) in {**declared.get("required", {}), **declared.get("optional", {})}.items():
            if widget not in entry["inputs"] and widget in drawn[i] and options and "default" in options[0]:
                assert drawn[i][widget] == options[0]["default"], f"{entry['class_type']}: {widget}: run tests/host/make_workflows.py"


@pytest.mark.parametrize("name", NAMES)
def test_example_workflows_run(server, name):
    graph = workflow(name, steps=3)
    run = server.run(graph, preview_method="latent2rgb")
    assert run.end == "execution_success", run.error
    shows = {i for i, n in graph.items() if server.json(f"/object_info/{n['class_type']}")[n["class_type"]]["output_node"]}
    assert shows and shows <= run.outputs.keys()
    # Nodes in the middle may say something on themselves; older hosts leave out cached ones.
    assert all(set(run.outputs[i]) == {"text"} for i in run.outputs.keys() - shows)
    for shown_by in run.outputs.values():
        assert shown_by and all(shown_by.values())
        for entry in (e for entries in shown_by.values() for e in entries):
            if isinstance(entry, dict):
                body = server.file(entry)
                assert STARTS[entry["filename"].rsplit(".")[-1]] in body[:12] and len(body) > 100
            else:
                assert isinstance(entry, bool) or entry.strip()  # whether pictures move, or a text
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

"""Shipped workflows in the real front end, in the classic canvas and in Nodes 2.0."""

from __future__ import annotations

import json

import pytest
from host.browser import Page, open_page
from host.setting import PACK

_MEDIA = "() => [...document.querySelectorAll('{0}')].filter(e => e.checkVisibility() && e.readyState >= 1 && e.duration > 1).length"
_STEPS = "n => app.graph._nodes.flatMap(x => x.widgets ?? []).filter(w => /(^|: )steps$/.test(w.name)).forEach(w => { w.value = n })"


def shipped(folder: str, name: str) -> dict:
    return json.loads((PACK / folder / f"{name}.json").read_text(encoding="utf-8"))


def run(page: Page, workflow: dict, focus: str) -> None:
    """Open, run with few steps, and bring the first node of a kind to the middle."""
    page.open(workflow)
    assert page.page.evaluate("() => app.graph._nodes.length") == len(workflow["nodes"])
    assert page.complaints() == []
    page.page.evaluate(_STEPS, 4)
    assert page.run() == "execution_success"
    page.focus(focus)


def test_text_to_everything_is_shown(server):
    with open_page(server.url) as page:
        run(page, shipped("example_workflows", "text_to_everything"), "CoDiDecodeImage")
        page.page.evaluate("() => { app.canvas.ds.scale = 0.7; app.canvas.ds.offset = [40, 120]; app.graph.setDirtyCanvas(true, true) }")
        page.page.wait_for_timeout(1500)
        pictures = page.page.evaluate(
            "() => app.graph._nodes.filter(n => n.type == 'CoDiDecodeImage')"
            ".flatMap(n => n.imgs ?? []).map(i => [i.naturalWidth, i.naturalHeight])"
        )
        assert pictures == [[64, 64]]
        page.page.wait_for_function(_MEDIA.format("video"), timeout=20_000)
        page.page.wait_for_function(_MEDIA.format("audio"), timeout=20_000)
        caption = page.page.locator(".codi-text").first
        assert caption.is_visible() and caption.text_content().strip()
        page.assert_no_trouble()


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_preview_shows_picture_clip_sound_and_caption(server, nodes2):
    prompt = json.loads((PACK / "tests" / "workflows" / "text_to_everything.json").read_text(encoding="utf-8"))
    prompt = {i: n for i, n in prompt.items() if not n["class_type"].startswith("CoDiDecode")}
    sampler = next(i for i, n in prompt.items() if n["class_type"] == "CoDiJointSampler")
    loader = next(i for i, n in prompt.items() if n["class_type"] == "CoDiLoadJoint")
    prompt[sampler]["inputs"]["steps"] = 4
    latent = next(n for n in prompt.values() if n["class_type"] == "CoDiEmptyJointLatent")
    latent["inputs"]["batch_size"] = 2
    prompt["90"] = {"class_type": "CoDiPreview", "inputs": {"codi": [loader, 1], "latent": [sampler, 0]}}
    with open_page(server.url, nodes2=nodes2) as page:
        page.open_api(prompt, "preview")
        graph = json.loads(page.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
        run(page, graph, "CoDiPreview")
        assert (page.page.locator("[data-node-id]").count() > 0) == nodes2
        view = page.page.locator(".codi-preview")
        page.page.wait_for_function(_MEDIA.format(".codi-preview video"), timeout=20_000)
        page.page.wait_for_function(_MEDIA.format(".codi-preview audio"), timeout=20_000)
        for part in (".codi-image", ".sound img"):
            picture = view.locator(part)
            assert picture.is_visible() and picture.evaluate("e => e.complete && e.naturalWidth") in (64, 512)
        caption = view.locator(".caption")
        assert caption.is_visible() and caption.text_content().strip()
        first = view.locator("video").get_attribute("src")
        view.locator(".pages button").last.click()
        assert view.locator(".pages").text_content() == "‹2 / 2›" and view.locator("video").get_attribute("src") != first
        # The clip carries the sound: a click into the spectrogram plays it from there.
        page.page.wait_for_function(_MEDIA.format(".codi-preview video"), timeout=20_000)
        place = view.locator("video").evaluate("e => { e.muted = true; e.loop = false; return e.duration }")
        box = view.locator(".sound").bounding_box()
        page.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.page.wait_for_function("() => document.querySelector('.codi-preview video').currentTime > 0.3", timeout=10_000)
        assert place > 1
        page.shoot("preview")
        page.assert_no_trouble()


def test_a_blueprint_is_offered_and_runs(server):
    offered = server.json("/global_subgraphs")
    names = {entry["name"] for entry in offered.values()}
    files = {p.stem for p in (PACK / "subgraphs").glob("*.json")}
    assert len(files) >= 4 and files <= names
    workflow = shipped("subgraphs", "Text to Everything (CoDi)")
    with open_page(server.url) as page:
        run(page, workflow, "")
        widgets = page.page.evaluate("() => app.graph._nodes[0].widgets.map(w => w.name)")
        # Older front ends put the number of the inner node before the name.
        assert {"text", "seed", "steps", "cfg", "name"} <= {name.rsplit(": ", 1)[-1] for name in widgets}
        page.assert_no_trouble()


def test_a_blueprint_takes_what_is_connected_to_it(server):
    with open_page(server.url) as page:
        page.open(shipped("subgraphs", "Video to Audio (CoDi)"))
        connected = page.page.evaluate(
            """() => {
              const scene = LiteGraph.createNode('CoDiBounceScene'), blueprint = app.graph._nodes[0];
              app.graph.add(scene);
              const slot = (list, name) => list.findIndex(s => s.name == name);
              return !!scene.connect(slot(scene.outputs, 'video'), blueprint, slot(blueprint.inputs, 'video'));
            }"""
        )
        assert connected
        page.page.evaluate(_STEPS, 4)
        assert page.run() == "execution_success"
        page.assert_no_trouble()

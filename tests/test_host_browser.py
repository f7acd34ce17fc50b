"""Templates and ready-made subgraphs in the real front end, in the classic canvas and in Nodes 2.0."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any
from urllib.parse import quote

import pytest
from host.browser import Page, open_page
from host.graph import NAMES, SAVED, template
from host.make_subgraphs import BLUEPRINTS
from host.setting import PACK

BOTH = pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
_BOXES = """() => app.graph._nodes.map(node => {
  const element = document.querySelector(`[data-node-id="${node.id}"]`), scale = app.canvas.ds.scale, [x, y] = node.pos;
  const box = element?.getBoundingClientRect(), least = node.computeSize();
  const [width, height] = box ? [box.width / scale, box.height / scale] : [node.size[0], node.size[1] + 30];
  // What stands outside of its node is cut or lies over others.
  const parts = [...element?.querySelectorAll('textarea, input, video, .codi-results') ?? []].filter(e => e.checkVisibility());
  const held = parts.every(e => e.getBoundingClientRect().bottom <= box.bottom + 2 && e.getBoundingClientRect().right <= box.right + 2);
  const inside = box ? held : !node.type.startsWith('CoDi') || least[1] <= node.size[1] + 2;
  return { name: node.title, inside, left: x, top: y - 30, right: x + width, low: y - 30 + height };
})"""
_SHOWN = """() => (app.canvas.graph ?? app.graph)._nodes.filter(n => n.codiView).map(n => n.codiView.root).map(e => ({
  image: e.querySelector('.codi-image').getAttribute('src'), video: e.querySelector('video').getAttribute('src'),
  text: e.querySelector('.codi-text').textContent })).filter(r => r.image || r.video || r.text)"""
_PLAYABLE = (
    "kind => [...document.querySelectorAll('.codi-results ' + kind)].some(e => e.checkVisibility() && e.readyState >= 1 && e.duration > 1)"
)
_SENT = "async () => (await app.graphToPrompt()).output"
_SET = """([name, value]) => {
  const found = app.graph._nodes.flatMap(n => (n.widgets ?? []).map(w => [n, w])).filter(([, w]) => w.name.split(': ').pop() == name);
  for (const [node, widget] of found) { widget.value = value; widget.callback?.(value, app.canvas, node); }
  return found.length;
}"""


def shipped(folder: str, name: str) -> dict:
    return json.loads((PACK / folder / f"{name}.json").read_text(encoding="utf-8"))


def assert_apart(page: Page, name: str) -> None:
    """No two nodes of the open graph touch, and nothing sticks out of one."""
    boxes: list[dict[str, Any]] = page.page.evaluate(_BOXES)
    assert [b["name"] for b in boxes if not b["inside"]] == [], name
    for a, b in combinations(boxes, 2):
        apart = a["right"] <= b["left"] or b["right"] <= a["left"] or a["low"] <= b["top"] or b["low"] <= a["top"]
        assert apart, f"{name}: {a} and {b}"


def shown(page: Page, least: int) -> list[dict]:
    """What CoDi's nodes show, once at least so many of them show something."""
    page.page.wait_for_function(f"n => ({_SHOWN})().length >= n", arg=least, timeout=30_000)
    return page.page.evaluate(_SHOWN)


@BOTH
def test_templates_and_subgraphs_open_save_and_load_without_overlap(server, nodes2):
    graphs = {name: shipped("example_workflows", template(name)) for name in NAMES}
    graphs |= {b.name: shipped("subgraphs", b.name) for b in BLUEPRINTS}
    with open_page(server.url, nodes2=nodes2) as page:
        for name, graph in graphs.items():
            page.open(graph, wait=700)
            assert page.page.evaluate("() => app.graph._nodes.length") == len(graph["nodes"]), name
            assert_apart(page, name)
            sent = page.page.evaluate(_SENT)
            page.open(page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))"), wait=300)
            assert sent and page.page.evaluate(_SENT) == sent, f"{name}: saved and loaded"
            assert_apart(page, f"{name}, saved and loaded")
        for saved in sorted((SAVED / "graphs").glob("*.json")):  # as version 0.3 left them
            graph = json.loads(saved.read_text(encoding="utf-8"))
            page.open(graph, wait=300)
            assert page.page.evaluate("() => app.graph._nodes.length") == len(graph["nodes"]), saved.stem
            links = {link: (str(source), slot) for link, source, slot, *_ in graph["links"]}
            sent = page.page.evaluate(_SENT)
            for entry in graph["nodes"]:  # every link leads to the input that it led to, wherever that stands on its node
                for given in entry.get("inputs", []) if str(entry["id"]) in sent else ():
                    if given.get("link") is not None:
                        assert tuple(sent[str(entry["id"])]["inputs"][given["name"]]) == links[given["link"]], (saved.stem, given)
        page.assert_no_trouble()


@BOTH
def test_results_are_shown_and_stay(server, nodes2):
    """Run, pages, seek; another tab, undo and a reload of the page, after each of which the results are there again."""
    with open_page(server.url, nodes2=nodes2) as page:
        page.page.goto(f"{server.url}/?codi={quote(template('text_to_everything'))}")  # the address opens a template
        page.ready()
        page.page.wait_for_function("() => app.graph._nodes.some(n => n.type == 'CoDiPreview')", timeout=60_000)
        page.page.evaluate(_SET, ["steps", 2])
        page.page.evaluate(_SET, ["batch_size", 2])
        page.page.wait_for_timeout(500)
        assert page.run() == "execution_success"
        assert (page.page.locator("[data-node-id]").count() > 0) == nodes2
        assert_apart(page, "after a run")
        page.focus("CoDiPreview")
        view = page.page.locator(".codi-results", has=page.page.locator(".codi-image[src]")).first
        for kind in ("video", "audio"):
            page.page.wait_for_function(_PLAYABLE, arg=kind, timeout=20_000)
        for part, size in ((".codi-image", 64), (".sound img", 512)):
            picture = view.locator(part)
            assert picture.is_visible() and picture.evaluate("e => e.naturalWidth") == size
        assert view.locator(".codi-image").evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"
        assert view.locator(".codi-text").text_content().strip()
        first = view.locator("video").get_attribute("src")
        view.locator(".pages button").last.click()
        assert view.locator(".pages").text_content() == "‹2 / 2›" and view.locator("video").get_attribute("src") != first
        page.page.wait_for_function(_PLAYABLE, arg="video", timeout=20_000)
        view.locator("video").evaluate("e => { e.muted = true; e.loop = false }")
        box = view.locator(".sound").bounding_box()
        page.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # the video carries the audio and plays from here
        page.page.wait_for_function(
            "() => [...document.querySelectorAll('.codi-results video')].some(v => v.currentTime > 0.3)", timeout=10_000
        )
        page.shoot("results")
        view.locator(".pages button").last.click()
        before = shown(page, 2)
        page.open(shipped("example_workflows", template("building_blocks")))
        assert page.page.evaluate(_SHOWN) == []
        page.page.locator(".workflow-tab").nth(-2).click()
        assert shown(page, 2) == before
        page.page.evaluate(
            """() => {
              const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
              app.graph._nodes[0].title = 'changed';
              (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
              return tracker.undo();
            }"""
        )
        page.page.wait_for_timeout(1000)
        assert page.page.evaluate("() => app.graph._nodes.every(n => n.title != 'changed')") and shown(page, 2) == before
        page.page.reload()
        page.ready()
        assert shown(page, 2) == before
        page.focus("CoDiPreview")
        assert page.page.locator(".codi-results .codi-image[src]").first.is_visible()
        page.assert_no_trouble()


@BOTH
def test_results_stay_when_nodes_are_collapsed_and_copied(server, nodes2):
    """As stock previews do when they are collapsed; a copy shows what was copied, where the stock one is empty until it runs."""
    collapse = "() => app.graph._nodes.filter(n => n.codiView).forEach(n => n.collapse())"
    copied = "() => app.graph._nodes.filter(n => n.type == 'CoDiPreview').length"
    with open_page(server.url, nodes2=nodes2) as page:
        page.open(shipped("example_workflows", template("text_to_everything")))
        for name, value in (("steps", 2), ("batch_size", 2)):
            page.page.evaluate(_SET, [name, value])
        page.page.wait_for_timeout(500)
        assert page.run() == "execution_success"
        page.focus("CoDiPreview", 0.5)
        view = page.page.locator(".codi-results", has=page.page.locator(".codi-image[src]"))
        view.locator(".pages button").last.click()
        before = shown(page, 1)
        page.page.evaluate(collapse)
        page.page.wait_for_timeout(700)
        assert not any(e.is_visible() for e in page.page.locator(".codi-results").all()) and page.page.evaluate(_SHOWN) == before
        page.page.evaluate(collapse)
        page.page.wait_for_timeout(700)
        assert page.page.evaluate(_SHOWN) == before and view.locator(".pages").text_content() == "‹2 / 2›"
        assert view.locator(".codi-image").is_visible()
        assert_apart(page, "after collapsing")
        page.page.evaluate(
            """() => {
              app.canvas.deselectAll();
              app.canvas.select(app.graph._nodes.find(n => n.type == 'CoDiPreview'));
              app.canvas.canvas.focus();
            }"""
        )
        page.page.mouse.move(1500, 900)
        page.page.keyboard.press("Control+c")
        page.page.keyboard.press("Control+Shift+v")  # with its links
        page.page.wait_for_function(f"n => ({copied})() == n", arg=2, timeout=10_000)
        view.locator(".pages button").first.click()
        after = shown(page, len(before) + 1)
        assert sum(result == after[-1] for result in after) == 2 and after[-1]["image"] and after[-1]["text"]
        saved = page.page.evaluate("() => JSON.stringify(app.graph.serialize())")
        assert "codiCopied" not in saved and after[-1]["image"] not in saved, "results are no part of the graph"
        page.open(shipped("example_workflows", template("building_blocks")))
        page.page.locator(".workflow-tab").nth(-2).click()
        assert shown(page, len(before) + 1) == after
        assert page.run() == "execution_success" and page.page.evaluate(copied) == 2
        page.assert_no_trouble()


def test_subgraphs_run_with_the_values_shown_outside(server):
    offered = {entry["name"] for entry in server.json("/global_subgraphs").values()}
    assert {b.name for b in BLUEPRINTS} <= offered
    changed = {"seed": 77, "steps": 2, "cfg": 2.5, "text": "a blue star", "weights": "1, 0.5", "last_frames": 2}
    with open_page(server.url) as page:
        for blueprint in BLUEPRINTS:
            page.open(shipped("subgraphs", blueprint.name))
            page.page.evaluate(
                """() => {
                  const blueprint = app.graph._nodes[0], scene = LiteGraph.createNode('CoDiBounceScene');
                  app.graph.add(scene);
                  const slot = (name) => scene.outputs.findIndex(s => s.name == name);
                  blueprint.inputs.forEach((input, i) => { if (slot(input.name) >= 0) scene.connect(slot(input.name), blueprint, i); });
                }"""
            )
            for _, name in blueprint.shown:
                if name in changed:
                    assert page.page.evaluate(_SET, [name, changed[name]]) >= 1, f"{blueprint.name}: {name}"
            page.page.wait_for_timeout(300)
            assert page.run() == "execution_success", blueprint.name
            sent = {key.split(":")[-1]: entry for key, entry in page.queued[-1].items() if ":" in key}
            for number, entry in blueprint.prompt.items():
                for name, value in entry["inputs"].items() if number in sent else ():
                    if not isinstance(value, list):
                        want = changed[name] if (number, name) in blueprint.shown and name in changed else value
                        assert sent[number]["inputs"][name] == want, f"{blueprint.name}: {number}.{name}"
        for _ in range(2):  # entered, left and entered again
            page.page.evaluate("() => app.canvas.setGraph(app.graph._nodes.find(n => n.subgraph).subgraph)")
            assert any(result["video"] for result in shown(page, 1))
            page.page.evaluate("() => app.canvas.setGraph(app.rootGraph ?? app.graph)")
            page.page.wait_for_timeout(500)
        page.assert_no_trouble()

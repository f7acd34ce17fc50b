"""Curves drawn on nodes, what nodes say after a run, and clips that play while they are sampled, in both canvases of the front end."""

from __future__ import annotations

import json
from io import BytesIO
from itertools import count

import pytest
from host.browser import Page, open_page
from host.graph import node, sampled, shown
from PIL import Image

_WIDGET = "([kind, name]) => app.graph._nodes.find(n => n.type == kind).widgets.find(w => w.name == name)?.value"
_FIXED = """() => app.graph._nodes.flatMap(n => n.widgets ?? []).filter(w => w.name == 'control_after_generate')
  .forEach(w => { w.value = 'fixed' })"""
_numbers = count(1)
_KEY = ".codi-curve circle[data-line='{0}'][data-key='{1}']"
MIXER, WEIGHT, MATRIX = "CoDiConditionMixer", "CoDiPromptWeight", "CoDiAlignmentMatrix"


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def page(request, server):
    """One front end for all tests of a canvas."""
    with open_page(server.url, nodes2=request.param) as opened:
        yield opened


def numbered(graph: dict) -> dict:
    """The graph with numbers for names, as the front end writes them.

    Each is given once: older front ends with Nodes 2.0 go on showing the elements of a node of that number that is gone."""
    numbers = {name: str(next(_numbers)) for name in graph}

    def link(value):
        return [numbers[value[0]], value[1]] if isinstance(value, list) else value

    return {numbers[n]: {**entry, "inputs": {k: link(v) for k, v in entry["inputs"].items()}} for n, entry in graph.items()}


def mixed(keyframes: str, **changes) -> dict:
    """Two prompts and their mixture, which PreviewAny makes the host compute."""
    graph = {name: n for name, n in sampled("text").items() if name in ("load", "yes")}
    graph["other"] = node("CoDiEncodeText", codi=["load", 1], text="a green star bounces once")
    settings = {"weights": "", "method": "spherical", "starts": "", "ends": "", "over": "steps", "count": 4, **changes}
    graph["mix"] = node(MIXER, **{"prompts.prompt0": ["yes", 0], "prompts.prompt1": ["other", 0]}, keyframes=keyframes, **settings)
    return shown(graph, ["mix", 0])


def opened(page: Page, graph: dict, focus: str) -> None:
    page.open_api(numbered(graph), "check")
    page.page.evaluate(_FIXED)
    assert page.complaints() == []
    page.focus(focus)
    assert (page.page.locator("[data-node-id]").count() > 0) == page.nodes2


def text_of(page: Page, kind: str = MIXER, name: str = "keyframes") -> str:
    return page.page.evaluate(_WIDGET, [kind, name])


def keys(text: str) -> list[list[list[float]]]:
    return [[[float(n) for n in key.split(":")] for key in line.split(",") if key.strip()] for line in text.split("\n")]


def queued(page: Page, kind: str) -> dict:
    """Inputs of the first node of a kind in the prompt that was queued last."""
    return next(n["inputs"] for n in page.queued[-1].values() if n["class_type"] == kind)


def middle(page: Page, selector: str) -> tuple[float, float]:
    box = page.page.locator(selector).first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def place(page: Page, across: float, down: float) -> tuple[float, float]:
    """Pixel of a place on the plot, both 0 to 1."""
    box = page.page.locator(".codi-curve .frame").first.bounding_box()
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.page.mouse.move(*start)
    page.page.mouse.down()
    page.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    page.page.mouse.move(*end)
    page.page.mouse.up()


def test_a_dragged_key_changes_the_text_and_the_queued_prompt(page):
    parts = 4 + page.nodes2  # older hosts say nothing about what they have run before
    opened(page, mixed("0:1, 0.5:0.2, 1:0\n0:0, 1:1", count=parts), MIXER)
    drag(page, middle(page, _KEY.format(0, 1)), place(page, 0.25, 0.5))
    after = text_of(page)
    first, second = keys(after)
    assert second == [[0, 0], [1, 1]] and first[0] == [0, 1] and first[2] == [1, 0]
    assert first[1] == pytest.approx([0.25, 0.5], abs=0.03)
    assert page.run() == "execution_success"
    assert queued(page, MIXER)["keyframes"] == after
    box = page.page.locator(".codi-text").filter(has_text="similarity").first
    box.wait_for(timeout=20_000)
    page.shoot("curve")
    assert len(box.text_content().splitlines()) == parts
    assert all("norm 1.000" in line and line.count(".") == 3 and "similarity" in line for line in box.text_content().splitlines())
    page.assert_no_trouble()


def test_keys_are_added_and_taken_away(page):
    opened(page, mixed(""), MIXER)
    mouse = page.page.mouse
    page.page.locator(".codi-curve .prompts button").nth(1).click()
    mouse.click(*place(page, 0.5, 0.75))
    assert text_of(page).startswith("\n") and keys(text_of(page))[1][1] == pytest.approx([0.5, 0.25], abs=0.03)
    assert [key for key in keys(text_of(page))[1][::2]] == [[0, 1], [1, 1]]  # the rest stays level
    page.page.wait_for_timeout(700)
    mouse.dblclick(*middle(page, _KEY.format(1, 1)))
    assert text_of(page) == "\n0:1, 1:1"
    page.page.wait_for_timeout(700)
    mouse.dblclick(*place(page, 0.3, 0.4))  # on empty ground a double click is a click
    assert len(keys(text_of(page))[1]) == 3
    for _ in range(3):
        mouse.click(*middle(page, _KEY.format(1, 0)), button="right")
    assert text_of(page) == "" and page.page.locator(".codi-curve circle").count() == 0
    assert page.page.locator(".litecontextmenu, .p-contextmenu").count() == 0
    page.assert_no_trouble()


def test_the_text_draws_the_curve_and_is_all_that_is_stored(page):
    opened(page, mixed("0:1, 1:0"), MIXER)
    area = page.page.locator("textarea:visible").filter(has_not_text="bounces")
    area = next(a for a in area.all() if a.input_value() == "0:1, 1:0")
    area.fill("0:0, 0.5:2, 1:-1\n0:1, 0.5:soon")
    page.page.wait_for_timeout(200)
    circles = page.page.locator(".codi-curve circle")
    assert circles.count() == 3 and "soon is no key" in page.page.locator(".codi-curve .note").text_content()
    drag(page, middle(page, _KEY.format(0, 0)), place(page, 0.0, 1.0))
    assert text_of(page) == "0:-1, 0.5:2, 1:-1\n0:1, 0.5:soon"  # what cannot be read is left alone
    area.fill("0:0, 0.5:2, 1:-1")
    saved = json.loads(page.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    (values,) = (n["widgets_values"] for n in saved["nodes"] if n["type"] == MIXER)
    assert [v for v in values if v is not None] == ["", "spherical", "", "", "0:0, 0.5:2, 1:-1", "steps", 4]
    page.open(saved)
    assert text_of(page) == "0:0, 0.5:2, 1:-1" and page.page.locator(".codi-curve circle").count() == 3
    page.assert_no_trouble()


def test_prompt_weight_has_a_curve_of_its_own(page, server):
    graph = mixed("")
    graph["voice"] = node(WEIGHT, prompt=["yes", 0], weight=1.0, start=0.0, end=1.0, keyframes="0:1, 1:0")
    graph["mix"]["inputs"]["prompts.prompt0"] = ["voice", 0]
    opened(page, graph, WEIGHT)
    assert page.page.locator(".codi-curve").count() == 2
    curve = page.page.locator(".codi-curve").filter(has=page.page.locator("circle"))
    assert curve.locator("circle").count() == 2 and not curve.locator(".prompts button").first.is_visible()
    x, y = middle(page, _KEY.format(0, 1))
    drag(page, (x, y), (x, y - curve.locator(".frame").bounding_box()["height"] / 2))
    after = keys(text_of(page, WEIGHT))[0]
    assert after[0] == [0, 1] and after[1] == pytest.approx([1, 0.5], abs=0.03)
    assert page.run() == "execution_success"
    sent = queued(page, WEIGHT)
    assert sent["keyframes"] == text_of(page, WEIGHT) and "curve" not in sent  # no ramp of the host's counts before it
    if "CurveEditor" in server.json("/object_info"):
        page.page.evaluate(
            """kind => {
              const node = app.graph._nodes.find(n => n.type == kind), drawn = LiteGraph.createNode("CurveEditor");
              app.graph.add(drawn);
              drawn.connect(0, node, node.inputs.findIndex(i => i.name == "curve"));
            }""",
            WEIGHT,
        )
        page.page.wait_for_function("() => [...document.querySelectorAll('.codi-curve .note')].some(n => n.textContent == '← curve')")
        assert page.run() == "execution_success" and isinstance(queued(page, WEIGHT)["curve"], list)
    page.assert_no_trouble()


def test_the_alignment_matrix_is_sent_and_obeyed(page):
    graph = sampled("image", "text")
    graph["matrix"] = node(MATRIX, model=["load", 0], image_hears_text=0.5)
    graph["sample"]["inputs"]["model"] = ["matrix", 0]
    graph["view"] = node("CoDiPreview", codi=["load", 1], latent=["sample", 0], frame_rate=0.0, words_seed=0)
    opened(page, graph, MATRIX)
    names = page.page.evaluate("k => app.graph._nodes.find(n => n.type == k).widgets.map(w => w.name)", MATRIX)
    assert len(names) == 12 and "video_hears_audio" in names and "audio_hears_video" in names
    if page.nodes2:
        assert page.page.locator("[data-node-id]").filter(has_text="image_hears_text").first.is_visible()
    assert text_of(page, MATRIX, "image_hears_text") == 0.5

    def picture() -> bytes:
        assert page.run() == "execution_success"
        shown_at = page.page.evaluate(
            "() => app.graph._nodes.find(n => n.type == 'CoDiPreview').codiView.root.querySelector('.codi-image').src"
        )
        with Image.open(BytesIO(page.page.request.get(shown_at).body())) as opened_image:
            return opened_image.tobytes()

    set_to = "([k, v]) => { app.graph._nodes.find(n => n.type == k).widgets.find(w => w.name == 'image_hears_text').value = v }"
    half = picture()
    page.page.evaluate(set_to, [MATRIX, 4.0])
    most = picture()
    assert queued(page, MATRIX)["image_hears_text"] == 4.0 and queued(page, MATRIX)["text_hears_image"] == 1.0
    page.page.evaluate(set_to, [MATRIX, 0.5])
    assert half == picture() != most
    page.shoot("matrix")
    page.assert_no_trouble()


_LATE = """async () => {
  const node = app.graph._nodes.find(n => n.type == 'KSampler'), element = document.createElement('div');
  const widget = node.addDOMWidget('late', 'late', element, { serialize: false, getMinHeight: () => 20 });
  await new Promise(done => setTimeout(done, 1000));
  const shown = element.isConnected;
  node.removeWidget(widget);
  return shown;
}"""


def test_a_clip_plays_on_a_stock_sampler_while_it_is_sampled(page):
    graph = sampled("video", "text", frames=4)
    settings = {k: v for k, v in graph["sample"]["inputs"].items() if k not in ("latent", "wiring", "alignment", "alignment_guidance")}
    graph["sample"] = node("KSampler", **{**settings, "steps": 30, "seed": 91 + page.nodes2}, latent_image=["empty", 0])
    opened(page, shown(graph, ["sample", 0]), "KSampler")
    if page.nodes2 and not page.page.evaluate(_LATE):
        pytest.skip("this front end does not show widgets that come late in Nodes 2.0")
    page.page.evaluate(
        """async () => {
          await app.ui.settings.setSettingValueAsync("Comfy.Execution.PreviewMethod", "latent2rgb");
          window.frames_ = [];
          const look = ({ detail }) => setTimeout(() => {
            const canvas = document.querySelector(".codi-frames canvas");
            if (canvas) window.frames_.push([detail.frames, detail.rate, canvas.dataset.frame, canvas.width, canvas.height]);
          }, 50);
          app.api.addEventListener("codi.frames", look);
        }"""
    )
    before = page.page.evaluate("() => JSON.stringify(app.graph._nodes.find(n => n.type == 'KSampler').serialize().widgets_values)")
    assert page.run() == "execution_success"
    seen = page.page.evaluate("() => window.frames_")
    assert seen and all(s[:2] == [4, 6.25] for s in seen) and seen[-1][3:] == [124, 124]
    assert page.page.locator(".codi-frames").count() == 0
    after = page.page.evaluate("() => JSON.stringify(app.graph._nodes.find(n => n.type == 'KSampler').serialize().widgets_values)")
    assert after == before
    page.page.evaluate("() => app.ui.settings.setSettingValueAsync('Comfy.Execution.PreviewMethod', 'default')")
    page.assert_no_trouble()


@pytest.mark.parametrize("keyframes", [", ".join(f"{i / 9000:.5f}:1" for i in range(9000)), "0:1\n" * 3000], ids=["keys", "lines"])
def test_what_is_too_long_is_not_drawn(page, keyframes):
    opened(page, mixed(keyframes, over="frames", count=1024), MIXER)
    page.page.locator(".codi-curve svg .note").get_by_text("too long to be drawn").wait_for(timeout=30_000)
    assert page.page.locator(".codi-curve circle").count() < 1000
    assert text_of(page) == keyframes  # what was written stays

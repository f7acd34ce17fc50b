"""Graphs arranged in groups: model above prompts, then generation above the note, then results."""

from __future__ import annotations

import json
from typing import Any

_WIDTH, _GAP, _TITLE, _HIGH = 340, 40, 40, 1000  # pixels; a column is at most about so high
_BUTTON = 120  # what web/codi_install.js takes, rounded up
_STAGES = {
    "Model": ("CoDiLoad", "CoDiLoadJoint", "CoDiDenoiser", "CoDiCompose", "CoDiAlignmentMatrix", "CoDiVAE"),
    "Prompts": (
        "CoDiBounceScene", "LoadImage", "CoDiEncodeText", "CoDiEncodeImage", "CoDiEncodeAudio", "CoDiEncodeVideo", "CoDiConditionMixer",
        "CoDiPromptTravel",
    ),
    "Results": (
        "CoDiPreview", "CoDiDecodeImage", "CoDiDecodeVideo", "CoDiDecodeAudio", "CoDiDecodeText", "CoDiShowText", "CoDiCoherence",
        "CoDiSaveLatent", "VAEDecode", "VAEDecodeAudio", "SaveImage", "SaveVideo", "SaveAudio", "GetVideoComponents",
        "ImageFromBatch", "BatchImagesNode", "CreateVideo",
    ),
}  # fmt: skip
_ORDER = ("Model", "Prompts", "Generation", "Results")
_COLOURS = {"Model": "#3f789e", "Prompts": "#8A8", "Generation": "#a1309b", "Results": "#b58b2a"}
_LEAST = {
    "CoDiPreview": (460, 560),
    "SaveImage": (340, 340),
    "SaveVideo": (340, 420),
    "LoadImage": (340, 340),
    "SaveAudio": (340, 160),
    "CoDiCoherence": (420, 420),
}
"""Sizes of nodes that show something once they have run."""
_MEASURE = """([least, prompt]) => {
  for (const node of app.graph._nodes) {
    // The front end remembers widgets of an earlier graph by their nodes' ids.
    const { required, optional } = node.constructor.nodeData?.input ?? {}, declared = { ...required, ...optional };
    for (const widget of node.widgets ?? []) {
      const usual = declared[widget.name]?.[1]?.default;
      if (!(widget.name in prompt[node.id].inputs) && usual !== undefined) widget.value = usual;
    }
    const control = node.widgets?.find(w => w.name == 'control_after_generate');
    if (control) control.value = 'fixed';
    const [width, height] = least[node.type] ?? [340, 0], size = node.computeSize();
    node.setSize([width, Math.max(size[1], height)]);
  }
}"""


def measured(page: Any, prompt: dict[str, dict]) -> dict[str, Any]:
    """The open graph, made from a prompt, in UI format, each node with the size that its canvas gives it."""
    page.page.evaluate(_MEASURE, [_LEAST, prompt])
    page.page.wait_for_timeout(1500)
    graph = json.loads(page.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    graph["extra"] = {}
    for entry in graph["nodes"]:
        box = page.page.evaluate(
            "id => { const e = document.querySelector(`[data-node-id='${id}']`); return e && [e.offsetWidth, e.offsetHeight] }", entry["id"]
        )
        if box:  # the element holds the title as well
            entry["size"] = [max(entry["size"][0], box[0]), max(entry["size"][1], box[1] - 30)]
    return graph


def stage_of(kind: str) -> str:
    """Group that a node stands in."""
    return next((stage for stage, kinds in _STAGES.items() if kind in kinds), "Generation")


def arranged(graph: dict[str, Any], others: list[dict], text: str) -> dict[str, Any]:
    """The graph with every node in a group and no two of them touching, sizes at least those of `others`, and the note."""
    sizes = {entry["id"]: entry["size"] for entry in others}
    nodes = {entry["id"]: entry for entry in graph["nodes"]}
    for i, entry in nodes.items():
        entry["size"] = [max(a, b) for a, b in zip(entry["size"], sizes[i], strict=True)]
    before: dict[int, set[int]] = {i: set() for i in nodes}
    for _, source, _, target, *_ in graph["links"]:
        before[target].add(source)
    groups: list[dict[str, Any]] = []
    corners = {"Model": (0.0, 0.0), "Prompts": (0.0, 0.0)}
    for stage in _ORDER:
        members = [i for i in sorted(nodes) if stage_of(nodes[i]["type"]) == stage]
        if not members:
            continue
        left, top = corners[stage]
        x, low = left + _GAP, top
        for column in _columns(members, before, nodes):
            y = top
            for i in column:
                nodes[i]["pos"] = [x, y + _TITLE]
                y += nodes[i]["size"][1] + _TITLE + _GAP + (_BUTTON if _fetches(nodes[i]) else 0)
            low = max(low, y)
            x += max(nodes[i]["size"][0] for i in column) + _GAP
        box = [left, top - _GAP, x - left, low - top + _GAP]
        groups.append({"id": len(groups) + 1, "title": stage, "bounding": box, "color": _COLOURS[stage], "font_size": 24, "flags": {}})
        right = max(group["bounding"][0] + group["bounding"][2] for group in groups) + _GAP
        below = low + 2 * _GAP
        corners |= {"Prompts": (0.0, below)} if stage == "Model" else {"Results" if stage == "Generation" else "Generation": (right, 0.0)}
        if stage == "Generation":
            corners["note"] = (left, below)
    number = 1 + max(nodes)
    return {**graph, "last_node_id": number, "nodes": [*nodes.values(), _note(text, number, corners["note"])], "groups": groups}


def _fetches(entry: dict[str, Any]) -> bool:
    """Whether a node grows by a button where the official model is not installed."""
    return entry["type"] in ("CoDiLoad", "CoDiLoadJoint") and entry["widgets_values"][0] == "codi"


def _columns(members: list[int], before: dict[int, set[int]], nodes: dict[int, dict]) -> list[list[int]]:
    """Nodes of a group by the longest way that leads to them inside it; columns that grow too high go on in the next."""
    depth: dict[int, int] = {}

    def deep(i: int) -> int:
        depth.setdefault(i, 1 + max((deep(j) for j in before[i] if j in members), default=-1))
        return depth[i]

    columns: list[list[int]] = []
    for level in range(1 + max(map(deep, members))):
        columns.append([])
        high = 0.0
        for i in (i for i in members if depth[i] == level):
            if columns[-1] and high + nodes[i]["size"][1] > _HIGH:
                columns.append([])
                high = 0.0
            columns[-1].append(i)
            high += nodes[i]["size"][1] + _TITLE + _GAP
    return columns


def _note(text: str, number: int, corner: tuple[float, float]) -> dict[str, Any]:
    lines = sum(1 + len(line) // 72 for line in text.splitlines())
    return {
        "id": number,
        "type": "MarkdownNote",
        "title": "About this workflow",
        "pos": list(corner),
        "size": [2 * _WIDTH, 110 + 26 * lines],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#000",
    }

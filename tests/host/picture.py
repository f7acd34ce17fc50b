"""A graph laid out in columns, and photographed: whole, or one node of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

_WIDTH, _GAP = 340, 60
_HEIGHTS = {  # of nodes that show something, in pixels; the others are as tall as their widgets
    "CoDiBounceScene": 460,
    "CoDiCoherence": 620,
    "CoDiDecodeImage": 300,
    "CoDiDecodeVideo": 440,
    "CoDiPreview": 560,
    "CoDiSharedSpace": 420,
    "PreviewImage": 320,
    "SaveAnimatedWEBP": 420,
    "SaveImage": 320,
}
_LAYOUT = """([heights, width, gap]) => {  // a node stands one column right of the last node that it waits for
  const columns = {}, bottom = {};
  const nodes = [...app.graph._nodes].sort((a, b) => a.id - b.id);
  const before = (node) => (node.inputs ?? []).map((_, i) => node.getInputNode(i)).filter(Boolean);
  const column = (node) => columns[node.id] ??= 1 + Math.max(-1, ...before(node).map(column));
  for (const node of nodes) {
    const at = column(node);
    const control = node.widgets?.find(w => w.name == 'control_after_generate');
    if (control) control.value = 'fixed';
    const size = node.computeSize();
    node.setSize([width, Math.max(size[1], heights[node.type] ?? 0)]);
    node.pos = [at * (width + gap), bottom[at] ?? 0];
    bottom[at] = node.pos[1] + node.size[1] + gap;
  }
  app.graph.setDirtyCanvas(true, true);
}"""
_FIT = """(only) => {
  const style = document.createElement('style');
  style.textContent = '.p-toast, .minimap-main-container, [class*="minimap"], .p-buttongroup { display: none !important }';
  app.canvas.show_info = false;
  app.canvas.min_font_size_for_lod = 0;  // texts are drawn however small
  document.head.append(style);
  const seen = app.graph._nodes.filter(n => only ? n.type == only : n.type != 'MarkdownNote').slice(0, only ? 1 : undefined);
  if (only) {  // by its own name, without links, and nothing else near it
    seen[0].title = LiteGraph.registered_node_types[only].title;
    app.canvas.links_render_mode = LiteGraph.HIDDEN_LINK;
    for (const other of app.graph._nodes) if (other != seen[0]) other.pos = [other.pos[0], other.pos[1] + 1e5 * (1 + other.id)];
  }
  const boxes = seen.map(n => [n.pos[0], n.pos[1] - (only ? 56 : 40), n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
  const edge = (i, pick) => pick(...boxes.map(b => b[i]));
  const [left, top, right, low] = [edge(0, Math.min), edge(1, Math.min), edge(2, Math.max), edge(3, Math.max)];
  const view = app.canvas.canvas.getBoundingClientRect(), side = 90, above = 120;
  const scale = Math.min((view.width - 2 * side) / (right - left), (view.height - above - 40) / (low - top));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [side / scale - left, above / scale - top];
  app.graph.setDirtyCanvas(true, true);
  return {x: side - 20, y: above - 20, width: (right - left) * scale + 40, height: (low - top) * scale + 40};
}"""


def lay_out(page: Any) -> None:
    """Nodes of the open graph into columns, seeds fixed."""
    page.page.evaluate(_LAYOUT, [_HEIGHTS, _WIDTH, _GAP])


def note(text: str, number: int) -> dict[str, Any]:
    """A Markdown note of the front end, left of a graph that was laid out."""
    lines = sum(1 + len(line) // 40 for line in text.splitlines())
    return {
        "id": number,
        "type": "MarkdownNote",
        "title": "About this workflow",
        "pos": [-_WIDTH - 160, 0],
        "size": [_WIDTH, 90 + 22 * lines],
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


def photograph(page: Any, path: Path, size: tuple[int, int], *, only: str | None = None, wait: int = 1500) -> None:
    """A picture of the graph without its note, or of its first node of the type `only`: at most `size` pixels, after `wait` ms."""
    from PIL import Image

    clip = page.page.evaluate(_FIT, only)
    page.page.wait_for_timeout(wait)
    picture = Image.open(io.BytesIO(page.page.screenshot(clip=clip))).convert("RGB")
    picture.thumbnail(size)
    path.parent.mkdir(exist_ok=True)
    picture.save(path, quality=85, optimize=True)

"""Writes example_workflows/ from the prompts in tests/workflows: opened, laid out, run and photographed in the real front end.

    python tests/host/make_workflows.py [name ...]

Needs a ComfyUI (found as in the tests) and Chromium. Run it again when nodes or prompts change."""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from host.browser import open_page  # noqa: E402
from host.server import Server  # noqa: E402
from host.setting import HOST, PACK, import_pack, make_base  # noqa: E402

TARGET = PACK / "example_workflows"
HELP = PACK / "web" / "docs" / "images"
SOURCE = PACK / "tests" / "workflows"
_WIDTH, _GAP = 340, 60
_HEIGHTS = {  # of nodes that show something, in pixels; the others are as tall as their widgets
    "CoDiBounceScene": 460,
    "CoDiCoherence": 620,
    "CoDiDecodeImage": 300,
    "CoDiDecodeVideo": 440,
    "CoDiPreview": 560,
    "CoDiSharedSpace": 420,
    "SaveImage": 320,
}
LAYOUT = """([heights, width, gap]) => {  // a node stands one column right of the last node that it waits for
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
_HELP = {"best_of_batch": "CoDiCoherence", "joint_and_independent": "CoDiPreview", "shared_space": "CoDiSharedSpace"}
"""Workflow and the node in it that is photographed for the node's help page."""
_FIT = """(only) => {
  const style = document.createElement('style');
  style.textContent = '.p-toast, .minimap-main-container, [class*="minimap"], .p-buttongroup { display: none !important }';
  app.canvas.show_info = false;
  document.head.append(style);
  const seen = app.graph._nodes.filter(n => !only || n.type == only).slice(0, only ? 1 : undefined);
  const boxes = seen.map(n => [n.pos[0], n.pos[1] - 40, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
  const edge = (i, pick) => pick(...boxes.map(b => b[i]));
  const [left, top, right, low] = [edge(0, Math.min), edge(1, Math.min), edge(2, Math.max), edge(3, Math.max)];
  const view = app.canvas.canvas.getBoundingClientRect(), side = 90, above = 120;
  const scale = Math.min((view.width - 2 * side) / (right - left), (view.height - above - 40) / (low - top));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [side / scale - left, above / scale - top];
  app.graph.setDirtyCanvas(true, true);
  return {x: side - 20, y: above - 20, width: (right - left) * scale + 40, height: (low - top) * scale + 40};
}"""


def layout_settings() -> list[Any]:
    """Arguments of LAYOUT."""
    return [_HEIGHTS, _WIDTH, _GAP]


def make(page: Any, name: str) -> None:
    """One workflow: UI format and thumbnail."""
    prompt = json.loads((SOURCE / f"{name}.json").read_text(encoding="utf-8"))
    page.open_api(prompt, name)
    page.page.evaluate(LAYOUT, layout_settings())
    graph = json.loads(page.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    graph["extra"] = {}
    page.open(graph)
    end = page.run(600)
    if end != "execution_success" or page.crashes or page.complaints():
        raise SystemExit(f"{name}: {end} {page.crashes} {page.complaints()}")
    (TARGET / f"{name}.json").write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8")
    clip = page.page.evaluate(_FIT, None)
    page.page.wait_for_timeout(8000)  # until the notice of the finished job is gone
    _thumbnail(page.page.screenshot(clip=clip), TARGET / f"{name}.jpg", (1200, 800))
    if name in _HELP:
        clip = page.page.evaluate(_FIT, _HELP[name])
        page.page.wait_for_timeout(1500)
        HELP.mkdir(exist_ok=True)
        _thumbnail(page.page.screenshot(clip=clip), HELP / f"{_HELP[name]}.jpg", (560, 560))


def _thumbnail(png: bytes, path: Path, size: tuple[int, int]) -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail(size)
    picture.save(path, quality=85, optimize=True)


def main() -> None:
    """Command line."""
    import_pack()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=sorted(p.stem for p in SOURCE.glob("*.json")))
    names = parser.parse_args().names
    if HOST is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder")
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder))
        server = Server(HOST, base, PACK)
        try:
            with open_page(server.url) as page:
                for name in names:
                    make(page, name)
                    print(name)
        finally:
            server.stop()


if __name__ == "__main__":
    main()

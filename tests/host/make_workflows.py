"""Writes example_workflows/ from the prompts in tests/workflows: opened, laid out, run and photographed in the real front end.

    python tests/host/make_workflows.py [name ...]

Beside each prompt stands its note (tests/workflows/notes), which the workflow shows left of its nodes. Needs a ComfyUI (found as in
the tests) and Chromium. Run it again when nodes, prompts or notes change."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from host.browser import open_page  # noqa: E402
from host.graph import BEFORE, NAMES, WORKFLOWS, workflow  # noqa: E402
from host.picture import lay_out, note, photograph  # noqa: E402
from host.server import Server  # noqa: E402
from host.setting import HOST, PACK, import_pack, make_base  # noqa: E402

TARGET = PACK / "example_workflows"


def make(page: Any, name: str) -> None:
    """One workflow: UI format and thumbnail."""
    graph = with_note(in_columns(page, name), name)
    page.open(graph)
    run(page, name)
    (TARGET / f"{name}.json").write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8")
    photograph(page, TARGET / f"{name}.jpg", (1200, 800), wait=8000)  # until the notice of the finished job is gone


def in_columns(page: Any, name: str) -> dict[str, Any]:
    """UI format of a workflow."""
    page.open_api(workflow(name), name)
    lay_out(page)
    graph = json.loads(page.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    graph["extra"] = {}
    return graph


def with_note(graph: dict[str, Any], name: str) -> dict[str, Any]:
    """The workflow with its note, in place of one that it has."""
    nodes = [n for n in graph["nodes"] if n["type"] != "MarkdownNote"]
    number = 1 + max(n["id"] for n in nodes)
    text = (WORKFLOWS / "notes" / f"{name}.md").read_text(encoding="utf-8").strip()
    return {**graph, "last_node_id": number, "nodes": [*nodes, note(text, number)]}


def prepare(server: Server, names: Iterable[str]) -> None:
    """Run the workflows that these read from; before a page is open, whose event loop the server's client cannot share."""
    for name in sorted({BEFORE[name] for name in names if name in BEFORE}):
        server.run(workflow(name), seconds=600)


def run(page: Any, name: str) -> None:
    """Run the open workflow; ends the program where it fails or the front end complains."""
    end = page.run(600)
    if end != "execution_success" or page.crashes or page.complaints():
        raise SystemExit(f"{name}: {end} {page.crashes} {page.complaints()}")


def main() -> None:
    """Command line."""
    import_pack()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=NAMES)
    names = parser.parse_args().names
    if HOST is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder")
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder))
        server = Server(HOST, base, PACK)
        try:
            prepare(server, names)
            for name in names:
                with open_page(server.url) as page:  # one for each: the front end remembers widgets of an earlier graph by their nodes' ids
                    make(page, name)
                print(name)
        finally:
            server.stop()


if __name__ == "__main__":
    main()

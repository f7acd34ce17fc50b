"""Writes example_workflows/ from the prompts in tests/workflows: laid out in the real front end, with thumbnails of runs.

    python tests/host/make_workflows.py [name ...]

Beside each prompt stands its note (tests/workflows/notes). Needs a ComfyUI (found as in the tests) and Chromium. Run it again when
nodes, prompts, notes or codi-mini's weights change."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from host.browser import open_page  # noqa: E402
from host.graph import NAMES, OFFICIAL, note, template, workflow  # noqa: E402
from host.layout import arranged, measured  # noqa: E402
from host.server import Server  # noqa: E402
from host.setting import HOST, PACK, import_pack, make_base  # noqa: E402
from host.thumbnail import write_plan, write_thumbnail  # noqa: E402

TARGET = PACK / "example_workflows"


def make_graphs(url: str, names: list[str]) -> None:
    """UI format: each as large as its nodes are in the classic canvas and in Nodes 2.0, whichever is larger."""
    drawn: dict[str, list[Any]] = {name: [] for name in names}
    for nodes2 in (False, True):
        with open_page(url, nodes2=nodes2) as page:
            for name in names:
                page.open_api(workflow(name), name)
                drawn[name].append(measured(page, workflow(name)))
    for name, both in drawn.items():
        graph = arranged(both[0], both[1]["nodes"], note(name))
        (TARGET / f"{template(name)}.json").write_text(json.dumps(graph, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    import_pack()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--only", choices=("graphs", "thumbnails"), help="make only these")
    arguments = parser.parse_args()
    if HOST is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder")
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(HOST, make_base(Path(folder), official=True), PACK)
        try:
            if arguments.only != "thumbnails":
                make_graphs(server.url, arguments.names)
            if arguments.only != "graphs":
                for name in arguments.names:
                    if name in OFFICIAL:  # its weights are at hand nowhere
                        write_plan(TARGET / f"{template(name)}.jpg", workflow(name))
                        continue
                    run = server.run(workflow(name), seconds=600)
                    if run.end != "execution_success":
                        raise SystemExit(f"{name}: {run.end} {run.error}")
                    write_thumbnail(TARGET / f"{template(name)}.jpg", workflow(name), run.outputs, server.file)
                    print(name, flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()

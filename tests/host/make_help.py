"""Writes the pictures of the nodes' help pages, web/docs/images: each node photographed in a graph in the real front end.

    python tests/host/make_help.py [node ...]

A node stands in a shipped workflow, which is run where the node shows what it made; nodes of no workflow stand in a small graph.
Needs a ComfyUI (found as in the tests) and Chromium. Run it again when a node's looks change."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from host.browser import open_page  # noqa: E402
from host.graph import NAMES, node, workflow  # noqa: E402
from host.make_workflows import run  # noqa: E402
from host.picture import lay_out, photograph  # noqa: E402
from host.server import Server  # noqa: E402
from host.setting import HOST, PACK, import_pack, make_base  # noqa: E402

TARGET = PACK / "web" / "docs" / "images"
SIZE = (440, 440)
_SHOWN_IN = {  # nodes that show what they made, and the workflow that is run for them
    "CoDiBounceScene": "sound_to_picture",
    "CoDiCoherence": "best_of_batch",
    "CoDiConditionMixer": "mixing_curves",
    "CoDiDecodeAudio": "mix_two_prompts",
    "CoDiDecodeImage": "mix_two_prompts",
    "CoDiDecodeText": "mix_two_prompts",
    "CoDiDecodeVideo": "mix_two_prompts",
    "CoDiLoad": "stock_nodes",
    "CoDiLoadJoint": "mix_two_prompts",
    "CoDiPickBest": "best_of_batch",
    "CoDiPreview": "joint_and_independent",
    "CoDiPromptTravel": "prompt_travel_batch",
    "CoDiSharedSpace": "shared_space",
}


def small_graphs() -> dict[str, dict[str, dict]]:
    """Graphs for nodes that no workflow holds, by node."""
    joint = node("CoDiLoadJoint", name="codi-mini", dtype="auto", video=True, image=False, text=False, audio=True)
    text = node("CoDiEncodeText", codi=["1", 1], text="a red star")
    scene = node("CoDiBounceScene", shape="star", colour="red", beats="2", seed=1)
    aligned = dict(wiring="cross", alignment=1.0, alignment_guidance=3.0, alignment_start=0.0, alignment_end=1.0)
    training = dict(data="my_pairs", save_as="my_codi", stage="alignment", modality="image", steps=200, seed=0)
    return {
        "CoDiAlignment": {"1": joint, "2": node("CoDiAlignment", model=["1", 0], **aligned)},
        "CoDiFromCLIP": {
            "1": joint,
            "2": node("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion"),
            "3": node("CoDiFromCLIP", codi=["1", 1], clip=["2", 0], text="a (red:1.3) star"),
        },
        "CoDiPromptWeight": {
            "1": joint,
            "2": text,
            "3": node("CoDiPromptWeight", prompt=["2", 0], weight=0.8, start=0.0, end=0.7, keyframes="0:1, 1:0"),
        },
        "CoDiShowText": {"1": scene, "2": node("CoDiShowText", text=["1", 3])},
        "CoDiTrain": {"1": node("CoDiTrain", name="codi-mini", **training)},
    }


def places(kinds: list[str]) -> dict[str, list[str]]:
    """Workflow -> the nodes to photograph in it: where `_SHOWN_IN` says, else the smallest workflow that holds the node."""
    held = {name: {n["class_type"] for n in workflow(name).values()} for name in NAMES}
    found: dict[str, list[str]] = {}
    for kind in kinds:
        holding = sorted((len(workflow(name)), name) for name in NAMES if kind in held[name])
        if holding:
            found.setdefault(_SHOWN_IN.get(kind, holding[0][1]), []).append(kind)
    return found


def main() -> None:
    """Command line."""
    import_pack()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("nodes", nargs="*", default=sorted(p.stem for p in (PACK / "web" / "docs").glob("*.md")))
    kinds = parser.parse_args().nodes
    if HOST is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(HOST, make_base(Path(folder)), PACK)
        try:
            with open_page(server.url) as page:
                shoot(page, kinds)
        finally:
            server.stop()


def shoot(page: Any, kinds: list[str]) -> None:
    """Pictures of these nodes."""
    by_workflow = places(kinds)
    for name, here in by_workflow.items():
        page.open(json.loads((PACK / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")))
        wait = 1500
        if set(here) & _SHOWN_IN.keys():
            run(page, name)
            wait = 8000  # until the notice of the finished job is gone
        for kind in here:
            photograph(page, TARGET / f"{kind}.jpg", SIZE, only=kind, wait=wait)
            wait = 1500
            print(kind, name)
    graphs = small_graphs()
    for kind in kinds:
        if kind not in sum(by_workflow.values(), []):
            page.open_api(graphs[kind], kind)
            lay_out(page)
            if kind == "CoDiShowText":
                run(page, kind)
            photograph(page, TARGET / f"{kind}.jpg", SIZE, only=kind)
            print(kind)


if __name__ == "__main__":
    main()

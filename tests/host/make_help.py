"""Writes the pictures of the nodes' help pages, web/docs/images, and README's of the first graph: photographed in the real front end.

    python tests/host/make_help.py [node or "README" ...]

A node stands in a template or in a workflow of version 0.3, which is run where the node shows what it made; others stand in a small graph.
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
from host.graph import NAMES, SAVED, node, template, workflow  # noqa: E402
from host.picture import lay_out, photograph  # noqa: E402
from host.server import Server  # noqa: E402
from host.setting import HOST, PACK, import_pack, make_base  # noqa: E402

TARGET = PACK / "web" / "docs" / "images"
SIZE = (440, 440)
README, FIRST, WIDE = "README", "text_to_everything", (1200, 900)
_SHOWN_IN = {  # nodes that show what they made, and the workflow that is run for them
    "CoDiBounceScene": "image_and_audio_to_video",
    "CoDiCoherence": "best_of_batch",
    "CoDiConditionMixer": "mix_two_prompts",
    "CoDiDecodeAudio": "image_and_audio_to_video",
    "CoDiDecodeImage": "prompt_travel_batch",
    "CoDiDecodeText": "clip_to_caption",
    "CoDiDecodeVideo": "image_and_audio_to_video",
    "CoDiLoad": "building_blocks",
    "CoDiLoadJoint": "text_to_everything",
    "CoDiPickBest": "best_of_batch",
    "CoDiPreview": "text_to_everything",
    "CoDiPromptTravel": "prompt_travel_batch",
    "CoDiSharedSpace": "shared_space",
    "CoDiShowText": "clip_to_caption",
}


def small_graphs() -> dict[str, dict[str, dict]]:
    """Graphs for nodes that no workflow holds, by node."""
    joint = node("CoDiLoadJoint", name="codi-mini", dtype="auto", video=True, image=False, text=False, audio=True)
    text = node("CoDiEncodeText", codi=["1", 1], text="a red star")
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
        "CoDiTrain": {"1": node("CoDiTrain", name="codi-mini", **training)},
    }


def prompt_of(name: str) -> dict[str, dict]:
    """A template, or a workflow of version 0.3, in API format."""
    return workflow(name) if name in NAMES else json.loads((SAVED / f"{name}.json").read_text(encoding="utf-8"))


def places(kinds: list[str]) -> dict[str, list[str]]:
    """Workflow -> the nodes to photograph in it: where `_SHOWN_IN` says, else the smallest that holds the node, templates first."""
    names = [*NAMES, *(p.stem for p in SAVED.glob("*.json") if p.stem not in NAMES)]
    held = {name: {n["class_type"] for n in prompt_of(name).values()} for name in names}
    found: dict[str, list[str]] = {}
    for kind in kinds:
        holding = sorted((name not in NAMES, len(prompt_of(name)), name) for name in names if kind in held[name])
        if holding:
            found.setdefault(_SHOWN_IN.get(kind, holding[0][-1]), []).append(kind)
    return found


def main() -> None:
    """Command line."""
    import_pack()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("nodes", nargs="*", default=[README, *sorted(p.stem for p in (PACK / "web" / "docs").glob("*.md"))])
    kinds = parser.parse_args().nodes
    if HOST is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(HOST, make_base(Path(folder), official=True), PACK)
        try:
            with open_page(server.url) as page:
                shoot(page, kinds)
        finally:
            server.stop()


def shoot(page: Any, kinds: list[str]) -> None:
    """Pictures of these nodes."""
    if README in kinds:
        page.open(json.loads((PACK / "example_workflows" / f"{template(FIRST)}.json").read_text(encoding="utf-8")))
        if page.run(600) != "execution_success":
            raise SystemExit(f"{FIRST}: {page.complaints()}")
        photograph(page, PACK / "docs" / "images" / "first_graph.jpg", WIDE, wait=8000)
    kinds = [kind for kind in kinds if kind != README]
    by_workflow = places(kinds)
    for name, here in by_workflow.items():
        if name in NAMES:
            page.open(json.loads((PACK / "example_workflows" / f"{template(name)}.json").read_text(encoding="utf-8")))
        else:
            page.open_api(prompt_of(name), name)
            lay_out(page)
        wait = 1500
        if set(here) & _SHOWN_IN.keys():
            if page.run(600) != "execution_success":
                raise SystemExit(f"{name}: {page.complaints()}")
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
            photograph(page, TARGET / f"{kind}.jpg", SIZE, only=kind)
            print(kind)


if __name__ == "__main__":
    main()

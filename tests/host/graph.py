"""Prompts in API format, put together in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
SAVED = WORKFLOWS.parent / "workflows_0_3"
"""What version 0.3 shipped, which must go on to run: prompts in API format, and in graphs/ some as the front end saved them."""
NAMES = (  # of the templates, in the order in which a person learns
    "text_to_everything",
    "mix_two_prompts",
    "image_and_audio_to_video",
    "audio_for_video",
    "extend_video",
    "edit_in_space_and_time",
    "best_of_batch",
    "with_and_without_alignment",
    "building_blocks",
    "official_text_to_image",
    "official_text_to_video_and_audio",
    "official_image_to_audio",
    "official_audio_to_image",
    "official_video_to_text",
    "official_mix_text_and_image",
)
OFFICIAL = tuple(name for name in NAMES if name.startswith("official_"))
"""Templates of the published model, which tests run on another one."""
BEFORE = {"take_up_saved_latent": "save_joint_latent"}
"""Saved workflows that read what another one writes."""
MODALITIES = ("video", "image", "text", "audio")
ALIGNMENT = {"wiring": "cross", "alignment": 1.0, "alignment_guidance": 2.0}
SAMPLING = {"seed": 7, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


def node(kind: str, /, **inputs: Any) -> dict:
    """One node; a link is [node id, slot]."""
    return {"class_type": kind, "inputs": inputs}


def outputs(*names: str) -> dict[str, bool]:
    """Switches of the nodes that choose outputs."""
    return {m: m in names for m in MODALITIES}


def base_graph(*names: str, model: str = "tiny", composed: tuple[str, ...] | None = None, **latent: Any) -> dict:
    """Loader ("load"), prompt ("yes"), empty prompt ("no") and empty latent ("empty") of the named outputs."""
    size = {"width": 64, "height": 64, "frames": 2, "seconds": 0.32, "batch_size": 1, **latent}
    return {
        "load": node("CoDiLoadJoint", name=model, dtype="auto", **outputs(*(names if composed is None else composed))),
        "yes": node("CoDiEncodeText", codi=["load", 1], text="a red square bounces twice"),
        "no": node("CoDiEncodeText", codi=["load", 1], text=""),
        "empty": node("CoDiEmptyJointLatent", codi=["load", 1], **outputs(*names), **size),
    }


def sampled(*names: str, **changes: Any) -> dict:
    """`base_graph` with a CoDi Joint Sampler ("sample"); changes go to its widgets and links."""
    graph = base_graph(*names, **{k: changes.pop(k) for k in ("model", "composed", "batch_size", "frames") if k in changes})
    links = {"model": ["load", 0], "positive": ["yes", 0], "negative": ["no", 0], "latent": ["empty", 0]}
    graph["sample"] = node("CoDiJointSampler", **{**links, **SAMPLING, **ALIGNMENT, **changes})
    return graph


def decoded(graph: dict, *names: str, latent: tuple[str, int] = ("sample", 0)) -> dict:
    """The graph with a Decode node of each named output, ids as the outputs."""
    ends = {m: node(f"CoDiDecode{m.capitalize()}", codi=["load", 1], latent=list(latent)) for m in names}
    return {**graph, **ends}


def shown(graph: dict, link: list) -> dict:
    """The graph with an output node that makes the host run whatever `link` comes from."""
    return {**graph, "show": node("PreviewAny", source=link)}


def workflow(name: str, steps: int | None = None, model: str | None = None) -> dict:
    """A shipped workflow in API format, with fewer steps and on another model if asked."""
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    for entry in graph.values():
        if model and entry["class_type"] in ("CoDiLoad", "CoDiLoadJoint"):
            entry["inputs"]["name"] = model
        if steps and "steps" in entry["inputs"]:
            entry["inputs"]["steps"] = steps
    return graph


def note(name: str) -> str:
    """The note of a template: a heading and a few sentences."""
    return (WORKFLOWS / "notes" / f"{name}.md").read_text(encoding="utf-8").strip()


def template(name: str) -> str:
    """Name of a template as ComfyUI shows it: its number and the heading of its note."""
    return f"{NAMES.index(name) + 1:02d} {note(name).splitlines()[0].removeprefix('## ')}"

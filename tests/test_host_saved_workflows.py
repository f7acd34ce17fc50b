"""Workflows that version 0.3 wrote: every one of them still runs, with the node ids, input names and values of then."""

from __future__ import annotations

import json

import pytest
from host.graph import BEFORE, SAVED

# What version 0.3 shipped, by name; together they hold all nodes but those that need files of the user.
PROMPTS = {path.stem: path for path in sorted(SAVED.glob("*.json"))}
WITHOUT = {"CoDiAlignment", "CoDiFromCLIP", "CoDiPromptWeight", "CoDiShowText", "CoDiTrain"}


def saved(name: str) -> dict:
    """One of them in API format, with the model of tests and one step a run."""
    prompt = json.loads(PROMPTS[name].read_text(encoding="utf-8"))
    for entry in prompt.values():
        if entry["class_type"] in ("CoDiLoad", "CoDiLoadJoint"):
            entry["inputs"]["name"] = "tiny"
        if "steps" in entry["inputs"]:
            entry["inputs"]["steps"] = 2
        if "batch_size" in entry["inputs"]:
            entry["inputs"]["batch_size"] = min(2, entry["inputs"]["batch_size"])
        if entry["inputs"].get("over") == "batch":
            entry["inputs"]["count"] = 2
    return prompt


def test_they_hold_every_node(session):
    ours = {kind for kind in session.classes if kind.startswith("CoDi")}
    held = {entry["class_type"] for name in PROMPTS for entry in saved(name).values()}
    assert len(PROMPTS) == 25 and ours - held <= WITHOUT


@pytest.mark.parametrize("name", PROMPTS)
def test_a_saved_workflow_runs(session, name):
    prompt = saved(name)
    if name in BEFORE:  # whatever number the file gets in this folder
        made = next(shown["latents"][0] for shown in session.run(saved(BEFORE[name])).values() if "latents" in shown)
        for entry in prompt.values():
            if entry["class_type"] == "CoDiLoadLatent":
                entry["inputs"]["file"] = f"{made['subfolder']}/{made['filename']} [output]"
    shown = session.run(prompt)
    ends = {i for i, entry in prompt.items() if getattr(session.classes[entry["class_type"]], "OUTPUT_NODE", False)}
    assert ends and ends <= shown.keys()

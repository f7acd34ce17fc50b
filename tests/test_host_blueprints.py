"""The ready-made subgraphs: what is folded into them runs, and the files hold it."""

from __future__ import annotations

import copy
import json

import pytest
from host.make_subgraphs import BLUEPRINTS, OUTSIDE, TARGET, Blueprint

ALL = pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda b: b.name)


def test_there_is_a_file_for_every_blueprint():
    assert {b.name for b in BLUEPRINTS} == {p.stem for p in TARGET.glob("*.json")}


@ALL
def test_the_file_holds_the_nodes_and_their_values(blueprint: Blueprint):
    graph = json.loads((TARGET / f"{blueprint.name}.json").read_text(encoding="utf-8"))
    (folded,) = graph["definitions"]["subgraphs"]
    assert (folded["name"], folded["description"]) == (blueprint.name, blueprint.description)
    inside = {i: n for i, n in blueprint.prompt.items() if n["class_type"] not in OUTSIDE}
    assert sorted(n["type"] for n in folded["nodes"]) == sorted(n["class_type"] for n in inside.values())
    drawn = {str(n["id"]): n for n in folded["nodes"]}
    for number, entry in inside.items():
        assert drawn[number]["type"] == entry["class_type"]
        set_by_hand = [v for v in entry["inputs"].values() if not isinstance(v, list)]
        assert all(v in drawn[number].get("widgets_values", []) for v in set_by_hand), f"{entry}: run tests/host/make_subgraphs.py"
    (outside,) = graph["nodes"]
    assert outside["widgets_values"] == [] and not [i for i in outside["inputs"] if "widget" in i], "the inner nodes hold the values"
    assert [tuple(pair) for pair in outside["properties"]["proxyWidgets"]] == list(blueprint.shown)
    ends = [n for n in blueprint.prompt.values() if n["class_type"] in OUTSIDE and n["class_type"] != "CoDiBounceScene"]
    assert {s["name"] for s in folded["outputs"]} >= {_slot(n) for n in ends}


def _slot(end: dict) -> str:
    return ("image", "video", "audio", "text")[next(v for v in end["inputs"].values() if isinstance(v, list))[1]]


@ALL
def test_the_nodes_run(session, blueprint: Blueprint):
    prompt = copy.deepcopy(blueprint.prompt)
    prompt["1"]["inputs"]["name"] = "tiny"
    prompt["4"]["inputs"]["steps"] = 2
    shown = session.run(prompt)
    assert {i for i, n in prompt.items() if n["class_type"] in OUTSIDE} <= shown.keys()

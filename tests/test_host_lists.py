"""Every node takes lists as ComfyUI means them: it runs once for every entry, and the last entry of a shorter list counts on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host.graph import node
from host.rig import PLAIN, REFUSES, SOURCES
from host.session import Failed
from host.setting import PACK

NODES = sorted(page.stem for page in (PACK / "web" / "docs").glob("*.md"))
ONE_LIST = {("CoDiPromptWeight", "floats")}
"""Inputs that are a list of numbers for one result."""
NAMES_ITS_SOURCES = {"CoDiCoherence", "CoDiSharedSpace"}
"""Nodes whose results name the node that a prompt comes from, which is the list here."""


@pytest.fixture(scope="module")
def listed(rig):
    """A node that hands on a list: values of `given` by key."""
    from comfy_api.latest import io

    given: dict[str, list[Any]] = {}

    class TestList(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            outputs = [io.AnyType.Output(is_output_list=True)]
            return io.Schema(node_id="TestList", category="test", inputs=[io.String.Input("key")], outputs=outputs)

        @classmethod
        def execute(cls, key):
            return io.NodeOutput(given[key])

    rig.classes["TestList"] = TestList
    return given


def results(session) -> list[list[Any]]:
    """What every output of "it" handed on, all of a list."""
    import asyncio

    entry = session.executor.caches.outputs.get("it")
    entry = session.loop.run_until_complete(entry) if asyncio.iscoroutine(entry) else entry
    return list(entry.outputs)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if getattr(a, "is_nested", False):
        return all(map(same, a.unbind(), b.unbind()))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or type(a) is type(b) and not isinstance(a, (str, int, float))


@pytest.mark.parametrize("kind", [kind for kind in NODES if kind not in REFUSES])
def test_a_list_at_any_input_runs_the_node_for_each_entry(session, rig, listed, kind):
    good, wrong = rig.usual(kind), []
    session.run(rig.prompt(kind, good))
    (alone,) = ([slot[0] for slot in results(session)],) if rig.classes[kind].RETURN_TYPES else ([],)
    for name, entry in rig.declared(kind).items():
        io_type = entry.get_io_type()
        if name not in good or (kind, name) in ONE_LIST or (io_type not in PLAIN and io_type not in SOURCES):
            continue
        link = good[name]
        value = rig.values[tuple(link)] if isinstance(link, list) else link
        key = f"{kind} {name}"
        listed[key] = [value, value, value]
        try:
            session.run(rig.prompt(kind, {**good, name: ["list", 0]}, list=node("TestList", key=key)))
        except Failed as failure:
            wrong.append(f"{name}: {str(failure)[:200]}")
            continue
        for slot, (made, one) in enumerate(zip(results(session), alone, strict=True)):
            if len(made) != 3:
                wrong.append(f"{name}: output {slot} has {len(made)} results of 3 entries")
            elif kind not in NAMES_ITS_SOURCES and not all(same(each, one) for each in made):
                wrong.append(f"{name}: output {slot} differs from that of one entry")
    assert not wrong


def test_prompt_weight_weighs_every_prompt_with_its_own_numbers(session, rig, listed):
    yes, no = rig.values[("yes", 0)], rig.values[("no", 0)]
    listed["prompts"], listed["weights"] = [yes, no, yes], [0.5, 2.0]
    inputs = {"prompt": ["list", 0], "weight": ["weights", 0], "start": 0.0, "end": 1.0, "keyframes": ""}
    session.run(rig.prompt("CoDiPromptWeight", inputs, list=node("TestList", key="prompts"), weights=node("TestList", key="weights")))
    (made,) = results(session)
    weighting = session.pack.nodes.mix.WEIGHTING
    assert [c[0][1][weighting]["weight"] for c in made] == [0.5, 2.0, 2.0]
    assert all(torch.equal(c[0][0], p[0][0]) for c, p in zip(made, (yes, no, yes), strict=True))
    listed["nothing"] = []
    session.run(rig.prompt("CoDiPromptWeight", {**inputs, "weight": 1.0}, list=node("TestList", key="nothing")))
    assert results(session) == [[]]

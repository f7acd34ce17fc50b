"""Every input of every node gets what it should not: a clear error on the node or a sound result, and the queue goes on."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
import torch
from host.bad_values import BAD, WIDGETS
from host.graph import node, outputs, shown
from host.rig import PLAIN, REFUSES, SOURCES, sound
from host.session import Failed
from host.setting import PACK

NODES = sorted(page.stem for page in (PACK / "web" / "docs").glob("*.md"))
FIRST = json.loads((PACK / "tests" / "host" / "first_inputs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", NODES)
def test_what_links_may_hand_over(rig, kind):
    good = rig.usual(kind)
    if kind not in REFUSES:
        assert sound(rig.called(kind, good))
    wrong = []
    for name, entry in rig.declared(kind).items():
        io_type = entry.get_io_type()
        assert io_type in BAD, f"{kind} {name}: add bad values of type {io_type} to tests/host/bad_values.py"
        for number, make in enumerate([lambda: None, *BAD[io_type]]):
            wrong.append(rig.judged(kind, {**good, name: make()}, f"{name} ({io_type}) value {number - 1}"))
    assert not [w for w in wrong if w]


@pytest.mark.parametrize("kind", NODES)
def test_what_a_prompt_may_hold_for_a_widget(session, rig, kind):
    """The host refuses it and names the input, or the node makes of it what its type makes of it."""
    good, wrong = rig.usual(kind), []
    for name, entry in rig.declared(kind).items():
        for value in WIDGETS.get(entry.get_io_type(), []):
            what = f"{name} = {str(value)[:20]!r}"
            graph = copy.deepcopy(rig.prompt(kind, {**good, name: value}))
            ok, error, _, nodes = asyncio.run(session.execution.validate_prompt("test", graph, None))
            if not ok and name not in json.dumps([error, nodes], default=str):
                wrong.append(f"{what}: refused without a word on it")
            elif ok:
                wrong.append(rig.judged(kind, graph["it"]["inputs"], what))
    assert not [w for w in wrong if w]


@pytest.mark.parametrize("kind", NODES)
def test_every_number_has_bounds_and_every_seed_all_of_them(rig, kind):
    """What is typed sets how long a node works and how much it takes."""
    for name, entry in rig.declared(kind).items():
        if entry.get_io_type() in ("INT", "FLOAT"):
            assert entry.min is not None and entry.max is not None, name
            most = 2**64 - 1 if "seed" in name else 1_000_000
            assert abs(entry.min) <= most and (entry.max == most if "seed" in name else entry.max <= most), name
            if "seed" in name and kind not in REFUSES:
                assert sound(rig.called(kind, {**rig.usual(kind), name: most}))


@pytest.mark.parametrize("kind", NODES)
def test_the_error_stands_on_the_node_and_the_queue_goes_on(session, rig, kind):
    good, inputs = rig.usual(kind), rig.declared(kind)
    links = [name for name, entry in inputs.items() if entry.get_io_type() in SOURCES and not entry.optional]
    for name in links[:2] or list(good)[:1]:
        graph = rig.prompt(kind, {**good, name: ["bad", 0]}, bad=node("TestFeed", key="none"))
        if "." in name:
            continue  # what grows may have gaps
        with pytest.raises(Failed) as failure:
            session.run(graph)
        assert failure.value.node == kind and failure.value.kind.endswith("CoDiError"), failure.value
    assert session.run(shown({k: rig.graph[k] for k in ("load", "yes")}, ["yes", 0]))["show"]


@pytest.mark.parametrize("kind", NODES)
def test_workflows_of_an_earlier_version_load(session, rig, kind):
    """Inputs that came later are missing and take their defaults; inputs that are gone are passed over, links too."""
    good, inputs = rig.usual(kind), rig.declared(kind)
    old = {name: value for name, value in good.items() if not getattr(inputs.get(name), "optional", False)}
    old |= {name: good[name] for name in ("latent", "image") if name in inputs}  # some nodes need one of what is optional
    old |= {"gone": 3, "gone too": ["scene", 0]}
    if kind in REFUSES:
        with pytest.raises(Failed, match=REFUSES[kind]):
            session.run(rig.prompt(kind, old))
    else:
        session.run(rig.prompt(kind, old))
    if (known := FIRST.get(kind)) is None:
        return  # no workflow can hold it yet
    required = {name for name, entry in inputs.items() if not entry.optional}
    assert not required - set(known["required"]), "an input that comes later must be optional, or saved prompts are refused"
    widgets = [n for n, entry in inputs.items() if entry.get_io_type() in PLAIN and not getattr(entry, "force_input", False)]
    assert widgets[: len(known["widgets"])] == known["widgets"], "saved workflows list widgets by place: new ones come last"


def test_more_than_the_machine_can_hold_is_refused_before_it_is_made(rig, monkeypatch):
    import comfy.model_management as mm

    huge = {**rig.usual("CoDiEmptyJointLatent"), **outputs("video"), "frames": 30, "width": 4096, "height": 4096, "batch_size": 64}
    made: list[Any] = []
    with monkeypatch.context() as small:
        small.setattr(mm, "get_total_memory", lambda *_, **__: 4 << 30)
        small.setattr(torch, "zeros", lambda *a, **k: made.append(a))
        with pytest.raises(Exception, match="would take 8.1 GB, and this machine has 4.3"):
            rig.called("CoDiEmptyJointLatent", huge)
        with pytest.raises(Exception, match="batch_size is 4096: it must be a finite number from 1 to 64"):
            rig.called("CoDiEmptyJointLatent", {**huge, "batch_size": 4096})
    assert not made
    latent = {"samples": torch.zeros(64, 4, 8, 8)}
    monkeypatch.setattr(mm, "get_total_memory", lambda *_, **__: 1 << 16)
    with pytest.raises(Exception, match="4096 samples of this size would take"):
        rig.called("CoDiRepeatLatent", {**rig.usual("CoDiRepeatLatent"), "amount": 64, "latent": latent})
    with pytest.raises(Exception, match="sampling 1 samples of this size at once takes about .* use smaller batches"):
        rig.called("CoDiJointSampler", rig.usual("CoDiJointSampler"))


def test_a_large_batch_of_sounds_is_made_in_parts(session, monkeypatch):
    handle = session.pack.nodes.host.handle.open_handle("tiny")
    latents, vae = session.pack.codi_models.latents, session.pack.nodes.host.vae
    z = torch.randn(5, 8, 4, 8, generator=torch.Generator().manual_seed(0))
    whole = vae.AudioVAE(handle).decode(z)
    sizes, autoencoder = [], handle.model.audio_autoencoder
    decode = autoencoder.decode
    monkeypatch.setattr(latents, "BINS_AT_ONCE", 2 * 32 * 64)
    monkeypatch.setattr(autoencoder, "decode", lambda part: sizes.append(len(part)) or decode(part))
    torch.testing.assert_close(vae.AudioVAE(handle).decode(z), whole, rtol=0, atol=1e-4)
    assert sizes == [2, 2, 1]

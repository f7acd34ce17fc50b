"""Alignment through the prompt encoders: in the host as without it, under every guider, and what it reads."""

from __future__ import annotations

import importlib

import pytest
import torch
from host.graph import node, sampled, shown
from test_host_headless import compared

PROMPT = {"wiring": "prompt", "alignment": 1.0, "alignment_guidance": 1.0}
OUTPUTS = ("image", "text", "audio")


def graph_of(*outputs: str, **changes) -> dict:
    graph = sampled(*outputs, model="codi-mini", seed=4, cfg=2.0, **{**PROMPT, "steps": 6, "order": "together", **changes})
    graph["empty"]["inputs"] |= {"width": 0, "height": 0, "seconds": 0.0, "frames": 0}
    return graph


def made(session, graph: dict, link: str = "sample") -> list[torch.Tensor]:
    session.run(shown(graph, [link, 0]))
    return list(session.value(link)["samples"].unbind())


@pytest.mark.parametrize("changes", [{}, {"alignment": 0.4}, {"alignment_guidance": 2.0}, {"order": "sequential"}], ids=str)
def test_as_without_a_host(session, changes):
    named = {"schedule": "together"} | {("schedule" if name == "order" else name): value for name, value in changes.items()}
    graph = graph_of(*OUTPUTS, **changes)
    compared(session, graph, 4, list(OUTPUTS), steps=6, cfg=2.0, sampler="euler", scheduler="normal", **{**PROMPT, **named})


def test_strength_0_is_off_exactly_and_more_is_not(session):
    off = made(session, graph_of("image", "text", wiring="off"))
    assert all(torch.equal(a, b) for a, b in zip(off, made(session, graph_of("image", "text", alignment=0.0)), strict=True))
    on = made(session, graph_of("image", "text"))
    assert all((a - b).norm() > 1e-3 * a.norm() for a, b in zip(off, on, strict=True))


def test_every_guider_hears_and_reads_once_a_step(session, monkeypatch):
    """The same latents under the host's guider and ours, and under KSampler; each output is read at every second step."""
    reading = importlib.import_module(f"{session.pack.__name__}.codi_models.reading").LatentReader
    read, real = [], reading.__call__
    monkeypatch.setattr(reading, "__call__", lambda self, m, z: read.append(m) or real(self, m, z))
    graph = graph_of("image", "text")
    session.forget()
    wanted = made(session, graph)
    assert sorted(read) == ["image"] * 3 + ["text"] * 3
    read.clear()
    made(session, graph_of("image", "text", order="sequential"))
    assert read == ["text"]  # finished, once; the image is nobody's source
    widgets = {**PROMPT, "alignment_start": 0.0, "alignment_end": 1.0}
    graph["align"] = node("CoDiAlignment", model=["load", 0], **widgets)
    links = {"model": ["align", 0], "positive": ["yes", 0], "negative": ["no", 0]}
    graph["guider"] = node("CFGGuider", **links, cfg=2.0)
    graph["own"] = node("CoDiGuider", **links, **{f"cfg_{m}": 2.0 for m in ("video", "image", "text", "audio")}, cfg_rescale=0.0,
                        alignment_guidance=1.0)  # fmt: skip
    graph["noise"], graph["by"] = node("RandomNoise", noise_seed=4), node("KSamplerSelect", sampler_name="euler")
    graph["sigmas"] = node("BasicScheduler", model=["align", 0], scheduler="normal", steps=6, denoise=1.0)
    for guider in ("guider", "own"):
        graph[f"by {guider}"] = node("SamplerCustomAdvanced", noise=["noise", 0], guider=[guider, 0], sampler=["by", 0],
                                     sigmas=["sigmas", 0], latent_image=["empty", 0])  # fmt: skip
    graph["stock"] = node("KSampler", **links, latent_image=["empty", 0], seed=4, steps=6, cfg=2.0, sampler_name="euler",
                          scheduler="normal", denoise=1.0)  # fmt: skip
    for link in ("by guider", "by own", "stock"):
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(wanted, made(session, graph, link), strict=True)), link


def test_what_is_kept_is_heard(session):
    """A sound that is kept is read once, as it is, and the image beside it follows it."""
    images = {}
    for shape, colour in (("star", "blue"), ("circle", "red")):
        graph = graph_of("image", "audio", steps=12)
        graph["scene"] = node("CoDiBounceScene", shape=shape, colour=colour, beats="2", seed=2)
        graph["keep"] = node("CoDiKeep", codi=["load", 1], latent=["empty", 0], audio=["scene", 1])
        graph["sample"]["inputs"]["latent"] = ["keep", 0]
        graph["none"] = node("CoDiEncodeText", codi=["load", 1], text="")
        graph["sample"]["inputs"] |= {"positive": ["none", 0], "cfg": 1.0}
        images[colour] = made(session, graph)[0]
    far = (images["blue"] - images["red"]).norm() / images["red"].norm()
    assert far > 0.3, far

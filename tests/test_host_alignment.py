"""Alignment in the graph: directions, schedule, joint beside independent, and guidance with a scale for every modality."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from host.graph import ALIGNMENT, SAMPLING, base_graph, node, sampled, shown
from host.session import Failed

MODALITIES = ("video", "image", "text", "audio")
PAIRS = {f"{a}_hears_{b}": 1.0 for a in MODALITIES for b in MODALITIES if a != b}


def parts(latent: dict) -> list[torch.Tensor]:
    samples = latent["samples"]
    return list(samples.unbind()) if samples.is_nested else [samples]


def sample(session, graph: dict, link: tuple[str, int] = ("sample", 0)) -> list[torch.Tensor]:
    session.run(shown(graph, list(link)))
    return parts(session.value(*link))


def equal(a: list, b: list) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def near(a: list, b: list, atol: float = 1e-4) -> bool:
    return all(torch.allclose(x, y, rtol=1e-5, atol=atol) for x, y in zip(a, b, strict=True))


def guided(
    *names: str, align: dict | None = None, batch_size: int = 1, sampler: str = "euler", steps: int = 2, model: str = "tiny", **changes
) -> dict:
    """SamplerCustomAdvanced with a CoDi Guider."""
    graph = base_graph(*names, batch_size=batch_size, model=model)
    graph["align"] = node("CoDiAlignment", model=["load", 0], **{**ALIGNMENT, "alignment_guidance": 1.0, **(align or {})})
    scales = {f"cfg_{m}": SAMPLING["cfg"] for m in MODALITIES}
    links = {"model": ["align", 0], "positive": ["yes", 0], "negative": ["no", 0]}
    graph["guider"] = node("CoDiGuider", **{**links, **scales, "cfg_rescale": 0.0, "alignment_guidance": 1.0, **changes})
    graph["noise"] = node("RandomNoise", noise_seed=SAMPLING["seed"])
    graph["by"] = node("KSamplerSelect", sampler_name=sampler)
    graph["sigmas"] = node("BasicScheduler", model=["align", 0], scheduler=SAMPLING["scheduler"], steps=steps, denoise=1.0)
    links = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["by", 0], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]}
    graph["sample"] = node("SamplerCustomAdvanced", **links)
    return graph


@contextmanager
def passes(session):
    """Counts the rows that every denoiser's UNet computes: (denoiser, outputs listening or not) -> batch rows."""
    seen: Counter = Counter()
    denoisers = session.pack.codi_models.denoisers
    before = denoisers.unet.UNet.forward

    def forward(self, x, timesteps, context, **kw):
        seen[type(self).__name__ + str(x.shape[1]), kw.get("environment") is not None] += x.shape[0]
        return before(self, x, timesteps, context, **kw)

    denoisers.unet.UNet.forward = forward
    try:
        yield seen
    finally:
        denoisers.unet.UNet.forward = before


VISION, AUDIO, TEXT = "HostUNet2D4", "HostUNet2D8", "HostTextUNet64"


def test_joint_and_independent_from_one_seed(session):
    graph = sampled("image", "audio", independent=True)
    joint, independent = sample(session, graph), parts(session.value("sample", 1))
    assert equal(joint, sample(session, sampled("image", "audio")))
    assert equal(independent, sample(session, sampled("image", "audio", wiring="off")))
    assert not near(joint, independent)


def test_without_the_switch_what_hangs_on_the_second_output_does_not_run(session):
    graph = {**sampled("text"), "show": node("PreviewAny", source=["sample", 1]), "also": node("PreviewAny", source=["sample", 0])}
    with passes(session) as seen:
        session.forget()
        assert "show" not in session.run(graph)
    assert seen[TEXT, False] == 2 * SAMPLING["steps"]


def test_a_matrix_of_directions(session):
    def run(**strengths):
        graph = sampled("image", "audio")
        graph["matrix"] = node("CoDiAlignmentMatrix", model=["load", 0], **{**PAIRS, **strengths})
        graph["sample"]["inputs"]["model"] = ["matrix", 0]
        return sample(session, graph)

    on, off = sample(session, sampled("image", "audio")), sample(session, sampled("image", "audio", wiring="off"))
    assert equal(run(), on)
    assert torch.equal(run(image_hears_audio=0.0)[0], off[0])
    assert torch.equal(run(audio_hears_image=0.0)[1], off[1])
    assert equal(run(image_hears_audio=0.0, audio_hears_image=0.0), off)
    half = sample(session, sampled("image", "audio", alignment=0.5))
    assert equal(run(image_hears_audio=0.5, audio_hears_image=0.5), half) and not near(half, on)


def test_the_range_of_steps(session):
    def run(start, end):
        return sample(session, sampled("image", "audio", steps=4, alignment_start=start, alignment_end=end))

    off = sample(session, sampled("image", "audio", steps=4, wiring="off"))
    on = sample(session, sampled("image", "audio", steps=4))
    assert equal(run(0.0, 1.0), on) and equal(run(0.0, 0.0), off)
    early, late = run(0.0, 0.5), run(0.5, 1.0)
    assert not near(early, on) and not near(late, on) and not near(early, late)
    with passes(session) as seen:
        session.forget()
        run(0.0, 0.5)
    steps = seen[AUDIO, False] + seen[AUDIO, True]
    assert 0 < seen[AUDIO, True] < steps  # in later steps only the pass without listening is left


@pytest.mark.parametrize("names", [("image", "audio"), ("text",)], ids="-".join)
def test_guider_with_equal_scales_is_the_stock_guider(session, names):
    ours = sample(session, guided(*names, batch_size=2))
    graph = guided(*names, batch_size=2)
    graph["guider"] = node("CFGGuider", model=["align", 0], positive=["yes", 0], negative=["no", 0], cfg=SAMPLING["cfg"])
    assert near(ours, sample(session, graph), atol=1e-6)


def test_a_scale_for_every_modality(session):
    off = {"wiring": "off"}
    low, high = sample(session, guided("image", "audio", align=off)), sample(session, guided("image", "audio", align=off, **same(6.0)))
    mixed = sample(session, guided("image", "audio", align=off, cfg_audio=6.0))
    assert near([mixed[0], mixed[1]], [low[0], high[1]]) and not near(low, high)
    none = sample(session, guided("image", "audio", align=off, cfg_image=1.0))
    assert near(none, [sample(session, guided("image", "audio", align=off, **same(1.0)))[0], low[1]])


def same(cfg: float) -> dict:
    return {f"cfg_{m}": cfg for m in MODALITIES}


def test_guider_leaves_out_passes_that_no_scale_needs(session):
    def rows(**changes):
        session.forget()
        with passes(session) as seen:
            sample(session, guided("image", "audio", "text", **changes))
        steps = SAMPLING["steps"]
        return {n: (seen[n, False] / steps, seen[n, True] / steps) for n in (VISION, AUDIO, TEXT)}

    assert rows() == {VISION: (0, 2), AUDIO: (0, 2), TEXT: (0, 2)}
    assert rows(**same(1.0)) == {VISION: (0, 1), AUDIO: (0, 1), TEXT: (0, 1)}
    assert rows(**{**same(1.0), "cfg_text": 2.0}) == {VISION: (0, 1), AUDIO: (0, 1), TEXT: (0, 2)}
    assert rows(alignment_guidance=2.0) == {VISION: (1, 2), AUDIO: (1, 2), TEXT: (1, 2)}
    assert rows(alignment_guidance=2.0, align={"wiring": "off"}) == {VISION: (2, 0), AUDIO: (2, 0), TEXT: (2, 0)}
    assert rows(alignment_guidance=2.0, align={"alignment_end": 0.0})[TEXT] == (2, 0)


def test_alignment_guidance_of_the_guider(session):
    plain = sample(session, guided("image", "audio", **same(1.0)))
    pushed = sample(session, guided("image", "audio", alignment_guidance=2.5, **same(1.0)))
    inside = sample(session, guided("image", "audio", align={"alignment_guidance": 2.5}, **same(1.0)))
    assert not near(plain, pushed)
    assert near(plain, inside)  # the guider's own scale takes the place of the MODEL's
    graph = guided("image", "audio", align={"alignment_guidance": 2.5})
    graph["guider"] = node("CFGGuider", model=["align", 0], positive=["yes", 0], negative=["no", 0], cfg=1.0)
    assert near(pushed, sample(session, graph))  # without cfg both ways of pushing are the same


def test_rescale_brings_the_spread_back(session):
    plain, strong = sample(session, guided("image", "audio")), sample(session, guided("image", "audio", cfg_rescale=1.0))
    assert not near(plain, strong)
    halfway = sample(session, guided("image", "audio", cfg_rescale=0.5))
    assert not near(halfway, plain) and not near(halfway, strong)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "uni_pc"])
def test_guider_under_other_samplers(session, sampler):
    out = sample(session, guided("video", "audio", sampler=sampler, alignment_guidance=1.5, cfg_rescale=0.3))
    assert all(torch.isfinite(p).all() and p.std() > 0.01 for p in out)


def test_what_is_refused(session):
    graph = guided("image", "audio", align={"alignment_start": 0.8, "alignment_end": 0.2})
    with pytest.raises(Failed, match="start comes before end") as failure:
        sample(session, graph)
    assert failure.value.node == "CoDiAlignment"
    graph = {**base_graph("text"), "d": node("CoDiDenoiser", codi=["load", 1], denoiser="text_denoiser", dtype="auto")}
    graph["matrix"] = node("CoDiAlignmentMatrix", model=["d", 0], **PAIRS)
    with pytest.raises(Failed, match="joint MODEL"):
        session.run(shown(graph, ["matrix", 0]))


def test_prompts_must_go_with_the_batch(session):
    graph = sampled("text", batch_size=2)
    graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
    graph["three"] = node("RepeatImageBatch", image=["scene", 0], amount=3)
    graph["yes"] = node("CoDiEncodeImage", codi=["load", 1], image=["three", 0])
    with pytest.raises(Failed, match="3 prompts for a batch of 2"):
        sample(session, graph)


def test_it_does_not_matter_whether_the_host_asks_for_both_sides_of_guidance_at_once(session, monkeypatch):
    """Short of memory, or with hooks on one side, the host asks for prompt and negative prompt one by one."""
    import comfy.samplers

    graph = shown(sampled("image", "audio", steps=3, cfg=3.0, alignment_guidance=4.0, seed=81), ["sample", 0])
    session.run(graph)
    together = [p.clone() for p in session.value("sample")["samples"].unbind()]
    session.forget()
    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    session.run(graph)
    for a, b in zip(together, session.value("sample")["samples"].unbind(), strict=True):
        assert (a - b).abs().mean() < 0.01 * a.std()

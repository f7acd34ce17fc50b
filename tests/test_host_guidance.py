"""Under every guider of the host the alignment guidance adds (g - 1) (c - c_off), once, in the fewest rows.

One step from noise to a noise level of zero returns the guided clean latent itself, so formulas can be compared with what was sampled."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from host.graph import base_graph, node, outputs, shown

NAMES = ("image", "audio", "text")
NETWORKS = {"image": "HostUNet2D4", "audio": "HostUNet2D8", "text": "HostTextUNet64"}
PROMPTS = {"yes": "a red square bounces twice", "middle": "a blue star", "no": ""}


def graph_of(guider: str, cfg: float, g: float, wiring: str = "cross", batch: int = 2) -> dict:
    graph = base_graph(*NAMES, batch_size=batch)
    graph["middle"] = node("CoDiEncodeText", codi=["load", 1], text=PROMPTS["middle"])
    graph["align"] = node("CoDiAlignment", model=["load", 0], wiring=wiring, alignment=1.0, alignment_guidance=g)
    model, yes, no, middle = {"model": ["align", 0]}, ["yes", 0], ["no", 0], ["middle", 0]
    start = {"sampler_name": "euler", "scheduler": "normal", "steps": 1, "cfg": cfg, "positive": yes, "negative": no}
    if guider == "KSampler":
        graph["sample"] = node("KSampler", **model, **start, seed=3, denoise=1.0, latent_image=["empty", 0])
        return graph
    if guider == "KSamplerAdvanced":
        range_ = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 10, "return_with_leftover_noise": "disable"}
        graph["sample"] = node("KSamplerAdvanced", **model, **start, noise_seed=3, latent_image=["empty", 0], **range_)
        return graph
    if guider == "Joint Sampler":
        own = {"wiring": wiring, "alignment": 1.0, "alignment_guidance": g, "order": "together"}
        graph["sample"] = node("CoDiJointSampler", model=["load", 0], **start, seed=3, denoise=1.0, latent=["empty", 0], **own)
        return graph
    two = {"cfg_conds": cfg, "cfg_cond2_negative": 1.0 + cfg / 2}
    cond12 = {"cond1": yes, "cond2": middle, "negative": no}
    graph["guider"] = {
        "CFGGuider": lambda: node("CFGGuider", **model, positive=yes, negative=no, cfg=cfg),
        "BasicGuider": lambda: node("BasicGuider", **model, conditioning=yes),
        "DualCFG regular": lambda: node("DualCFGGuider", **model, **cond12, **two, style="regular"),
        "DualCFG nested": lambda: node("DualCFGGuider", **model, **cond12, **two, style="nested"),
        "PerpNeg": lambda: node("PerpNegGuider", **model, positive=yes, negative=middle, empty_conditioning=no, cfg=cfg, neg_scale=0.7),
        "CoDi Guider": lambda: node(
            "CoDiGuider", **model, positive=yes, negative=no, **{f"cfg_{m}": cfg for m in outputs()}, cfg_rescale=-1.0, alignment_guidance=g
        ),
    }[guider]()
    graph["noise"], graph["by"] = node("RandomNoise", noise_seed=3), node("KSamplerSelect", sampler_name="euler")
    graph["sigmas"] = node("BasicScheduler", **model, scheduler="normal", steps=1, denoise=1.0)
    links = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["by", 0], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]}
    graph["sample"] = node("SamplerCustomAdvanced", **links)
    return graph


def result(session, *args, **kw) -> list[torch.Tensor]:
    session.run(shown(graph_of(*args, **kw), ["sample", 0]))
    return list(session.value("sample", 0)["samples"].unbind())


GUIDERS = (
    "KSampler", "KSamplerAdvanced", "Joint Sampler", "CFGGuider", "BasicGuider", "DualCFG regular", "DualCFG nested", "PerpNeg",
    "CoDi Guider",
)  # fmt: skip


@pytest.mark.parametrize("guider", GUIDERS)
def test_alignment_guidance_counts_once(session, guider):
    c, off = result(session, "BasicGuider", 1.0, 1.0), result(session, "BasicGuider", 1.0, 1.0, "off")
    assert all((a - b).abs().max() > 0.01 for a, b in zip(c, off, strict=True))
    for cfg in (1.0, 4.0):
        plain = result(session, guider, cfg, 1.0)
        for g in (0.0, 3.0):
            found = result(session, guider, cfg, g)
            for x, p, a, b in zip(found, plain, c, off, strict=True):
                torch.testing.assert_close(x, p + (g - 1) * (a - b), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("guider", GUIDERS)
def test_the_models_own_rescale_counts(session, guider, monkeypatch):
    """With a model that has one, every guider of the host gives other latents, and only where something is guided."""
    plain = {scales: result(session, guider, *scales) for scales in ((4.0, 3.0), (1.0, 1.0))}
    monkeypatch.setitem(vars(session.value("load", 1).config.sampling), "cfg_rescale", 0.6)
    session.forget()
    for scales, before in plain.items():
        changed = [float((a - b).abs().max()) for a, b in zip(result(session, guider, *scales), before, strict=True)]
        guided = scales != (1.0, 1.0) or guider.startswith(("DualCFG", "PerpNeg"))  # which have scales of their own beside cfg
        assert all((change > 1e-3) == guided for change in changed), (scales, changed)
    session.forget()  # what was made with it is not what the model makes


@pytest.mark.parametrize("guider", GUIDERS)
def test_no_row_more_than_needed(session, guider, monkeypatch):
    rows: Counter = Counter()
    unet = session.pack.codi_models.denoisers.unet.UNet
    forward, embed = unet.forward, unet.environment_embedding

    def counted(self, x, *args, **kw):
        rows[type(self).__name__ + str(x.shape[1])] += len(x)
        return forward(self, x, *args, **kw)

    def embedded(self, x, timesteps):
        rows["environment"] += len(x)
        return embed(self, x, timesteps)

    monkeypatch.setattr(unet, "forward", counted)
    monkeypatch.setattr(unet, "environment_embedding", embedded)

    def of(cfg: float, g: float, wiring: str = "cross") -> tuple[dict[int, int], int]:
        rows.clear()
        session.forget()
        result(session, guider, cfg, g, wiring, batch=4)
        return {rows[name] // 4 for name in NETWORKS.values()}, rows["environment"] // 4

    sides = {"BasicGuider": 1, "DualCFG regular": 3, "DualCFG nested": 3, "PerpNeg": 3}.get(guider, 2)
    assert of(4.0, 1.0) == ({sides}, 3)
    assert of(4.0, 3.0) == ({sides + 1}, 3)
    assert of(4.0, 3.0, "off") == ({sides}, 0)
    if guider in ("KSampler", "CFGGuider", "BasicGuider", "Joint Sampler", "CoDi Guider"):
        assert of(1.0, 3.0) == ({2}, 3)
        assert of(1.0, 0.0) == ({1}, 0)

"""A run in the host and one without it are the same run: latents from one given noise agree."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from host.graph import base_graph, node, sampled, shown

SETTINGS = {"wiring": "cross", "alignment": 1.0, "alignment_guidance": 2.0}


def stage_noise(latent: dict, stages: tuple[tuple[str, ...], ...], seed: int, parts, config) -> dict[str, torch.Tensor]:
    """What the host draws for a seed: for each stage anew, for what is finished and what it makes."""
    import comfy.sample

    shapes, noise, finished = parts.split(latent, config), {}, set()
    for stage in stages:
        finished |= set(stage)
        joint = parts.join({m: part for m, part in shapes.items() if m in finished})
        drawn = parts.split({"samples": comfy.sample.prepare_noise(joint, seed, None)}, config)
        noise |= {m: parts.network_form(m, drawn[m]) for m in stage}
    return noise


def headless(session, latent: dict, seed: int, outputs: list[str], **settings) -> dict[str, torch.Tensor]:
    """Latents, in latent space, of a headless run from the noise that the host draws for a seed."""
    codi = session.value("load", 1)
    parts, name = session.pack.nodes.host.parts, session.pack.__name__
    core = SimpleNamespace(
        **{m: importlib.import_module(f"{name}.codi_models.{m}") for m in ("pipeline", "model", "settings", "modalities")}
    )
    pipe = core.pipeline.CoDiPipeline(core.model.CoDi.from_pretrained(codi.model.folder, device="cpu", dtype=torch.float32))
    resolved = core.settings.Settings.resolve(codi.config, outputs, **settings)
    noise = stage_noise(latent, resolved.stages, seed, parts, codi.config)
    cond, uncond = session.value("yes")[0][0], session.value("no")[0][0]
    latents, _ = pipe.denoise(cond, uncond, resolved, noise)
    rows = core.modalities.MODALITIES
    return {m: parts.host_form(m, z) / rows[m].latent_scale(codi.config) for m, z in latents.items()}


def compared(session, graph: dict, seed: int, outputs: list[str], **settings) -> None:
    session.run(shown(graph, ["sample", 0]))
    codi, parts = session.value("load", 1), session.pack.nodes.host.parts
    made = parts.split(session.value("sample"), codi.config)
    own = headless(session, session.value("empty"), seed, outputs, **settings)
    assert made.keys() == own.keys()
    for m in made:
        assert made[m].std() > 0.01
        assert (made[m] - own[m]).norm() < 1e-5 * own[m].norm(), (m, float((made[m] - own[m]).norm() / own[m].norm()))


@pytest.mark.parametrize("model", ["tiny", "tiny-shifted"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddim"])
@pytest.mark.parametrize("scheduler", ["normal", "sgm_uniform", "simple", "karras", "ddim_uniform"])
def test_samplers_and_schedulers(session, model, sampler, scheduler):
    graph = sampled("image", "audio", model=model, sampler_name=sampler, scheduler=scheduler, steps=4, cfg=2.5, seed=5, **SETTINGS)
    more = dict(sampler=sampler, scheduler=scheduler, steps=4, cfg=2.5, **SETTINGS)
    graph["empty"]["inputs"]["seconds"] = 0.0
    compared(session, graph, 5, ["image", "audio"], **more)


# Norms over few frames, and those of random networks, multiply every rounding error: videos are compared with trained ones.
CASES = [
    *(("codi-mini", outputs) for outputs in (("video", "image", "text", "audio"), ("video",))),
    *((model, outputs) for model in ("tiny", "tiny-shifted") for outputs in (("image", "text", "audio"), ("text",), ("audio",))),
]


@pytest.mark.parametrize("model, outputs", CASES, ids=str)
@pytest.mark.parametrize("order", ["together", "sequential"])
def test_any_set_of_outputs_with_the_models_own_settings(session, model, outputs, order):
    """Nothing is set on the nodes nor for the headless run, so that both take what the model recommends."""
    graph = base_graph(*outputs, model=model, width=0, height=0, seconds=0.0, frames=0)
    links = {"model": ["load", 0], "positive": ["yes", 0], "negative": ["no", 0], "latent": ["empty", 0]}
    own = {"steps": -1, "cfg": -1.0, "sampler_name": "model's own", "scheduler": "model's own", "denoise": 1.0}
    aligned = {"wiring": "model's own", "alignment": -1.0, "alignment_guidance": -1.0}
    graph["sample"] = node("CoDiJointSampler", **links, seed=11, **own, **aligned, order=order)
    compared(session, graph, 11, list(outputs), schedule=order)


def test_a_denoiser_alone_under_the_stock_sampler(session):
    for model, modality in (("tiny", "image"), ("tiny-shifted", "image"), ("tiny-shifted", "audio"), ("codi-mini", "video")):
        for component in ["audio_denoiser" if modality == "audio" else "vision_denoiser"]:
            graph = base_graph(modality, model=model, seconds=0.0, frames=0)
            graph["d"] = node("CoDiDenoiser", codi=["load", 1], denoiser=component, dtype="auto")
            links = {"model": ["d", 0], "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
            graph["sample"] = node("KSampler", **links, seed=2, steps=3, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0)
            compared(session, graph, 2, [modality], sampler="euler", scheduler="normal", steps=3, cfg=2.0)

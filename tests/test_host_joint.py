"""The joint MODEL under the host's samplers."""

from __future__ import annotations

import base64
from io import BytesIO

import pytest
import torch
from host.graph import ALIGNMENT, SAMPLING, base_graph, node, sampled, shown
from host.session import Failed
from host.setting import PACK
from PIL import Image

ALL = ("video", "image", "text", "audio")


def parts(latent: dict) -> list[torch.Tensor]:
    samples = latent["samples"]
    return list(samples.unbind()) if samples.is_nested else [samples]


def sample(session, graph: dict, link: tuple[str, int] = ("sample", 0)) -> list[torch.Tensor]:
    session.run(shown(graph, list(link)))
    return parts(session.value(*link))


def stock(graph: dict) -> dict:
    """The same run with CoDi Alignment and the host's KSampler."""
    graph = {k: v for k, v in graph.items() if k != "sample"}
    graph["align"] = node("CoDiAlignment", model=["load", 0], **ALIGNMENT)
    links = {"model": ["align", 0], "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
    graph["sample"] = node("KSampler", **links, **SAMPLING)
    return graph


def custom(graph: dict) -> dict:
    """The same run with the host's SamplerCustomAdvanced."""
    graph = {k: v for k, v in graph.items() if k != "sample"}
    graph["align"] = node("CoDiAlignment", model=["load", 0], **ALIGNMENT)
    graph["noise"] = node("RandomNoise", noise_seed=SAMPLING["seed"])
    graph["guider"] = node("CFGGuider", model=["align", 0], positive=["yes", 0], negative=["no", 0], cfg=SAMPLING["cfg"])
    graph["by"] = node("KSamplerSelect", sampler_name=SAMPLING["sampler_name"])
    graph["sigmas"] = node("BasicScheduler", model=["align", 0], scheduler=SAMPLING["scheduler"], steps=SAMPLING["steps"], denoise=1.0)
    links = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["by", 0], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]}
    graph["sample"] = node("SamplerCustomAdvanced", **links)
    return graph


@pytest.mark.parametrize("names", [ALL, ("video", "audio"), ("text",), ("audio",)], ids="-".join)
def test_joint_sampler_is_the_stock_sampler(session, names):
    graph = sampled(*names, batch_size=2)
    ours = sample(session, graph)
    for theirs in (sample(session, stock(graph)), sample(session, custom(graph))):
        assert [a.shape for a in ours] == [b.shape for b in theirs]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(torch.isfinite(p).all() and p.std() > 0.01 for p in ours)


def test_parts_are_the_outputs_in_order_at_their_sizes(session):
    shapes = [tuple(p.shape) for p in sample(session, sampled(*ALL, batch_size=2))]
    assert shapes == [(2, 4, 2, 8, 8), (2, 4, 8, 8), (2, 64, 1), (2, 8, 4, 8)]


def test_each_denoiser_samples_alone_and_composes_to_the_joint_model(session):
    names = ("video", "text", "audio")
    graph = sampled(*names)
    whole = sample(session, graph)
    graph["codi"] = node("CoDiLoad", name="tiny")
    for i, name in enumerate(("audio_denoiser", "vision_denoiser", "text_denoiser")):
        graph[f"d{i}"] = node("CoDiDenoiser", codi=["codi", 0], denoiser=name, dtype="auto")
    graph["joint"] = node("CoDiCompose", **{f"models.model{i}": [f"d{i}", 0] for i in range(3)}, **ALIGNMENT)
    graph["sample"]["inputs"]["model"] = ["joint", 0]
    assert all(torch.equal(a, b) for a, b in zip(whole, sample(session, graph), strict=True))

    alone = {**base_graph("audio"), "d": node("CoDiDenoiser", codi=["load", 1], denoiser="audio_denoiser", dtype="auto")}
    links = {"model": ["d", 0], "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
    alone["sample"] = node("KSampler", **links, **SAMPLING)
    joint = sample(session, sampled("audio"))
    assert torch.equal(sample(session, alone)[0], joint[0])


def test_outputs_listen_to_each_other_as_wired(session):
    def run(**settings):
        return sample(session, sampled("image", "audio", **settings))

    off, cross, own = run(wiring="off"), run(wiring="cross"), run(wiring="self")
    for a, b in ((off, cross), (off, own), (cross, own)):
        assert all((x - y).abs().max() > 1e-4 for x, y in zip(a, b, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(off, run(alignment=0.0), strict=True))
    plain = run(wiring="off", cfg=1.0)
    assert all(torch.equal(x, y) for x, y in zip(plain, run(alignment_guidance=0.0, cfg=1.0), strict=True))
    assert torch.equal(off[0], sample(session, sampled("image"))[0])


def test_only_composed_denoisers_are_loaded(session):
    session.run(shown(base_graph("audio", "text"), ["load", 0]))
    model = session.value("load", 0)
    members = model.get_additional_models_with_key("codi")
    assert sorted(type(m.model.diffusion_model).__name__ for m in members) == ["HostTextUNet", "HostUNet2D"]
    assert model.model.outputs == ("text", "audio")


def empty_latent(session, outputs: list[str]) -> dict:
    parts, config = session.pack.nodes.host.parts, session.value("load", 1).config
    return parts.empty(config, parts.sizes_of(config, outputs, seconds=0.32))


def test_a_kept_part_is_left_as_it_was(session):
    from comfy.nested_tensor import NestedTensor

    session.run(shown(base_graph("image", "audio"), ["load", 0]))
    model = session.value("load", 0)
    latent = empty_latent(session, ["image", "audio"])
    image, audio = latent["samples"].unbind()
    image = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    latent["samples"] = NestedTensor([image, audio])
    latent["noise_mask"] = NestedTensor([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, *audio.shape[2:])])
    prompt = [[torch.nn.functional.normalize(torch.ones(1, 1, 128), dim=-1), {}]]
    with torch.inference_mode():
        out = session.classes["CoDiJointSampler"].execute(model, prompt, latent, 0, 2, 1.0, "uni_pc", "normal", 1.0, "cross", 1.0, 1.0)
    kept, made = out.result[0]["samples"].unbind()
    assert torch.equal(kept, image)
    assert made.std() > 0.01


def test_latents_are_scaled_part_by_part(session):
    from comfy.nested_tensor import NestedTensor

    session.run(shown(base_graph("video", "text", "audio"), ["load", 0]))
    model = session.value("load", 0).model
    shapes = [(1, 4, 2, 8, 8), (1, 64, 1), (1, 8, 4, 8)]
    scaled = model.process_latent_in(NestedTensor([torch.ones(s) for s in shapes])).unbind()
    assert [float(p.mean()) for p in scaled] == [0.5, 3.0, 2.0]
    model.latent_shapes = shapes
    packed = torch.cat([torch.ones(1, 1, p.numel()) for p in scaled], dim=-1)
    back = model.process_latent_out(model.process_latent_in(packed))
    assert torch.equal(back, packed)
    assert set(model.process_latent_in(packed).unique().tolist()) == {0.5, 2.0, 3.0}


@pytest.mark.parametrize("names", [("video", "image", "text", "audio"), ("video",), ("text", "audio"), ("audio",), ("text",)], ids="-".join)
def test_progress_and_a_preview_of_every_stream(session, names):
    session.forget()
    session.run(shown(sampled(*names, steps=3), ["sample", 0]), preview_method="latent2rgb")
    steps = [d for k, d in session.events if k == "progress" and d["max"] == 3]
    values = [d["value"] for d in steps]
    assert values == sorted(set(values)) and values[-1] == 3  # the host drops updates that follow within a tenth of a second
    pictures = [d["preview"][1] for d in steps]
    height = (132 if set(names) - {"text"} else 0) + (30 if "text" in names else 0)
    assert {p.size for p in pictures} == {(384, height)}
    columns = torch.frombuffer(bytearray(pictures[-1].tobytes()), dtype=torch.uint8).view(height, 384, 3).float()
    if set(names) - {"text"}:
        assert columns[:132].std() > 3  # something is drawn


@pytest.mark.parametrize("kind", ["KSampler", "CoDiJointSampler"])
def test_a_clip_is_sent_to_the_browser_to_play(session, kind):
    graph = sampled("video", "text", frames=3, steps=2)
    if kind == "KSampler":
        inputs = graph["sample"]["inputs"]
        kept = {k: v for k, v in inputs.items() if k not in ("latent", "wiring", "alignment", "alignment_guidance")}
        graph["sample"] = node(kind, **kept, latent_image=["empty", 0])
    session.forget()
    session.run(shown(graph, ["sample", 0]), preview_method="latent2rgb")
    clips = [d for k, d in session.events if k == "codi.frames"]
    assert clips and all((c["node"], c["frames"], c["rate"]) == ("sample", 3, 6.25) for c in clips)
    kind, data = clips[-1]["strip"].split(",")
    with Image.open(BytesIO(base64.b64decode(data))) as strip:
        assert kind == "data:image/jpeg;base64" and strip.size == (3 * 124, 124)
        frames = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8).view(124, 3, 124, 3).float()
    assert (frames[:, 0] - frames[:, 1]).abs().mean() > 1  # each frame its own


@pytest.mark.parametrize(("names", "method"), [(("video", "text"), "none"), (("image", "audio"), "latent2rgb")])
def test_no_clip_is_sent_where_there_is_none_or_none_is_asked_for(session, names, method):
    session.forget()
    session.run(shown(sampled(*names, steps=2), ["sample", 0]), preview_method=method)
    assert not any(k == "codi.frames" for k, _ in session.events)


def test_no_preview_is_drawn_where_none_is_asked_for(session):
    session.forget()
    session.run(shown(sampled("image", "audio", steps=3), ["sample", 0]), preview_method="none")
    assert all(d["preview"] is None for k, d in session.events if k == "progress" and d["max"] == 3)


def test_previews_show_the_decoded_latents_roughly(session):
    from codi.codi_models.bounce_world import render
    from codi.codi_models.bounce_world import world as bounce

    if not (PACK / "weights" / "codi-mini" / "config.json").is_file():
        pytest.skip("codi-mini is not here: nothing is in the latents of autoencoders that were not trained")
    codi = session.pack.nodes.host.handle.open_handle("codi-mini")
    preview = session.pack.nodes.host.preview
    generator = torch.Generator().manual_seed(5)
    scenes = bounce.sample_scenes(8, generator=generator)
    nuisance = bounce.sample_nuisance(8, generator=generator)
    pixels, sound = render.render_image(scenes, nuisance) * 2 - 1, render.render_audio(scenes, nuisance)
    z = codi.model.image_autoencoder.encode(pixels) * codi.config.image_autoencoder.scale
    drawn = torch.stack([preview.apply(preview.colour_map(codi), row) for row in z]).movedim(-1, 1)
    wanted = torch.nn.functional.interpolate(pixels, size=z.shape[-2:], mode="area")
    elements = torch.nn.functional.pad(z, (0, 0, 0, 0, 0, 1), value=1.0).movedim(1, -1).flatten(0, 2)  # (8 h w, C + 1)
    best = elements @ torch.linalg.lstsq(elements, wanted.movedim(1, -1).flatten(0, 2)).solution  # by the linear map of these very images
    least = (best - wanted.movedim(1, -1).flatten(0, 2)).square().mean()
    assert (drawn - wanted).square().mean() < 1.1 * least < 0.9 * wanted.var()
    z = codi.model.audio_autoencoder.encode(sound) * codi.config.audio_autoencoder.scale
    loud = torch.stack([preview.apply(preview.loudness_map(codi), row) for row in z]).squeeze(-1)
    energy = torch.nn.functional.interpolate(codi.model.audio_autoencoder.mel(sound), size=z.shape[-2:], mode="area")[:, 0]
    assert torch.corrcoef(torch.stack([loud.flatten(), energy.flatten()]))[0, 1] > 0.5


def test_interrupt_stops_the_run_and_not_the_host(session):
    import comfy.model_management as mm
    import comfy.utils

    session.forget()
    before = comfy.utils.PROGRESS_BAR_HOOK

    def stop(value, total, preview, node_id=None):
        if total == 5:
            mm.interrupt_current_processing()
        before(value, total, preview, node_id)

    comfy.utils.set_progress_bar_global_hook(stop)
    try:
        with pytest.raises(Failed, match="interrupted"):
            session.run(shown(sampled("text", steps=5), ["sample", 0]))
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
    assert sample(session, sampled("text"))[0].shape == (1, 64, 1)


def test_a_lora_on_one_member_works_in_the_joint_model(session):
    session.run(shown(base_graph("audio", "text"), ["load", 0]))
    codi = session.value("load", 1)
    host = session.pack.nodes.host
    members = [host.denoiser.denoiser_model(codi, d) for d in ("audio_denoiser", "text_denoiser")]
    key = next(k for k, v in members[0].model.state_dict().items() if k.endswith("time_embed.0.weight"))
    changed = members[0].clone()
    assert changed.add_patches({key: (torch.full_like(members[0].model.state_dict()[key], 0.2),)}, 1.0) == [key]
    prompt = [[torch.nn.functional.normalize(torch.ones(1, 1, 128), dim=-1), {}]]
    latent = empty_latent(session, ["text", "audio"])

    def run(first):
        from nodes import common_ksampler

        with torch.inference_mode():
            out = common_ksampler(
                host.compose.align(host.compose.compose([first, members[1]]), wiring="off"),
                0,
                2,
                1.0,
                "euler",
                "normal",
                prompt,
                prompt,
                latent,
            )
        return out[0]["samples"].unbind()

    plain, patched, again = run(members[0]), run(changed), run(members[0])
    assert torch.equal(plain[0], patched[0]) and not torch.allclose(plain[1], patched[1])
    assert torch.equal(plain[1], again[1])

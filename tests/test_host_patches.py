"""The host's model patches on a joint MODEL: each stream gets what it would get alone, and what cannot work says so."""

from __future__ import annotations

import pytest
import torch
from host.graph import ALIGNMENT, SAMPLING, base_graph, node, shown
from host.session import Failed

PATCHES = {
    "RescaleCFG": {"multiplier": 0.7}, "RenormCFG": {"cfg_trunc": 100.0, "renorm_cfg": 0.5}, "PerpNeg": {"neg_scale": 1.0},
    "SelfAttentionGuidance": {"scale": 2.0, "blur_sigma": 2.0}, "PerturbedAttentionGuidance": {"scale": 3.0}, "CFGZeroStar": {},
    "CFGNorm": {"strength": 0.9, "pre_cfg": True}, "APG": {"eta": 0.5, "norm_threshold": 1.0, "momentum": 0.5}, "TCFG": {},
    "FreSca": {"scale_low": 1.0, "scale_high": 2.0, "freq_cutoff": 2}, "Mahiro": {}, "Epsilon Scaling": {"scaling_factor": 1.1},
    "TemporalScoreRescaling": {"tsr_k": 0.5, "tsr_sigma": 1.0}, "VideoLinearCFGGuidance": {"min_cfg": 2.0},
    "FreeU": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "HyperTile": {"tile_size": 1, "swap_size": 1, "max_depth": 2, "scale_depth": False},
    "NAGuidance": {"nag_scale": 5.0, "nag_alpha": 1.0, "nag_tau": 3.0},
    "PatchModelAddDownscale": {
        "block_number": 1, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0, "downscale_after_skip": True,
        "downscale_method": "bicubic", "upscale_method": "bicubic",
    },
    "LatentApplyOperationCFG": {"operation": ["sharpen", 0]}, "UNetCrossAttentionMultiply": {"q": 1.0, "k": 1.0, "v": 2.0, "out": 1.0},
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
}  # fmt: skip
ONE_PICTURE = ("RenormCFG", "TemporalScoreRescaling")
"""Nodes that take no batch, on Stable Diffusion either."""


def graph_of(
    kind: str | None, names: tuple[str, ...], *, model: str = "tiny", alone: bool = False, more: dict | None = None, **changes
) -> dict:
    """Outputs sampled with a node on the MODEL, without latent alignment unless `wiring` says so."""
    sizes = {key: changes.pop(key) for key in ("batch_size", "frames") if key in changes}
    graph = base_graph(*names, model=model, composed=("image", "audio") if alone else None, width=128, height=128, **sizes)
    graph["member"] = node("CoDiDenoiser", codi=["load", 1], denoiser="vision_denoiser", dtype="auto")
    graph["align"] = node("CoDiAlignment", model=["load", 0], **{**ALIGNMENT, "wiring": changes.pop("wiring", "off")})
    graph["sharpen"] = node("LatentOperationSharpen", sharpen_radius=1, sigma=1.0, alpha=0.5)
    start = ["member", 0] if alone else ["align", 0]
    inputs = PATCHES.get(kind or "", {}) if more is None else more
    graph["middle"] = node("CoDiEncodeText", codi=["load", 1], text="a blue star")
    inputs = inputs | ({"empty_conditioning": ["middle", 0]} if kind == "PerpNeg" else {})
    graph["it"] = node(kind, model=start, **inputs) if kind else graph[start[0]]
    links = {"model": ["it", 0], "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
    graph["sample"] = node("KSampler", **links, **{**SAMPLING, "steps": 4, "cfg": 4.0, **changes})
    return shown(graph, ["sample", 0])


def sampled(session, *args, **kw) -> list[torch.Tensor]:
    if args[0] is not None and args[0] not in session.classes:
        pytest.skip(f"this host has no {args[0]}")
    session.run(graph_of(*args, **kw))
    samples = session.value("sample")["samples"]
    return [p.clone() for p in (samples.unbind() if samples.is_nested else [samples])]


@pytest.mark.parametrize("kind", [None, *PATCHES])
def test_a_stream_of_a_joint_model_gets_what_it_would_get_alone(session, kind):
    batch = 1 if kind in ONE_PICTURE else 2
    (alone,) = sampled(session, kind, ("image",), alone=True, batch_size=batch)
    image, audio = sampled(session, kind, ("image", "audio"), batch_size=batch)
    if kind == "EasyCache":  # goes by what changes in the whole latent
        assert torch.isfinite(image).all()
    else:
        torch.testing.assert_close(image, alone, rtol=1e-3, atol=1e-3)
    if kind is not None:
        plain, _ = sampled(session, None, ("image", "audio"), batch_size=batch)
        assert (image - plain).abs().max() > 1e-3 and torch.isfinite(audio).all()


@pytest.mark.parametrize(
    "kind", ["RescaleCFG", "RenormCFG", "SelfAttentionGuidance", "PerpNeg", "APG", "FreeU_V2", "NAGuidance", "HyperTile"]
)
def test_clips_texts_and_sounds_take_part(session, kind):
    names = ("video", "image", "text", "audio")
    made, plain = sampled(session, kind, names, wiring="cross", frames=3), sampled(session, None, names, wiring="cross", frames=3)
    again = sampled(session, kind, names, wiring="cross", frames=3, seed=8), sampled(session, kind, names, wiring="cross", frames=3)
    assert all(torch.isfinite(p).all() for p in made)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(made[:2], plain, strict=False))
    assert all(torch.equal(a, b) for a, b in zip(made, again[1], strict=True))  # nothing is left over from the run between


def test_rescaled_guidance_is_of_each_stream(session):
    """One step from noise to none returns what guidance made, so the formula can be compared."""
    names, one = ("image", "audio"), {"steps": 1, "batch_size": 2}
    c, u = sampled(session, None, names, cfg=1.0, **one), sampled(session, None, names, cfg=0.0, **one)
    plain, made = sampled(session, None, names, **one), sampled(session, "RescaleCFG", names, **one)
    for positive, negative, guided, rescaled in zip(c, u, plain, made, strict=True):
        torch.testing.assert_close(guided, negative + 4 * (positive - negative), rtol=1e-3, atol=1e-3)
        assert (rescaled - guided).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_2m_cfg_pp"])
def test_what_a_sampler_adds_itself_works_on_the_whole_latent(session, sampler):
    image, _ = sampled(session, "RescaleCFG", ("image", "audio"), sampler_name=sampler)
    (alone,) = sampled(session, "RescaleCFG", ("image",), alone=True, sampler_name=sampler)
    torch.testing.assert_close(image, alone, rtol=1e-3, atol=1e-3)


def test_easycache_skips_steps_of_all_streams(session, monkeypatch):
    unet, calls = session.pack.codi_models.denoisers.unet.UNet, []
    forward = unet.forward
    monkeypatch.setattr(unet, "forward", lambda self, *a, **kw: calls.append(1) or forward(self, *a, **kw))
    counts = []
    for kind in (None, "EasyCache"):
        calls.clear()
        sampled(session, kind, ("video", "text", "audio"), wiring="cross", steps=8, seed=12)
        counts.append(len(calls))
    assert counts[1] < counts[0]


WINDOWS = {
    "context_length": 4, "context_overlap": 2, "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False,
    "fuse_method": "pyramid", "dim": 2, "freenoise": False, "cond_retain_index_list": "", "split_conds_to_windows": False,
}  # fmt: skip


def windows(session) -> dict:
    known = session.classes["ContextWindowsManual"].INPUT_TYPES()
    known = {k: more.get("default") for k, (_, more) in {**known["required"], **known.get("optional", {})}.items() if k != "model"}
    return {k: WINDOWS.get(k, default) for k, default in known.items()}


@pytest.mark.parametrize("model", ["tiny", "tiny-shifted"])
def test_context_windows_are_of_the_frames_of_a_clip(session, model):
    if not hasattr(session.pack.nodes.host.latent_model.comfy.model_base.BaseModel, "resize_cond_for_context_window"):
        pytest.skip("this host has no context windows over several modalities")
    given = {"frames": 7, "model": model, "more": windows(session)}
    names = ("video", "image", "text", "audio")
    made, plain = sampled(session, "ContextWindowsManual", names, **given), sampled(session, None, names, **given)
    assert (made[0] - plain[0]).abs().max() > 1e-3
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(made[1:], plain[1:], strict=True))
    with pytest.raises(Failed, match="frames of a video"):
        sampled(session, "ContextWindowsManual", ("image", "audio"), more=windows(session))


def words(session, caplog, *args, **kw) -> tuple[list[str], list[str]]:
    """CoDi's warnings of a run, and what was shown on its sampler."""
    caplog.clear()
    sampled(session, *args, **kw)
    on_node = [bytes(data).decode(errors="replace") for _, data in session.events if isinstance(data, (bytes, bytearray))]
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("CoDi: ")], on_node


def test_what_has_no_effect_says_so_once_in_the_log_and_on_the_node(session, caplog):
    slg = {"layers": "7, 8, 9", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0}
    for names in (("image",), ("image", "audio")):
        said, on_node = words(session, caplog, "SkipLayerGuidanceSD3", names, alone=len(names) == 1, more=slg, seed=len(names))
        ours = [line for line in said if "no such blocks" in line]
        assert len(ours) == 1 and "dit" in ours[0] and any("no such blocks" in text and "sample" in text for text in on_node)
    said, _ = words(session, caplog, "FreeU", ("image", "audio"), seed=77)
    assert [line for line in said if "image and video only" in line]
    assert words(session, caplog, None, ("image", "audio"), seed=78) == ([], [])


def test_noise_levels_of_another_model_are_refused_where_outputs_have_their_own(session):
    with pytest.raises(Failed, match="noise levels of tiny-shifted cannot be replaced"):
        sampled(session, "ModelSamplingDiscrete", ("image",), model="tiny-shifted", more={"sampling": "eps", "zsnr": False})
    sampled(session, "ModelSamplingDiscrete", ("image",), more={"sampling": "eps", "zsnr": False})


def test_a_patch_that_fails_is_named(session):
    from comfy_api.latest import io

    class Failing(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            inputs = [io.Model.Input("model"), io.String.Input("place")]
            return io.Schema(node_id="TestFailing", category="test", inputs=inputs, outputs=[io.Model.Output()])

        @classmethod
        def execute(cls, model, place):
            def patch(*_):
                raise RuntimeError("a shape of another network")

            made = model.clone()
            getattr(made, f"set_model_{place}")(patch)
            return io.NodeOutput(made)

    session.classes["TestFailing"] = Failing
    for place in ("attn1_patch", "output_block_patch", "sampler_post_cfg_function", "sampler_cfg_function"):
        with pytest.raises(Failed, match="a shape of another network") as failure:
            sampled(session, "TestFailing", ("image", "audio"), more={"place": place})
        assert "model patch" in str(failure.value) and failure.value.kind.endswith("CoDiError")
    sampled(session, None, ("image", "audio"), seed=5)


def test_a_prompt_that_a_patch_encodes_in_the_middle_of_a_run_knows_what_is_kept(session):
    graph = graph_of("PerpNeg", ("image", "audio"), wiring="cross")
    graph["before"], graph["nothing"] = graph["empty"], node("SolidMask", value=0.0, width=128, height=128)
    graph["empty"] = node("SetLatentNoiseMask", samples=["before", 0], mask=["nothing", 0])  # of the first part
    session.run(graph)
    image, audio = session.value("sample")["samples"].unbind()
    assert not image.any() and torch.isfinite(audio).all() and audio.any()

"""Dtypes and memory flags of the host: every network computes in whatever type its weights are, whole or streamed."""

from __future__ import annotations

import pytest
import torch
from host.graph import decoded, node, sampled
from host.server import Server
from host.setting import PACK, make_base

ALL = ("video", "image", "text", "audio")
SHAPES = {"vision_denoiser": (2, 4, 3, 8, 8), "audio_denoiser": (2, 8, 16, 8), "text_denoiser": (2, 64, 1)}
TOLERANCE = {torch.float8_e4m3fn: 0.6, torch.float8_e5m2: 0.9, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Of the predicted noise, relative: three, two, seven and ten bits of each weight."""


def predicted(model, name: str) -> torch.Tensor:
    x = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(0))
    prompt = torch.randn(2, 1, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return x - model.apply_model(x, torch.tensor([0.5, 2.0]), None, prompt, transformer_options={}).float()


def fresh(session, name: str):
    """A denoiser of its own, on the host's operations."""
    host = session.pack.nodes.host
    return host.denoiser._build(host.handle.open_handle("tiny"), name, "fp32", True)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_weights_and_raw_parameters_of_any_dtype_are_cast_before_they_count(session, name, dtype):
    patcher = fresh(session, name)
    exact = predicted(patcher.model, name)
    for module in patcher.model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
    for parameter in patcher.model.parameters():
        parameter.data = parameter.data.to(dtype)
    error = float((predicted(patcher.model, name) - exact).norm() / exact.norm())
    assert 0 < error < TOLERANCE[dtype]


@pytest.mark.parametrize("name", SHAPES)
def test_weights_that_stay_behind_are_streamed_with_their_patches(session, name):
    patcher = fresh(session, name)
    exact = predicted(patcher.model, name)
    key = next(k for k in patcher.model_state_dict() if k.endswith("attn1.to_v.weight"))
    clone = patcher.clone()
    clone.add_patches({key: ("diff", (torch.ones_like(patcher.model_state_dict()[key]),))}, 0.5)
    with torch.inference_mode():
        clone.load(torch.device("cpu"), full_load=True)
        whole = predicted(patcher.model, name)
        clone.unpatch_model(torch.device("cpu"))
        clone.load(torch.device("cpu"), lowvram_model_memory=1)
        assert any(
            getattr(m, "comfy_patched_weights", None) is not True and hasattr(m, "comfy_cast_weights") for m in patcher.model.modules()
        )
        streamed = predicted(patcher.model, name)
        clone.unpatch_model(torch.device("cpu"))
    assert (whole - exact).abs().max() > 1e-3
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predicted(patcher.model, name), exact, rtol=1e-4, atol=1e-4)


FLAGS = (
    ("--fp8_e4m3fn-unet", "--fast", "--cache-none", "--fp8_e4m3fn-text-enc"),
    ("--fp8_e5m2-unet", "--bf16-vae", "--disable-smart-memory", "--bf16-text-enc"),
    ("--bf16-unet", "--lowvram", "--fp16-vae", "--fp16-text-enc", "--cache-lru", "2"),
    ("--fp16-unet", "--novram", "--force-fp16"),
    ("--force-fp32", "--use-split-cross-attention", "--force-channels-last"),
)


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_server_started_with_these_flags_makes_all_outputs(host, tmp_path, flags):
    of_a_gpu = () if torch.cuda.is_available() else ("--lowvram", "--novram")  # the host takes them only with one
    server = Server(host, make_base(tmp_path), PACK, *(flag for flag in flags if flag not in of_a_gpu))
    try:
        graph = decoded(sampled(*ALL, frames=3), *ALL)
        graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
        graph["yes"] = node("CoDiEncodeImage", codi=["load", 1], image=["scene", 0])
        graph["heard"] = node("CoDiEncodeAudio", codi=["load", 1], audio=["scene", 1])
        graph["no"] = node("CoDiConditionMixer", **{"prompts.prompt0": ["heard", 0]}, weights="1", method="linear")
        for seed in (1, 2):
            graph["sample"]["inputs"]["seed"] = seed
            ran = server.run(graph, seconds=300)
            assert ran.end == "execution_success", (ran, server.log()[-3000:])
        assert "Traceback" not in server.log()
    finally:
        server.stop()

"""The denoisers, the joint step and DDIM give the published network's numbers; at full size they have its keys and shapes."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from codi.codi_models.config import CoDiConfig
from codi.codi_models.denoisers.layers import ResBlock, SpatialTransformer, timestep_embedding
from codi.codi_models.denoisers.temporal import TemporalModule, log_distances
from codi.codi_models.denoisers.unet import UNet
from codi.codi_models.denoisers.unet2d import UNet2D
from codi.codi_models.denoisers.unet_text import TextUNet
from codi.codi_models.diffusion import alphas_cumprod, betas, ddim_alphas, ddim_timesteps, guided, sample
from codi.codi_models.joint import JointDenoiser
from codi.codi_models.parity.configs import text_unet_config, unet_config
from codi.codi_models.parity.recipe import fill
from safetensors.torch import load_file
from torch import Tensor, nn

PARITY = Path(__file__).parent / "parity"
PART = {"vision_denoiser": "unet_image", "audio_denoiser": "unet_audio", "text_denoiser": "unet_text"}
PART_OF = {"video": "unet_image", "image": "unet_image", "audio": "unet_audio", "text": "unet_text"}
JOINT = ["image_audio", "image_text", "text_audio", "video_audio", "video_text", "text_image_audio"]


def fixture(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((PARITY / f"{name}.json").read_text()), load_file(PARITY / f"{name}.safetensors")


def close(ours: Tensor, published: Tensor, tolerance: float = 1e-4) -> None:
    assert ours.shape == published.shape
    assert ((ours.float() - published.float()).abs().max() / published.float().abs().max()).item() <= tolerance


@lru_cache
def unets() -> dict[str, UNet]:
    """The tiny joint model of the fixtures, by the published names of its parts."""
    info, _ = fixture("unet_image")
    config = info["config"]
    nets: dict[str, UNet] = {
        "unet_image": UNet2D(unet_config(config["unet_image"])),
        "unet_audio": UNet2D(unet_config(config["unet_audio"])),
        "unet_text": TextUNet(text_unet_config(config["unet_text"])),
    }
    for part, net in nets.items():
        fill(net, info["seed"], f"{part}.").eval().requires_grad_(False)
    return nets


def joint() -> JointDenoiser:
    return JointDenoiser({ours: unets()[part] for ours, part in PART.items()})


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("part", PART.values())
def test_tiny_keys(part: str) -> None:
    info, _ = fixture(part)
    published = {key.removeprefix(f"{part}."): tuple(shape) for key, shape in info["keys"]}
    assert {key: tuple(value.shape) for key, value in unets()[part].state_dict().items()} == published


@pytest.mark.parametrize(("component", "part"), PART.items())
def test_full_size_keys(component: str, part: str) -> None:
    prefix = f"model.diffusion_model.{part}."
    manifest = json.loads((PARITY / "manifest.json").read_text())["keys"]
    published = {key.removeprefix(prefix): tuple(entry["shape"]) for key, entry in manifest.items() if key.startswith(prefix)}
    network: type[Any] = TextUNet if part == "unet_text" else UNet2D
    net = network(getattr(CoDiConfig.official(), component), device="meta")
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == published


def test_blocks() -> None:
    info, tensors = fixture("unet_blocks")
    sizes = info["config"]
    res = ResBlock(64, 96, 128, 32)
    transformer = SpatialTransformer(96, 40, sizes["spatial_transformer"]["n_heads"], 32)
    text = ResBlock(64, 96, 128, 32, tokens=4)
    for name, module in (("resblock", res), ("spatial_transformer", transformer), ("fcblock", text)):
        fill(module, info["seed"], f"{name}.")
        shapes = {key.removeprefix(f"{name}."): tuple(shape) for key, shape in info["keys"] if key.startswith(f"{name}.")}
        assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == shapes
    emb = nn.functional.silu(tensors["in/emb"])
    close(res(tensors["in/resblock_x"], emb), tensors["out/resblock"], 1e-5)
    close(text(tensors["in/fcblock_x"], emb), tensors["out/fcblock"], 1e-5)
    x = tensors["in/transformer_x"]
    close(transformer(x, tensors["in/context_1_token"]), tensors["out/transformer_1_token"], 1e-5)
    close(transformer(x, transformer.fold(tensors["in/context_1_token"])), tensors["out/transformer_1_token"], 1e-5)
    close(transformer(x, tensors["in/context_3_tokens"]), tensors["out/transformer_3_tokens"], 1e-5)
    for dim in (64, 192):
        close(timestep_embedding(tensors["in/timesteps"], dim), tensors[f"out/timestep_embedding_dim{dim}"], 1e-5)


def folded(x: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B*F, C, H, W)"""
    return x.transpose(1, 2).flatten(0, 1)


def unfolded(x: Tensor, frames: int) -> Tensor:
    """(B*F, C, H, W) -> (B, C, F, H, W)"""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def test_temporal_module() -> None:
    info, tensors = fixture("temporal_block")
    module = fill(TemporalModule(info["config"]["dim"], 32), info["seed"])
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == {key: tuple(s) for key, s in info["keys"]}
    seen: dict[str, Tensor] = {}

    def watch(name: str, part: nn.Module) -> None:
        part.register_forward_hook(lambda _module, _inputs, output: seen.__setitem__(name, output))

    watch("attn_norm_bhw_t_c", module.temporal_attn.norm)
    watch("temporal_attn_bhw_t_c", module.temporal_attn)
    watch("temporal_rel_pos_bias", module.temporal_rel_pos_bias)
    watch("ff", module.ff)
    watch("frameshift_conv_out_bt_c_h_w", module.frameshiftblock.out_layers[2])

    def run(x: Tensor) -> Tensor:
        frames = x.shape[2]
        return unfolded(module(folded(x), frames, log_distances(frames, x)), frames)

    close(run(tensors["in/x"]), tensors["out/y"], 1e-5)
    seen["ff"] = unfolded(seen["ff"], tensors["in/x"].shape[2])
    assert len(seen) == 5
    for name, value in seen.items():
        close(value, tensors[f"mid/{name}"], 1e-5)
    close(run(tensors["in/x_nearly_static"]), tensors["out/y_nearly_static"], 1e-4)
    module.half()
    close(run(tensors["in/x"].half()), tensors["out/y_float16_weights_and_input"], 1e-2)


def watch_blocks(net: UNet, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Results of the input, middle and output blocks (and of the environment encoder's), in the order in which they run."""
    results: list[Tensor] = []
    run = net._run

    def recorded(*args: Any) -> Tensor:
        results.append(run(*args))
        return results[-1]

    monkeypatch.setattr(net, "_run", recorded)
    return results


@pytest.mark.parametrize("modality", ["image", "video", "audio", "text"])
def test_single_output(modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PART_OF[modality]
    _, tensors = fixture(part)
    net, x = unets()[part], tensors[f"in/x_{modality}"]
    results = watch_blocks(net, monkeypatch)
    close(net(x, tensors["in/t"], tensors["in/context"]), tensors[f"out/{modality}"])
    inputs, outputs = len(net.input_blocks), len(net.output_blocks)
    names = [f"input_blocks.{i}" for i in range(inputs)] + ["middle_block"] + [f"output_blocks.{i}" for i in range(outputs)]
    assert len(results) == len(names)
    for name, result in zip(names, results, strict=True):
        close(unfolded(result, x.shape[2]) if modality == "video" else result, tensors[f"mid/{modality}.{name}"])


@pytest.mark.parametrize("frames", [1, 6, 9])
def test_clips_of_other_lengths(frames: int) -> None:
    _, tensors = fixture("unet_video_frames")
    noise = unets()["unet_image"](tensors[f"in/x_video_{frames}f"], tensors["in/t"], tensors["in/context"])
    close(noise, tensors[f"out/video_{frames}f"])


def mixed(tensors: dict[str, Tensor], info: dict[str, Any], names: list[str]) -> Tensor:
    """The published blend of conditions: weights by condition type, divided by their sum."""
    weights = [info["mix_weight"][kind] for kind in info["condition_types"]]
    return sum(w / sum(weights) * tensors[name] for w, name in zip(weights, names, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("outputs", JOINT)
def test_joint_step(outputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info, tensors = fixture(f"joint_{outputs}")
    kinds, net = info["xtype"], joint()
    latents = {kind: tensors[f"in/x_{kind}"] for kind in kinds}
    context = mixed(tensors, info, ["in/cond0", "in/cond1"])
    close(context, tensors["mid/mixed_context"], 1e-6)

    for kind in kinds:
        part = PART_OF[kind]
        with monkeypatch.context() as patch:
            results = watch_blocks(unets()[part], patch)
            environment = unets()[part].environment_embedding(latents[kind], tensors["in/t"])
        close(environment, tensors[f"mid/h_con_{kind}"])
        assert len(results) == len(unets()[part].connecters_out) - 1
        for index, result in enumerate(results):
            ours = unfolded(result, latents[kind].shape[2]) if kind == "video" else result
            close(ours, tensors[f"mid/{part}.connecters_out.{index}"])

    connectors: dict[str, Tensor] = {}
    hooks = []
    for kind in kinds:
        for name, module in unets()[PART_OF[kind]].named_modules():
            if isinstance(module, SpatialTransformer) and "connecters_in" in name:
                key = f"mid/{PART_OF[kind]}.{name.removesuffix('.0')}"
                hooks.append(module.register_forward_hook(lambda _m, _i, output, key=key: connectors.__setitem__(key, output)))
    noise = net(latents, tensors["in/t"], context, wiring="self")
    for hook in hooks:
        hook.remove()
    for kind in kinds:
        close(noise[kind], tensors[f"out/{kind}"])
    assert len(connectors) == 3 * len(kinds)
    for key, value in connectors.items():
        clip = key.startswith("mid/unet_image") and "video" in kinds
        close(unfolded(value, latents["video"].shape[2]) if clip else value, tensors[key])

    if len(kinds) == 2:
        crossed = net(latents, tensors["in/t"], context, wiring="cross")
        for kind in kinds:
            close(crossed[kind], tensors[f"paper_swap/{kind}"])


@pytest.mark.parametrize("name", ["ddim_text", "ddim_video_audio"])
def test_ddim_trajectory(name: str) -> None:
    info, tensors = fixture(name)
    kinds, net = info["xtype"], joint()
    without, prompt = mixed(tensors, info, ["in/cond0_uncond_then_cond", "in/cond1_uncond_then_cond"]).chunk(2)
    seen: list[dict[str, Tensor]] = []
    latents = sample(
        guided(
            lambda x, t, contexts: net(x, t, contexts, wiring="self"), prompt, without, info["unconditional_guidance_scale"],
            fold=lambda contexts: net.fold_contexts(contexts, kinds),
        ),
        {kind: tensors[f"in/xT_{kind}"] for kind in kinds},
        steps=info["steps_requested"],
        callback=lambda _done, _steps, x: seen.append(x),
    )  # fmt: skip
    assert len(seen) == info["steps_run"]
    for kind in kinds:
        close(latents[kind], tensors[f"out/{kind}"], 5e-4)
        for step in (0, 5, 9):
            close(seen[step][kind], tensors[f"mid/x_after_step{step}_{kind}"], 5e-4)
    assert ddim_timesteps(info["steps_requested"]) == tensors["mid/timesteps_ascending"].tolist()


def test_schedules() -> None:
    schedules = json.loads((PARITY / "ddim_schedules.json").read_text())["schedules"]
    for steps, published in schedules.items():
        timesteps = ddim_timesteps(int(steps))
        assert timesteps == published["timesteps_ascending"] and len(timesteps) == published["actual_steps"]
        alphas, previous = ddim_alphas(timesteps)
        close(alphas, torch.tensor(published["alphas"]), 1e-6)
        close(previous, torch.tensor(published["alphas_prev"]), 1e-6)
    stored = json.loads((PARITY / "manifest.json").read_text())["schedule_samples"]
    for name, table in (("betas", betas()), ("alphas_cumprod", alphas_cumprod())):
        at = torch.tensor([stored[name][key] for key in ("first", "index500", "last")])
        close(table.float()[[0, 500, 999]], at, 1e-6)

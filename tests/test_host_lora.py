"""The host's LoRA loaders on CoDi's denoisers: Stable Diffusion 1.5's names reach the right weights, alone and in a joint MODEL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from codi.codi_models.components import COMPONENTS
from codi.codi_models.config import CoDiConfig
from codi.codi_models.denoisers.unet2d import UNet2D
from host.graph import ALIGNMENT, SAMPLING, base_graph, node, shown
from host.session import Failed
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA, STRENGTH = 2, 3.0, 0.75
SD_NAMES = {  # of a UNet with two levels, one block each, attention on the first: Stable Diffusion's name -> ours
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.0.in_layers.2",
    "down_blocks.0.attentions.0.proj_in": "input_blocks.1.1.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0": "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj": "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks.3.0.0.emb_layers.1",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v": "middle_block.1.transformer_blocks.0.attn2.to_v",
    "mid_block.resnets.1.conv2": "middle_block.2.0.out_layers.3",
    "up_blocks.0.resnets.1.conv_shortcut": "output_blocks.1.0.0.skip_connection",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": "output_blocks.3.1.transformer_blocks.0.attn2.to_k",
    "conv_out": "out.2",
}
LDM_NAMES = {  # where the keys of Stable Diffusion's own release are not ours
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks.3.0.emb_layers.1",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "up_blocks.0.resnets.1.conv_shortcut": "output_blocks.1.0.skip_connection",
}


def kohya(name: str) -> tuple[str, str, str]:
    stem = "lora_unet_" + name.replace(".", "_")
    return f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", f"{stem}.alpha"


def peft(name: str) -> tuple[str, str, str]:
    return f"unet.{name}.lora_B.weight", f"unet.{name}.lora_A.weight", f"unet.{name}.alpha"


def diffusers(name: str) -> tuple[str, str, str]:
    stem = "unet." + name.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_")
    return f"{stem}_lora.up.weight", f"{stem}_lora.down.weight", f"{stem}.alpha"


def native(name: str, key: str = "") -> tuple[str, str, str]:
    stem = f"diffusion_model.{key or SD_NAMES[name]}"
    return f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", f"{stem}.alpha"


def original(name: str) -> tuple[str, str, str]:
    return native(name, LDM_NAMES.get(name, SD_NAMES[name]))


def kohya_original(name: str) -> tuple[str, str, str]:
    return kohya(LDM_NAMES.get(name, SD_NAMES[name]))


FORMATS = {
    "kohya": (kohya, list(SD_NAMES)),
    "peft": (peft, [name for name in SD_NAMES if ".to_" not in name]),
    "diffusers": (diffusers, [name for name in SD_NAMES if ".to_" in name]),
    "native": (native, list(SD_NAMES)),
    "original": (original, list(SD_NAMES)),
    "kohya, original": (kohya_original, list(SD_NAMES)),
}


def recipe(weights: dict[str, Tensor], names: Any, form: Any, extra: int = 0) -> dict[str, Tensor]:
    """A LoRA file for the weights of these layers; `extra` widens what it was made for."""
    generator = torch.Generator().manual_seed(5)
    file: dict[str, Tensor] = {}
    for name in names:
        rows, columns, *kernel = weights[f"{SD_NAMES[name]}.weight"].shape
        up, down, alpha = form(name)
        file[up] = torch.randn(rows + extra, RANK, *[1 for _ in kernel], generator=generator) * 0.1
        file[down] = torch.randn(RANK, columns + extra, *kernel, generator=generator) * 0.1
        file[alpha] = torch.tensor(ALPHA)
    return file


def changed(weight: Tensor, file: dict[str, Tensor], keys: tuple[str, str, str]) -> Tensor:
    up, down, alpha = (file[key] for key in keys)
    product = up.flatten(1) @ down.flatten(1)
    return weight + (STRENGTH * (float(alpha) / RANK) * product).view_as(weight)


@pytest.fixture
def lora(session, base) -> Iterator[Any]:
    """`lora(file) -> name` of a LoRA in the host's folder."""
    folder = Path(base) / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    import folder_paths

    if str(folder) not in folder_paths.get_folder_paths("loras"):
        folder_paths.add_model_folder_path("loras", str(folder))
    written: list[Path] = []

    def write(file: dict[str, Tensor]) -> str:
        path = folder / f"recipe{len(written)}.safetensors"
        save_file(file, str(path))
        written.append(path)
        session.forget()  # the host remembers LoRA files by their names
        return path.name

    yield write
    for path in written:
        path.unlink()


def members(session, dtype: str = "auto") -> dict[str, Any]:
    session.run(shown(base_graph("image"), ["load", 0]))
    codi = session.value("load", 1)
    host = session.pack.nodes.host
    return {d: host.denoiser.denoiser_model(codi, d, dtype) for d in host.denoiser.DENOISERS}


def plain_weights(patcher: Any) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in patcher.model.diffusion_model.state_dict().items()}


def weights_in_use(patcher: Any) -> dict[str, Tensor]:
    import comfy.model_management as mm

    mm.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
    network = patcher.model.diffusion_model
    return {k: v.clone() for k, v in getattr(network, "vision_denoiser", network).state_dict().items()}


def load(session, kind: str, patcher: Any, name: str) -> Any:
    loader = session.classes[kind]()
    if kind == "LoraLoader":
        return loader.load_lora(patcher, None, name, STRENGTH, 0.0)[0]
    return loader.load_lora_model_only(patcher, name, STRENGTH)[0]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["LoraLoader", "LoraLoaderModelOnly"])
@pytest.mark.parametrize("joint", [False, True], ids=["alone", "joint"])
def test_every_weight_is_patched_exactly(session, lora, joint, kind, form):
    parts = members(session)
    compose = session.pack.nodes.host.compose
    patcher = compose.compose(list(parts.values())) if joint else parts["vision_denoiser"]
    before = weights_in_use(patcher)
    name_keys, names = FORMATS[form]
    file = recipe(before, names, name_keys)
    with torch.inference_mode():
        after = weights_in_use(load(session, kind, patcher, lora(file)))
        again = weights_in_use(patcher)
    expected = {f"{SD_NAMES[name]}.weight": changed(before[f"{SD_NAMES[name]}.weight"], file, name_keys(name)) for name in names}
    for key, weight in after.items():
        if key in expected:
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-7)
            assert not torch.equal(weight, before[key])
        else:
            assert torch.equal(weight, before[key]), key
        assert torch.equal(again[key], before[key]), key


def graph_of(name: str | None, when: str) -> dict:
    """Picture and sound with a LoRA on no MODEL, on the member, or on the joint MODEL."""
    graph = base_graph("image", "audio")
    for denoiser in ("vision", "audio"):
        graph[denoiser] = node("CoDiDenoiser", codi=["load", 1], denoiser=f"{denoiser}_denoiser", dtype="auto")
    graph["joint"] = node("CoDiCompose", **{"models.model0": ["audio", 0], "models.model1": ["vision", 0]}, **ALIGNMENT)
    model = ["joint", 0]
    if when == "member":
        graph["lora"] = node("LoraLoaderModelOnly", model=["vision", 0], lora_name=name, strength_model=STRENGTH)
        graph["joint"]["inputs"]["models.model1"] = ["lora", 0]
    if when == "joint":
        graph["lora"] = node("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=STRENGTH)
        model = ["lora", 0]
    links = {"model": model, "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
    graph["sample"] = node("KSampler", **links, **SAMPLING)
    return shown(graph, ["sample", 0])


def test_before_and_after_compose_are_the_same(session, lora):
    weights = plain_weights(members(session)["vision_denoiser"])
    name = lora(recipe(weights, SD_NAMES, kohya))
    results = []
    for when in ("none", "member", "joint", "none"):
        session.run(graph_of(name, when))
        results.append([part.clone() for part in session.value("sample")["samples"].unbind()])
    plain, member, joint, again = results
    assert all(torch.equal(a, b) for a, b in zip(member, joint, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert not torch.allclose(plain[0], joint[0])


@pytest.mark.parametrize("component", ["audio_denoiser", "text_denoiser"])
def test_a_joint_model_has_its_members_keys(session, lora, component):
    parts = members(session)
    compose = session.pack.nodes.host.compose
    joint = compose.compose(list(parts.values()))
    weight = parts[component].model.diffusion_model.state_dict()["time_embed.0.weight"]
    file = {
        f"diffusion_model.{component}.time_embed.0.lora_up.weight": torch.ones(weight.shape[0], 1),
        f"diffusion_model.{component}.time_embed.0.lora_down.weight": torch.ones(1, weight.shape[1]),
    }
    patched = load(session, "LoraLoaderModelOnly", joint, lora(file))
    for name, member in zip(joint.model.diffusion_model.components, patched.get_additional_models_with_key("codi"), strict=True):
        assert list(member.patches) == (["diffusion_model.time_embed.0.weight"] if name == component else [])
    merged = joint.clone()
    merged.add_patches(patched.get_key_patches("diffusion_model."), 0.5, 0.5)
    for member in merged.members().values():
        assert {k.removeprefix("diffusion_model.") for k in member.patches} == set(member.model.diffusion_model.state_dict())
    assert set(joint.model_state_dict()) == set(patched.get_key_patches())


def test_a_lora_goes_to_the_member_that_it_fits(session, lora):
    parts = members(session)
    compose = session.pack.nodes.host.compose
    joint = compose.compose(list(parts.values()))
    weight = parts["text_denoiser"].model.diffusion_model.state_dict()["input_blocks.0.0.weight"]  # (width, latent): of no other member
    file = {
        "diffusion_model.input_blocks.0.0.lora_up.weight": torch.ones(weight.shape[0], 1),
        "diffusion_model.input_blocks.0.0.lora_down.weight": torch.ones(1, weight.shape[1]),
    }
    patched = load(session, "LoraLoaderModelOnly", joint, lora(file))
    taken = {c: len(m.patches) for c, m in patched.members().items()}
    assert taken == {"vision_denoiser": 0, "text_denoiser": 1, "audio_denoiser": 0}


@pytest.mark.parametrize("joint", [False, True], ids=["alone", "joint"])
def test_a_lora_of_another_shape_says_so(session, lora, caplog, joint):
    weights = plain_weights(members(session)["vision_denoiser"])
    misfit = recipe(weights, SD_NAMES, kohya, extra=4)
    graph = base_graph("image", composed=("image", "audio") if joint else ("image",))
    graph["vision"] = node("CoDiDenoiser", codi=["load", 1], denoiser="vision_denoiser", dtype="auto")
    link = ["load", 0] if joint else ["vision", 0]
    graph["lora"] = node("LoraLoaderModelOnly", model=link, lora_name=lora(misfit), strength_model=1.0)
    with pytest.raises(Failed, match=r"made for another network.*Stable Diffusion 1\.5"):
        session.run(shown(graph, ["lora", 0]))

    half = {**misfit, **recipe(weights, ["conv_in"], kohya)}
    graph["lora"]["inputs"]["lora_name"] = lora(half)
    session.run(shown(graph, ["lora", 0]))
    assert f"{len(SD_NAMES) - 1} weights of this LoRA do not fit" in caplog.text


def test_a_lora_scheduled_on_conditioning_changes_only_its_prompt(session, lora):
    weights = plain_weights(members(session)["vision_denoiser"])
    graph = base_graph("image", "audio")
    graph["hook"] = node("CreateHookLoraModelOnly", lora_name=lora(recipe(weights, SD_NAMES, kohya)), strength_model=STRENGTH)
    graph["hooked"] = node("ConditioningSetProperties", cond_NEW=["yes", 0], strength=1.0, set_cond_area="default", hooks=["hook", 0])
    results = []
    for prompt in ("yes", "hooked", "yes"):
        links = {"model": ["load", 0], "positive": [prompt, 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
        graph["sample"] = node("KSampler", **links, **SAMPLING)
        session.run(shown(graph, ["sample", 0]))
        results.append(session.value("sample")["samples"].unbind()[0].clone())
    assert torch.equal(results[0], results[2]) and not torch.allclose(results[0], results[1])


@pytest.mark.parametrize("over", ["steps", "frames"])
def test_hooks_with_keyframes_on_a_mixture(session, lora, over):
    """A mixture whose weights change is several entries, or has prompts for frames: hooks and their keyframes hold for all of it."""
    weights = plain_weights(members(session)["vision_denoiser"])
    graph = base_graph("video", "audio")
    links = {"prompts.prompt0": ["yes", 0], "prompts.prompt1": ["no", 0]}
    curves = {"weights": "1, 0.5", "method": "linear", "keyframes": "0:1, 1:0.2\n0:0.5, 1:1", "over": over, "count": 2}
    graph["mix"] = node("CoDiConditionMixer", **links, **curves)
    graph["hook"] = node("CreateHookLora", lora_name=lora(recipe(weights, SD_NAMES, kohya)), strength_model=STRENGTH, strength_clip=0.0)
    graph["hooked"] = node("ConditioningSetProperties", cond_NEW=["mix", 0], strength=1.0, set_cond_area="default", hooks=["timed", 0])

    def made(first: float | None, second: float | None = None) -> Tensor:
        graph["timed"] = node("SetHookKeyframes", hooks=["hook", 0])
        for number, value in enumerate((first, second)):
            if value is not None:
                key = {"prev_hook_kf": ["key0", 0]} if number else {}
                graph[f"key{number}"] = node("CreateHookKeyframe", strength_mult=value, start_percent=0.5 * number, **key)
                graph["timed"]["inputs"]["hook_kf"] = [f"key{number}", 0]
        prompt = "mix" if first is None else "hooked"
        links = {"model": ["load", 0], "positive": [prompt, 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
        graph["sample"] = node("KSampler", **links, **{**SAMPLING, "steps": 4})
        session.run(shown(graph, ["sample", 0]))
        return session.value("sample")["samples"].unbind()[0].clone()

    plain, whole, nothing, late = made(None), made(1.0), made(0.0), made(0.0, 1.0)

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().mean() / a.std())

    # With hooks the host asks for prompt and negative prompt one by one: rounding differs, and the tiny network makes much of it.
    assert apart(plain, nothing) < 0.01 < apart(plain, whole)
    assert apart(late, whole) > 0.01 and apart(late, plain) > 0.01
    assert torch.isfinite(late).all() and torch.equal(made(None), plain)


def test_all_of_stable_diffusion_is_in_the_published_network(session):
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_detection import detect_unet_config

    theirs = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4],
        num_heads=8, context_dim=768, use_spatial_transformer=True, transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1, device="meta",
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    config = CoDiConfig.official().vision_denoiser
    ours = {f"diffusion_model.{k}": v for k, v in UNet2D(config, device="meta").state_dict().items()}
    lora_names = session.pack.nodes.host.lora
    for key, value in theirs.state_dict().items():
        own = lora_names.own_key(f"diffusion_model.{key}", ours)
        assert own is not None and ours[own].shape == value.shape, key
    detected = detect_unet_config({f"model.diffusion_model.{k}": v for k, v in theirs.state_dict().items()}, "model.diffusion_model.")
    made = lora_names.key_map_config(session.pack.codi_models.config.CoDiConfig.official().vision_denoiser)  # the class that the host sees
    assert made and {k: detected[k] for k in made} == made

    from comfy.lora import model_lora_keys_unet

    def names(weights: dict[str, Tensor], settings: dict) -> dict[str, str]:
        model = SimpleNamespace(state_dict=lambda: weights, model_config=SimpleNamespace(unet_config=settings))
        return model_lora_keys_unet(model, {})

    sd = {f"diffusion_model.{k}": v for k, v in theirs.state_dict().items()}
    known, wanted = names(lora_names.with_other_names(ours), made), names(sd, detected)
    assert len(wanted) > 2000
    for name, key in wanted.items():
        if key in sd:  # the host counts one downsampler and one upsampler too many
            assert lora_names.own_key(known[name], ours) == lora_names.own_key(key, ours), name


@pytest.mark.parametrize("component", ["vision_denoiser", "audio_denoiser"])
def test_other_names_are_no_other_weights(session, component):
    patcher = members(session)[component]
    network = patcher.model.diffusion_model
    weights = {f"diffusion_model.{k}" for k in network.state_dict()}
    assert patcher.clone().model_size() == sum(t.nbytes for t in network.state_dict().values())
    assert set(patcher.model_state_dict("diffusion_model.")) == set(patcher.get_key_patches("diffusion_model.")) == weights
    assert (len(patcher.model.state_dict()) > len(patcher.model_state_dict())) == (component == "vision_denoiser")
    with torch.inference_mode():
        saved = getattr(patcher, "state_dict_for_saving", patcher.model.state_dict_for_saving)()  # newer hosts ask the patcher
    assert set(saved) == {COMPONENTS[component].published_prefix + k for k in network.state_dict()}

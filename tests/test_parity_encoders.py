"""The prompt encoders give the official network's numbers, and at full size have its state-dict keys and shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from codi.codi_models.config import CLAPConfig, CLIPConfig, CoDiConfig
from codi.codi_models.encoders import DERIVED_KEYS, preprocess
from codi.codi_models.encoders.clap import CLAPEncoder
from codi.codi_models.encoders.clip import CLIPEncoder
from codi.codi_models.encoders.htsat import HTSAT
from codi.codi_models.parity.recipe import fill
from safetensors.torch import load_file
from torch import Tensor

PARITY = Path(__file__).parent / "parity"


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def fixture(name: str) -> tuple[dict, dict[str, Tensor]]:
    return json.loads((PARITY / f"{name}.json").read_text()), load_file(PARITY / f"{name}.safetensors")


def filled(module: torch.nn.Module, info: dict) -> torch.nn.Module:
    """The module with recipe weights, after checking that its keys are the fixture's."""
    theirs = {key: tuple(shape) for key, shape in info["keys"] if not key.endswith((*DERIVED_KEYS, "num_batches_tracked"))}
    ours = {key: tuple(v.shape) for key, v in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert ours == theirs
    return fill(module, info["seed"]).eval()


@pytest.fixture(scope="module")
def clip() -> tuple[CLIPEncoder, dict[str, Tensor]]:
    info, tensors = fixture("clip")
    text, vision = info["config"]["text_config"], info["config"]["vision_config"]
    config = CLIPConfig(
        projection_dim=info["config"]["projection_dim"], vocab_size=text["vocab_size"], text_dim=text["hidden_size"],
        text_layers=text["num_hidden_layers"], text_heads=text["num_attention_heads"], text_mlp=text["intermediate_size"],
        text_positions=text["max_position_embeddings"], vision_dim=vision["hidden_size"], vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"], vision_mlp=vision["intermediate_size"], image_size=vision["image_size"],
        patch_size=vision["patch_size"],
    )  # fmt: skip
    return filled(CLIPEncoder(config), info).requires_grad_(False), tensors


def test_clip_text_and_image(clip):
    network, t = clip
    assert distance(network.encode_text(t["in/token_ids"]), t["out/text_embedding"]) < 1e-5
    assert distance(network.encode_image(t["in/pixels"]), t["out/image_embedding"]) < 1e-5


def test_clip_video_and_every_temporal_module(clip):
    network, t = clip
    seen = {}
    for i, layer in enumerate(network.vision_model.encoder.layers):
        layer.register_forward_hook(lambda _m, _a, out, i=i: seen.update({f"mid/video.layers.{i}": out}))
        layer.temporal_self_attn.register_forward_hook(
            lambda _m, _a, out, i=i: seen.update({f"mid/video.layers.{i}.temporal_self_attn": out})
        )
    video = t["in/video_pixels_b_f_c_h_w"]
    assert distance(network.encode_video(video), t["out/video_embedding"]) < 1e-4
    assert len(seen) == 6
    for name, value in seen.items():
        assert distance(value.view(t[name].shape), t[name]) < 1e-4, name
    assert distance(network.encode_video(video[:, :3]), t["out/video_first3frames_embedding"]) < 1e-4
    assert distance(network.encode_video(video[:, :1], still_as_image=False), t["out/video_1frame_embedding"]) < 1e-4
    assert torch.equal(network.encode_video(video[:, :1]), network.encode_image(video[:, 0]))


def test_clap_small_front_end_stages_and_embedding():
    info, t = fixture("clap_htsat_small")
    c = info["config"]
    config = CLAPConfig(
        embed_dim=c["embed_dim"], depths=tuple(c["depths"]), num_heads=tuple(c["num_heads"]), spec_size=c["spec_size"],
        num_classes=c["num_classes"], window_size=c["window_size"], n_mels=c["mel_bins"], n_fft=c["window"], hop_length=c["hop"],
        sample_rate=c["sample_rate"], f_min=c["fmin"], f_max=c["fmax"],
    )  # fmt: skip
    network = filled(HTSAT(config), info).requires_grad_(False)
    waveform = preprocess.resample(t["in/waveform_16k"], 16000, 48000)
    assert distance(waveform[:, :4000], t["mid/waveform_48k_first_4000"]) < 1e-5
    waveform = preprocess.repeat_pad(waveform, info["info"]["samples_after_repeatpad"])
    assert distance(waveform[:, -2000:], t["mid/waveform_48k_last_2000"]) < 1e-5
    assert (network.mel(waveform) - t["mid/logmel_power_db"][:, 0]).abs().max() < 1e-3  # decibels
    seen = {}
    network.patch_embed.register_forward_hook(lambda _m, args, out: seen.update(image=args[0], patches=out))
    network.layers[0].register_forward_hook(lambda _m, _a, out: seen.update(stage=out))
    network.norm.register_forward_hook(lambda _m, _a, out: seen.update(norm=out))
    assert distance(network(waveform), t["out/embedding"]) < 1e-4
    assert distance(seen["image"][:, :, ::4, ::4], t["mid/spectrogram_image_every4"]) < 1e-4
    assert distance(seen["patches"].flatten(1, 2)[:, ::16], t["mid/patch_embed_every16"]) < 1e-4
    assert distance(seen["stage"].flatten(1, 2)[:, ::8], t["mid/layers.0_every8"]) < 1e-4
    assert distance(seen["norm"].flatten(1, 2), t["mid/norm"]) < 1e-4


def test_clap_tiny_from_16_khz_sound_to_embedding():
    info, t = fixture("clap_tiny")
    c = info["config"]
    config = CLAPConfig(
        embed_dim=c["embed_dim"], depths=tuple(c["depths"]), num_heads=tuple(c["num_heads"]), num_classes=c["class_num"],
        projection_dim=c["joint_embed_shape"], hidden_dim=c["joint_embed_shape"],
    )  # fmt: skip
    network = filled(CLAPEncoder(config), info).requires_grad_(False)
    assert distance(preprocess.encode_sound(network, t["in/waveform_16k"], 16000), t["out/embedding"]) < 1e-4
    assert distance(preprocess.encode_sound(network, torch.zeros(1, 16000), 16000), t["out/embedding_of_silence"]) < 1e-4
    assert distance(preprocess.encode_sound(network, t["in/waveform_10s_16k"], 16000), t["out/embedding_exact_10s"]) < 1e-4


def test_clip_pixels():
    _, t = fixture("clip_preprocess")
    step = 1 / 255 / min(preprocess.STD)  # one 8-bit level
    square = preprocess.clip_image(t["in/image_minus1_1_sq"] / 2 + 0.5, 224) - t["out/pixels_sq"]
    assert square.abs().max() < 1.01 * step and (square.abs() > 1e-5).float().mean() < 1e-3
    axis = torch.linspace(0, 1, 512)
    waves = torch.stack([0.9 * torch.sin(7 * axis + i)[None] * torch.cos(5 * axis * (i + 1))[:, None] for i in range(3)])[None]
    real = preprocess.clip_image(waves / 2 + 0.5, 224)[..., ::8, ::8] - t["out/pixels_real_every8"]
    assert real.abs().max() < 1.01 * step and (real.abs() > 1e-5).float().mean() < 5e-3
    grey = preprocess.clip_image(torch.full((1, 3, 8, 8), 0.5), 224)
    assert torch.allclose(grey, t["out/pixels_uncond_constant_per_channel"].view(1, 3, 1, 1).expand_as(grey), atol=1e-5)


def test_pictures_and_clips_at_the_working_size():
    _, t = fixture("vision_preprocess")
    picture = preprocess.resize_picture(t["in/image_uint8_h_w_c"].permute(2, 0, 1)[None].float() / 255, 64)[0] * 2 - 1
    assert torch.allclose(picture, t["out/image_not_flipped"], atol=1e-5)
    frames = t["in/video_uint8_f_h_w_c"].permute(0, 3, 1, 2).float() / 255
    for antialias, name in ((False, "off"), (True, "on")):
        theirs = t[f"out/video_antialias_{name}"].transpose(0, 1)  # (F, 3, 32, 32)
        error = (preprocess.resize_clip(frames, 32, antialias=antialias) * 2 - 1 - theirs).abs()
        assert error.max() < 1e-5


@pytest.mark.parametrize(("prefix", "part"), [("clip.model.", "clip"), ("clap.", "clap")])
def test_official_size_has_the_published_keys(prefix, part):
    published = json.loads((PARITY / "manifest.json").read_text())["keys"]
    theirs = {k: v["shape"] for k, v in published.items() if k.startswith(prefix) and not k.endswith(DERIVED_KEYS)}
    network = {"clip": CLIPEncoder, "clap": CLAPEncoder}[part](getattr(CoDiConfig.official(), part), device="meta")
    ours = {prefix + k: list(v.shape) for k, v in network.state_dict().items()}
    assert len(ours) > 200 and ours == theirs

"""The autoencoders, the mel front end and the vocoder give the published network's numbers on synthetic weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from codi.codi_models.autoencoders.mel import LogMel, mel_bank
from codi.codi_models.autoencoders.optimus import DERIVED_KEYS, TextAutoencoder
from codi.codi_models.autoencoders.picture import PictureAutoencoder
from codi.codi_models.autoencoders.sound import SoundAutoencoder
from codi.codi_models.autoencoders.vocoder import Vocoder
from codi.codi_models.config import AutoencoderConfig, CoDiConfig, MelConfig, OptimusConfig, VocoderConfig
from codi.codi_models.parity.recipe import fill
from safetensors.torch import load_file
from torch import Tensor, nn

PARITY = Path(__file__).parent / "parity"
RELATIVE = 1e-4
MEL_ABSOLUTE = 1e-3


def fixture(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((PARITY / f"{name}.json").read_text()), load_file(PARITY / f"{name}.safetensors")


def filled(module: nn.Module, info: dict[str, Any]) -> nn.Module:
    """The module with recipe weights, after checking that it has exactly the published keys and shapes."""
    expected = {key: tuple(shape) for key, shape in info["keys"] if not key.startswith("fn_STFT.")}
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == expected
    return fill(module, info["seed"]).eval().requires_grad_(False)


def close(ours: Tensor, published: Tensor, relative: float = RELATIVE) -> None:
    assert ours.shape == published.shape
    assert ((ours - published).abs().max() / published.abs().max()).item() <= relative


def kl_config(info: dict[str, Any]) -> AutoencoderConfig:
    dd = info["config"]["ddconfig"]
    return AutoencoderConfig(
        in_channels=dd["in_channels"],
        latent_channels=info["config"]["embed_dim"],
        model_channels=dd["ch"],
        channel_mult=tuple(dd["ch_mult"]),
        num_blocks=dd["num_res_blocks"],
        scale=1.0,
    )


def test_picture_autoencoder() -> None:
    info, data = fixture("autokl")
    net = filled(PictureAutoencoder(kl_config(info)), info)
    for kind in ("image", "video"):
        mean, logvar = net.moments(data[f"in/{kind}"])
        close(mean, data[f"out/mean_{kind}"])
        close(logvar, data[f"out/logvar_{kind}"])
        close(net.encode(data[f"in/{kind}"]), data[f"out/mean_{kind}"])
        close(net.decode(data[f"in/z_{kind}"]), data[f"out/decoded_{kind}"])


def test_picture_autoencoder_layers() -> None:
    info, data = fixture("autokl")
    net = filled(PictureAutoencoder(kl_config(info)), info)
    seen: dict[str, Tensor] = {}
    for name in ("encoder", "encoder.down.0.downsample", "encoder.mid.attn_1", "decoder.mid.attn_1", "decoder.up.1.upsample"):
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    net.encode(data["in/image"])
    net.decode(data["in/z_image"])
    for name, out in seen.items():
        close(out, data[f"mid/{name}"])
    assert len(seen) == 5


def test_sound_autoencoder() -> None:
    info, data = fixture("audioldm_vae")
    net = filled(SoundAutoencoder(kl_config(info), MelConfig()), info)
    mean, logvar = net.moments(data["in/waveform"], frames=info["target_frames"])
    close(mean, data["out/mean"])
    close(logvar, data["out/logvar"])
    close(net.encode(data["out/mel"]), data["out/mean"])
    close(net.decode(data["in/z"]), data["out/decoded_mel"])


def test_mel_front_end() -> None:
    info, data = fixture("mel_frontend")
    mel = LogMel(MelConfig())
    frames = info["target_frames"]
    torch.testing.assert_close(mel_bank(mel.config), data["mid/mel_basis"], atol=1e-6, rtol=0)
    silence = torch.zeros(1, 32000)
    for wave, name in ((data["in/waveform_short"], "mel_short"), (data["in/waveform_long"], "mel_long"), (silence, "mel_of_silence")):
        torch.testing.assert_close(mel(wave, frames=frames), data[f"out/{name}"], atol=MEL_ABSOLUTE, rtol=0)
    _, sound = fixture("audioldm_vae")
    torch.testing.assert_close(mel(sound["in/waveform"], frames=51), sound["out/mel"], atol=MEL_ABSOLUTE, rtol=0)


def test_vocoder() -> None:
    info, data = fixture("hifigan")
    cfg = info["config"]
    net = filled(Vocoder(VocoderConfig(initial_channels=cfg["upsample_initial_channel"])), info)
    logmel = data["in/mel"].transpose(1, 2)
    close(net(logmel, trim=False)[:, None], data["out/waveform"])
    trimmed = net(logmel)
    assert trimmed.shape == (2, logmel.shape[1] * cfg["hop_size"])
    close(trimmed, data["out/waveform"][:, 0, : trimmed.shape[1]])


def optimus() -> tuple[TextAutoencoder, dict[str, Tensor]]:
    info, data = fixture("optimus")
    bert, gpt = info["config"]["encoder"]["config"], info["config"]["decoder"]["config"]
    config = OptimusConfig(
        latent_dim=gpt["latent_size"],
        encoder_vocab=bert["vocab_size"],
        encoder_dim=bert["hidden_size"],
        encoder_layers=bert["num_hidden_layers"],
        encoder_heads=bert["num_attention_heads"],
        encoder_mlp=bert["intermediate_size"],
        encoder_positions=bert["max_position_embeddings"],
        decoder_vocab=gpt["vocab_size"],
        decoder_dim=gpt["n_embd"],
        decoder_layers=gpt["n_layer"],
        decoder_heads=gpt["n_head"],
        decoder_positions=gpt["n_positions"],
    )
    return filled(TextAutoencoder(config), info), data  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["full", "padded"])
def test_text_encoder(kind: str) -> None:
    net, data = optimus()
    ids = data[f"in/bert_ids_{kind}"]
    mean, logvar = net.moments(ids)
    close(mean, data[f"out/z_mean_{kind}"])
    close(logvar, data[f"out/z_logvar_half_{kind}"])
    close(net.encoder.hidden(ids), data[f"mid/sequence_{kind}"])


def test_text_decoder() -> None:
    net, data = optimus()
    z, ids = data["in/z"], data["in/gpt_ids"]
    close(net.logits(z, ids), data["out/logits"])
    memories = torch.cat([m[:, 0] for m in net.decoder.transformer.memories(z)], dim=1)
    close(memories, data["mid/decoder.linear"])


def test_greedy_text() -> None:
    net, data = optimus()
    published = data["out/greedy_ids_from_3_z0"][0].tolist()
    never = net.config.decoder_vocab  # an id that no token has: nothing ends early
    ids = net.generate(data["in/z"][:1], temperature=0, bos=3, eos=never, max_tokens=len(published) + 1)
    assert ids == [[*published, never]]


@pytest.mark.parametrize("component", ["autokl", "audioldm", "vocoder", "optimus"])
def test_official_size_has_the_published_keys(component: str) -> None:
    config = CoDiConfig.official()
    prefix, net = {
        "autokl": ("autokl.", PictureAutoencoder(config.picture_autoencoder, device="meta")),
        "audioldm": ("audioldm.", SoundAutoencoder(config.sound_autoencoder, config.mel, device="meta")),
        "vocoder": ("audioldm.vocoder.", Vocoder(config.vocoder, device="meta")),
        "optimus": ("optimus.", TextAutoencoder(config.text_autoencoder, device="meta")),
    }[component]
    manifest = json.loads((PARITY / "manifest.json").read_text())["keys"]
    published = {key.removeprefix(prefix): tuple(entry["shape"]) for key, entry in manifest.items() if key.startswith(prefix)}
    if component == "audioldm":
        published = {key: shape for key, shape in published.items() if not key.startswith(("vocoder.", "fn_STFT."))}
    published = {key: shape for key, shape in published.items() if not key.endswith(DERIVED_KEYS)}
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == published

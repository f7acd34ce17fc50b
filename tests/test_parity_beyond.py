"""What our networks add to the published ones gives the published numbers too: short cuts, trims and other ways in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from codi.codi_models.autoencoders.audio import AudioAutoencoder
from codi.codi_models.autoencoders.image import ImageAutoencoder
from codi.codi_models.autoencoders.vocoder import Vocoder
from codi.codi_models.config import MelConfig
from codi.codi_models.denoisers.layers import SpatialTransformer, timestep_embedding
from codi.codi_models.encoders.clip import CLIPEncoder
from codi.codi_models.parity.check import difference
from codi.codi_models.parity.configs import autoencoder_config, clip_config, vocoder_config
from codi.codi_models.parity.fixture import Fixture, read_fixture
from codi.codi_models.parity.recipe import fill
from codi.codi_models.parity.vocabulary import gpt2_pieces

PARITY = Path(__file__).parent / "parity"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def config_of(name: str) -> tuple[Fixture, dict]:
    fixture = read_fixture(PARITY, name)
    return fixture, fixture.info["config"]


def test_folded_prompt_branch():
    fixture, config = config_of("unet_blocks")
    c = config["spatial_transformer"]
    transformer = SpatialTransformer(c["in_channels"], c["context_dim"], c["n_heads"], 32)
    fill(transformer, fixture.seed, "spatial_transformer.")
    branch = transformer.fold(fixture["in/context_1_token"])
    assert difference(transformer(fixture["in/transformer_x"], branch), fixture["out/transformer_1_token"]) < 1e-5


def test_timestep_embedding_is_exact_in_every_frequency():
    fixture, _ = config_of("unet_blocks")
    for dim in (64, 192):
        assert difference(timestep_embedding(fixture["in/timesteps"], dim), fixture[f"out/timestep_embedding_dim{dim}"]) < 3e-7


def test_latents_are_posterior_means():
    fixture, config = config_of("autokl")
    net = fill(ImageAutoencoder(autoencoder_config(config)), fixture.seed)
    assert difference(net.encode(fixture["in/video"]), fixture["out/mean_video"]) < 1e-4
    fixture, config = config_of("audioldm_vae")
    net = fill(AudioAutoencoder(autoencoder_config(config), MelConfig()), fixture.seed)
    assert difference(net.encode(fixture["out/mel"]), fixture["out/mean"]) < 1e-4


def test_waveforms_are_trimmed_to_whole_frames():
    fixture, config = config_of("hifigan")
    logmel = fixture["in/mel"].transpose(1, 2)
    trimmed = fill(Vocoder(vocoder_config(config)), fixture.seed)(logmel)
    assert trimmed.shape == (2, logmel.shape[1] * config["hop_size"])
    assert difference(trimmed, fixture["out/waveform"][:, 0, : trimmed.shape[1]]) < 1e-4


def test_a_clip_of_one_frame_is_a_picture():
    fixture, config = config_of("clip")
    net = fill(CLIPEncoder(clip_config(config)), fixture.seed)
    video = fixture["in/video_pixels_b_f_c_h_w"]
    assert torch.equal(net.encode_video(video[:, :1]), net.encode_image(video[:, 0]))


def test_strings_are_cut_into_one_piece_an_id():
    cases = json.loads((PARITY / "text_io.json").read_text())["gpt2_decode"]
    pieces = gpt2_pieces(cases, 50257)
    assert (pieces[257], pieces[582], pieces[319], pieces[837]) == (b" a", b" man", b" on", b" ,")
    twice = [{"ids": [1, 2, 1, 3], "decoded_raw": " ab ba abc"}, {"ids": [3, 3], "decoded_raw": "cc"}]
    assert gpt2_pieces(twice, 9) == {1: b" ab", 2: b" ba", 3: b"c"}
    split = [{"ids": [4, 5], "decoded_raw": "é"}]  # one character in two pieces
    assert gpt2_pieces(split, 9) == {4: b"\xc3", 5: b"\xa9"}

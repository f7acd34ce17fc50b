"""The prompt encoders at codi-mini's size: prompts of any size and kind, training, tokenizer, preprocessing."""

from __future__ import annotations

import dataclasses
import gzip

import numpy as np
import pytest
import torch
from codi.codi_models.checkpoints import load_weights, save_weights
from codi.codi_models.config import CLIPConfig
from codi.codi_models.encoders.clap import CLAPEncoder
from codi.codi_models.encoders.clip import CLIPEncoder, library_config
from codi.codi_models.encoders.preprocess import (
    clip_image,
    clip_normalize,
    clip_video,
    resize_image,
    spread,
)
from codi.codi_models.encoders.tokenizer import VOCABULARY_FILE, CLIPTokenizer, build_clip_vocabulary, encode_prompts
from codi.codi_models.errors import CoDiError
from safetensors import safe_open
from small import small_config

MINI = small_config()
CAPTIONS = [
    f"a {colour} {shape} bounces {beats}"
    for colour in ("red", "green", "blue") for shape in ("circle", "square", "star") for beats in ("once", "twice", "three times")
]  # fmt: skip
TRICKY = [
    *CAPTIONS[:3], "", "It's 12 o'clock -- DON'T stop!!", "naïve café – 日本語 🎈 a_b__c", "x &amp; y &lt;b&gt;",
    "  spaced \n out\t", "…x", "it\u2019s \u201cquoted\u201d",
]  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return CLIPEncoder(MINI.clip).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clap():
    torch.manual_seed(0)
    return CLAPEncoder(MINI.clap).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    build_clip_vocabulary(CAPTIONS, folder, MINI.clip.vocab_size)
    return CLIPTokenizer(folder, MINI.clip)


def unit(embedding, batch):
    assert embedding.shape == (batch, 1, MINI.clip.projection_dim)
    assert torch.allclose(embedding.norm(dim=-1), torch.ones(batch, 1), atol=1e-5)
    return embedding


def test_every_used_weight_gets_a_finite_gradient(tokenizer):
    clip, clap = CLIPEncoder(MINI.clip), CLAPEncoder(MINI.clap)
    for layer in clip.vision_model.encoder.layers:  # off the identity that fresh temporal modules are
        torch.nn.init.normal_(layer.temporal_self_attn.temporal_attn.to_out.weight, std=0.1)
        torch.nn.init.normal_(layer.temporal_self_attn.ff.proj_out[1].weight, std=0.1)
    text = clip.encode_text(tokenizer(CAPTIONS[:2]))
    others = [
        clip.encode_image(torch.randn(2, 3, 64, 64)),
        clip.encode_video(torch.randn(2, 4, 3, 64, 64)),
        clap.encode_audio(torch.randn(2, clap.clip_samples) * 0.1),
    ]
    loss = sum((clip.logit_scale.exp() * text[:, 0] @ other[:, 0].T).logsumexp(dim=-1).sum() for other in others)
    loss.backward()
    dead = {"pos_embeds", "frame_rate_embeds", "unread"}  # stored but never read, as published
    for name, parameter in [*clip.named_parameters(), *clap.named_parameters()]:
        if dead & set(name.split(".")):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_fresh_temporal_modules_are_an_identity(clip):
    tower, frames = clip.vision_model, torch.randn(2, 5, 3, 64, 64)
    tokens = tower.encoder.layers[0](tower.pre_layrnorm(tower.embeddings(frames.flatten(0, 1))), 5)
    assert torch.allclose(tokens, tower.encoder.layers[0](tower.pre_layrnorm(tower.embeddings(frames.flatten(0, 1))), None), atol=1e-5)
    still = frames[:, :1].expand(-1, 5, -1, -1, -1)
    assert torch.allclose(clip.encode_video(still), clip.encode_image(frames[:, 0]), atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(clip, clap, tokenizer):
    sound, video = torch.randn(3, clap.clip_samples) * 0.1, torch.rand(3, 8, 3, 64, 64)
    assert torch.allclose(clap.encode_audio(sound)[1:2], clap.encode_audio(sound[1:2]), atol=1e-5)
    assert torch.allclose(clip.encode_video(video)[1:2], clip.encode_video(video[1:2]), atol=1e-5)
    assert torch.allclose(clip.encode_text(tokenizer(CAPTIONS))[4:5], clip.encode_text(tokenizer(CAPTIONS[4:5])), atol=1e-5)


def test_tables_made_in_inference_mode_serve_training():
    config = dataclasses.replace(MINI.clap, f_max=7900.0, window_size=4)  # tables that no other test has made
    network = CLAPEncoder(config)
    with torch.inference_mode():
        network.encode_audio(torch.zeros(1, network.clip_samples))
    network.encode_audio(torch.randn(1, network.clip_samples)).sum().backward()


def test_encoders_run_in_half_precision_and_autocast():
    sound, video = torch.randn(1, 20480) * 0.1, torch.rand(1, 4, 3, 64, 64)
    clip, clap = CLIPEncoder(MINI.clip, dtype=torch.bfloat16).eval(), CLAPEncoder(MINI.clap, dtype=torch.bfloat16).eval()
    for embedding in (clip.encode_video(video), clap.encode_audio(sound)):
        assert embedding.dtype == torch.bfloat16 and embedding.isfinite().all()
    clip, clap = CLIPEncoder(MINI.clip).eval(), CLAPEncoder(MINI.clap).eval()
    for encode, value in ((clip.encode_video, video), (clap.encode_audio, sound)):
        with torch.autocast("cpu", torch.bfloat16):
            half = encode(value)
        assert torch.nn.functional.cosine_similarity(half.float(), encode(value), dim=-1).min() > 0.99


@pytest.mark.parametrize("make", [lambda **k: CLIPEncoder(MINI.clip, **k), lambda **k: CLAPEncoder(MINI.clap, **k)], ids=["clip", "clap"])
def test_weights_have_the_published_names_in_files(make, tmp_path):
    torch.manual_seed(1)
    net, again = make(), make(dtype=torch.float64)
    save_weights(net, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert not any("network" in key or "attention.self" in key for key in file.keys())
    load_weights(again, tmp_path / "w.safetensors")
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key].to(value.dtype)), key


def test_the_library_runs_our_weights(clip, tokenizer):
    import transformers

    library = transformers.CLIPModel(library_config(MINI.clip)).eval()
    missing, unexpected = library.load_state_dict(clip.state_dict(), strict=False)
    assert not missing and all("temporal_self_attn" in key for key in unexpected)
    ids, pixels = tokenizer(CAPTIONS[:2]), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        out = library(input_ids=ids, pixel_values=pixels)
    assert torch.allclose(out.text_embeds, clip.encode_text(ids)[:, 0], atol=1e-5)
    assert torch.allclose(out.image_embeds, clip.encode_image(pixels)[:, 0], atol=1e-5)


# Text


def test_tokenizer_agrees_with_the_reference(tokenizer, tmp_path):
    reference = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer
    build_clip_vocabulary(CAPTIONS, tmp_path, MINI.clip.vocab_size)
    for ours, theirs in (
        (tokenizer, reference(bpe_path=str(tmp_path / VOCABULARY_FILE))),
        (CLIPTokenizer(None, CLIPConfig()), reference()),
    ):
        assert (ours.start, ours.end) == (theirs.sot_token_id, theirs.eot_token_id)
        for text in TRICKY:
            assert ours.encode(text) == theirs.encode(text), text


def test_ids_are_padded_with_the_end_token(tokenizer):
    ids = tokenizer(["", CAPTIONS[0], "word " * 100])
    assert ids.shape == (3, MINI.clip.text_positions) and ids.dtype == torch.long
    assert ids[0].tolist() == [tokenizer.start] + [tokenizer.end] * (MINI.clip.text_positions - 1)
    assert (ids[:, 0] == tokenizer.start).all() and (ids[:, -1] == tokenizer.end).all()
    assert (ids < MINI.clip.vocab_size).all()


@pytest.mark.parametrize("text", ["", "red circle", "a red circle bounces twice " * 2000, "z" * 5000, "é" * 700, "\ud800 \0 x"])
def test_windows_hold_every_token_in_order(tokenizer, text):
    rows = tokenizer.windows(text)
    assert all(len(row) == tokenizer.length and row[0] == tokenizer.start and row[-1] == tokenizer.end for row in rows)
    assert [i for row in rows for i in row if i not in (tokenizer.start, tokenizer.end)] == tokenizer.encode(text)


def test_long_prompts_use_all_their_words(clip, tokenizer):
    long = "a red circle bounces twice " * 2000  # 10,000 words
    both = unit(encode_prompts(clip, tokenizer, [long, "", CAPTIONS[0], long + "blue star"]), 4)
    assert torch.allclose(both[1], clip.encode_text(tokenizer([""]))[0], atol=1e-5)
    assert torch.allclose(both[2], clip.encode_text(tokenizer(CAPTIONS[:1]))[0], atol=1e-5)
    assert not torch.equal(both[0], both[3])
    assert torch.allclose(both[:1], encode_prompts(clip, tokenizer, [long]), atol=1e-5)


def test_vocabulary_has_exactly_the_asked_size_and_compresses(tmp_path):
    for captions in (CAPTIONS, ["a"]):
        path = build_clip_vocabulary(captions, tmp_path, 640)
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
        assert len(lines) == 1 + 640 - 514 and len(set(lines)) == len(lines)
    build_clip_vocabulary(CAPTIONS, tmp_path, 640)
    first = (tmp_path / VOCABULARY_FILE).read_bytes()
    assert max(len(CLIPTokenizer(tmp_path, MINI.clip).encode(c)) for c in CAPTIONS) <= 7  # about a token a word
    build_clip_vocabulary(CAPTIONS, tmp_path, 640)
    assert (tmp_path / VOCABULARY_FILE).read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [VOCABULARY_FILE]


def test_unusable_vocabularies_are_named(tmp_path):
    with pytest.raises(CoDiError, match="clip_bpe.txt.gz is missing.*640"):
        CLIPTokenizer(tmp_path, MINI.clip)
    (tmp_path / VOCABULARY_FILE).write_bytes(b"not gzip")
    with pytest.raises(CoDiError, match="not a readable gzipped"):
        CLIPTokenizer(tmp_path, MINI.clip)
    whole = build_clip_vocabulary(CAPTIONS, tmp_path, 640).read_bytes()
    (tmp_path / VOCABULARY_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CoDiError, match="not a readable gzipped"):
        CLIPTokenizer(tmp_path, MINI.clip)
    build_clip_vocabulary(CAPTIONS, tmp_path, 600)
    with pytest.raises(CoDiError, match="86 merges.*needs 126"):
        CLIPTokenizer(tmp_path, MINI.clip)


# Pictures and clips


def encode_images(clip, pixels):
    return clip.encode_image(clip_image(pixels, clip.config.image_size))


def encode_clips(clip, frames):
    return clip.encode_video(clip_video(frames, clip.config.image_size))


def test_pixels_that_fit_are_only_normalised():
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(clip_image(pixels, 64), clip_normalize(pixels))
    assert torch.equal(clip_image(pixels, 64, working_size=64), clip_normalize(pixels))


@pytest.mark.parametrize(("height", "width"), [(100, 160), (161, 97), (40, 64), (64, 300), (500, 33)])
def test_resizing_equals_resize_then_crop(height, width):
    from PIL import Image

    pixels = torch.nn.functional.interpolate(torch.rand(1, 3, height // 8 + 2, width // 8 + 2), (height, width), mode="bilinear")
    short = min(height, width)
    full = (64 * width // short, 64 * height // short)
    picture = Image.fromarray((pixels[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy()).resize(full, Image.Resampling.BICUBIC)
    left, top = (full[0] - 64) // 2, (full[1] - 64) // 2
    expected = np.asarray(picture.crop((left, top, left + 64, top + 64)), dtype=np.float32)
    error = np.abs(resize_image(pixels, 64)[0].permute(1, 2, 0).numpy() * 255 - expected)
    assert error.max() < 2.01 and error.mean() < 0.2  # Pillow rounds after each axis, and may begin with the other one


def test_pictures_of_any_size_channels_and_range(clip):
    grey = torch.rand(2, 1, 30, 50)
    assert torch.allclose(encode_images(clip, grey), encode_images(clip, grey.repeat(1, 3, 1, 1)))
    rgba = torch.rand(1, 4, 64, 64)
    assert torch.equal(encode_images(clip, rgba), encode_images(clip, rgba[:, :3]))
    unit(encode_images(clip, torch.rand(1, 3, 1, 20000) * 3 - 1), 1)


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 100])
def test_clips_of_any_length(clip, frames):
    clips = torch.rand(2, frames, 3, 64, 64)
    embedding = unit(encode_clips(clip, clips), 2)
    assert embedding.isfinite().all()
    if frames == 1:
        assert torch.allclose(embedding, encode_images(clip, clips[:, 0]))


def test_a_clip_through_the_working_size(clip):
    """A clip whose frames are all alike gives, frame by frame, the pixels of its picture."""
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), (90, 120), mode="bilinear")
    video = clip_video(picture[None].repeat(1, 3, 1, 1, 1), 64, working_size=48)
    assert video.shape == (1, 3, 3, 64, 64) and torch.equal(video[:, 0], video[:, 2])
    assert (video[:, 0] - clip_image(picture, 64, working_size=48)).abs().max() < 0.1
    with pytest.raises(CoDiError, match=r"\(1, 3, 8, 8\).*frames"):
        clip_video(torch.zeros(1, 3, 8, 8), 64)


def test_a_still_clip_and_a_black_clip_are_finite(clip):
    unit(encode_clips(clip, torch.rand(1, 1, 3, 64, 64).repeat(1, 8, 1, 1, 1)), 1)
    unit(encode_clips(clip, torch.zeros(1, 8, 3, 48, 80)), 1)


def test_spread_takes_the_middles():
    frames = torch.arange(100)[None]
    assert spread(frames, 4).tolist() == [[12, 37, 62, 87]]
    assert spread(frames[:, :3], 4).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.full((1, 3, 8, 8), torch.nan), "NaN or infinite"),
        (torch.zeros(1, 2, 8, 8), r"\(1, 2, 8, 8\).*1, 3 or 4 channels"),
        (torch.zeros(1, 3, 0, 8), "no empty axis"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "torch.uint8.*divide"),
        (torch.zeros(8, 8), r"\(8, 8\)"),
    ],
)
def test_unusable_pictures_are_named(clip, pixels, message):
    with pytest.raises(CoDiError, match=message):
        encode_images(clip, pixels)


def test_wrong_shapes_for_the_networks_are_named(clip, clap):
    for call, message in (
        (lambda: clip.encode_image(torch.zeros(1, 3, 32, 32)), "3 x 32 x 32.*3 x 64 x 64"),
        (lambda: clip.encode_video(torch.zeros(1, 3, 64, 64)), "frames >= 1"),
        (lambda: clip.encode_text(torch.zeros(1, 99, dtype=torch.long)), r"\(1, 99\).*1\.\.32"),
        (lambda: clap.encode_audio(torch.zeros(1, 100)), r"\(1, 100\).*20480"),
    ):
        with pytest.raises(CoDiError, match=message):
            call()

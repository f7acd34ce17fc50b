"""Nodes before and after the sampler, against the headless code on the same model."""

from __future__ import annotations

import pytest
import torch
from codi.codi_models import latents
from codi.codi_models.bounce_world import judge
from codi.codi_models.conditioning import Prompt, encode_prompt, mix
from codi.codi_models.model import CoDi
from host.graph import decoded, node, outputs, sampled, shown
from host.setting import HOST, host_version


@pytest.fixture(scope="module")
def headless(base) -> CoDi:
    return CoDi.from_pretrained(base / "models" / "codi" / "tiny", device="cpu")


def scene(**changes) -> dict:
    return node("CoDiBounceScene", **{"shape": "star", "colour": "blue", "beats": "3", "seed": 2, **changes})


def value(session, graph: dict, link: list):
    session.run(shown(graph, link))
    return session.value(*link)


def encoder(kind: str, slot: int) -> dict:
    graph = {"codi": node("CoDiLoad", name="tiny"), "scene": scene()}
    graph["encode"] = node(f"CoDiEncode{kind.capitalize()}", codi=["codi", 0], **{kind: ["scene", slot]})
    return graph


def test_bounce_scene_shows_what_it_says(session):
    shown_ui = session.run({"scene": scene()})["scene"]
    image, audio, video, caption = (session.value("scene", i) for i in range(4))
    frames = video.get_components()
    said = {"shape": 3, "colour": 4, "beats": 2}

    def read(found: dict, *names: str) -> dict:
        return {n: int(found[n][0]) for n in names}

    assert read(judge.judge_image(image.movedim(-1, 1)), "shape", "colour") == {k: said[k] for k in ("shape", "colour")}
    assert read(judge.judge_video(frames.images.movedim(-1, 1)[None]), *said) == said
    assert read(judge.judge_audio(audio["waveform"][:, 0], audio["sample_rate"]), *said) == said
    assert read(judge.judge_text([caption]), *said) == said
    assert abs(float(frames.frame_rate) - 6.25) < 0.01 and frames.audio is not None
    assert shown_ui["images"] and shown_ui["audio"]


def test_prompts_are_those_of_the_pipeline(session, headless):
    embeddings = {}
    for kind, slot in (("text", 3), ("image", 0), ("audio", 1), ("video", 2)):
        conditioning = value(session, encoder(kind, slot), ["encode", 0])
        embeddings[kind] = conditioning[0][0]
        given = session.value("scene", slot)
        if kind == "image":
            given = given[0].movedim(-1, 0)
        elif kind == "audio":
            given = (given["waveform"][0, 0], given["sample_rate"])
        elif kind == "video":
            given = given.get_components().images.movedim(-1, 1)
        expected = encode_prompt(headless, Prompt(kind, given))
        assert embeddings[kind].shape == (1, 1, 128)
        assert torch.allclose(embeddings[kind], expected, atol=1e-5), kind
    graph = encoder("image", 0)
    graph["text"] = node("CoDiEncodeText", codi=["codi", 0], text="a red square bounces twice")
    graph["mix"] = node(
        "CoDiConditionMixer", **{"prompts.prompt0": ["encode", 0], "prompts.prompt1": ["text", 0]}, weights="1, -0.5", method="spherical"
    )
    blend = value(session, graph, ["mix", 0])[0][0]
    assert torch.allclose(blend, mix([embeddings["image"], session.value("text")[0][0]], [1, -0.5], "spherical"), atol=1e-6)


def test_a_clip_prompt_may_be_a_video_or_its_frames(session):
    from_video = value(session, encoder("video", 2), ["encode", 0])[0][0]
    graph = encoder("video", 2)
    graph["parts"] = node("GetVideoComponents", video=["scene", 2])
    graph["encode"]["inputs"]["video"] = ["parts", 0]
    assert torch.equal(value(session, graph, ["encode", 0])[0][0], from_video)


def test_a_batch_of_prompts_goes_with_a_batch_of_outputs(session):
    graph = sampled("image", batch_size=2)
    graph["a"], graph["b"] = scene(seed=1), scene(shape="circle", colour="red")
    graph["both"] = node("ImageBatch", image1=["a", 0], image2=["b", 0])
    graph["yes"] = node("CoDiEncodeImage", codi=["load", 1], image=["both", 0])
    pair = value(session, graph, ["sample", 0])["samples"]
    graph["yes"]["inputs"]["image"] = ["a", 0]
    twice = value(session, graph, ["sample", 0])["samples"]
    assert session.value("yes")[0][0].shape == (1, 1, 128)
    assert torch.allclose(pair[0], twice[0], atol=1e-5)
    assert (pair[1] - twice[1]).abs().max() > 1e-4


def test_decode_nodes_give_what_the_pipeline_gives_and_show_it(session, headless):
    names = ("image", "video", "text", "audio")
    graph = decoded(sampled(*names, batch_size=2), *names)
    graph["video"]["inputs"]["audio"] = ["audio", 0]
    ui = session.run(graph)
    video, image, text, audio = session.value("sample")["samples"].unbind()
    config = headless.config
    pictures = latents.decode_pixels(headless, image * config.image_autoencoder.scale).movedim(1, -1)
    assert torch.allclose(session.value("image"), pictures, atol=1e-4) and pictures.shape == (2, 64, 64, 3)
    frames = latents.decode_pixels(headless, video * config.image_autoencoder.scale).movedim(2, -1)
    assert torch.allclose(session.value("video", 0), frames.flatten(0, 1), atol=1e-4)
    sound = latents.decode_audio(headless, audio * config.audio_autoencoder.scale)
    assert torch.allclose(session.value("audio")["waveform"][:, 0], sound, atol=1e-4) and session.value("audio")["sample_rate"] == 16000
    texts = latents.decode_text(headless, text[..., 0] * config.text_autoencoder.scale, [0, 1])
    assert session.value("text") == "\n".join(texts) == ui["text"]["text"][0]
    assert [len(ui[n]["images"]) for n in ("image", "video")] == [2, 2] and len(ui["audio"]["audio"]) == 2
    clip = session.value("video", 1).get_components()
    assert torch.allclose(clip.images, frames[0], atol=1e-4) and clip.audio["waveform"].shape[0] == 1


def test_stock_vae_nodes_decode_and_encode(session):
    graph = sampled("video", "audio")
    graph = decoded(graph, "video", "audio")
    graph["vae"] = node("CoDiVAE", codi=["load", 1])
    graph["frames"] = node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    graph["sound"] = node("VAEDecodeAudio", samples=["sample", 0], vae=["vae", 1])
    graph["back"] = node("VAEEncode", pixels=["frames", 0], vae=["vae", 0])
    graph["sound_back"] = node("VAEEncodeAudio", audio=["audio", 0], vae=["vae", 1])
    graph["see"], graph["hear"] = node("PreviewAny", source=["back", 0]), node("PreviewAny", source=["sound_back", 0])
    session.run({**graph, "s": node("PreviewAny", source=["sound", 0])})
    assert torch.equal(session.value("frames"), session.value("video", 0))
    ours, theirs = session.value("audio")["waveform"], session.value("sound")["waveform"]
    loud = torch.std(ours, dim=[1, 2], keepdim=True) * 5.0  # the stock node turns down what exceeds this
    assert torch.allclose(ours / loud.clamp_min(1.0), theirs, atol=1e-5) and session.value("sound")["sample_rate"] == 16000
    assert session.value("back")["samples"].shape == (2, 4, 8, 8)
    rate = 44100 if host_version(HOST) == "0.8.0" else 16000  # the oldest host brings every sound to one rate
    assert session.value("sound_back")["samples"].shape == (1, 8, 4 * round(rate / 16000), 8)


def test_stock_empty_latent_gives_an_image(session):
    graph = sampled("image")
    graph["empty"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    assert value(session, graph, ["sample", 0])["samples"].shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("text", "same_as"), [("", None), ("a red square " * 3000, None), ("  a red square  ", "a red square"), ("日本語 🎈 \x00", None)]
)
def test_any_text_is_a_prompt(session, text, same_as):
    graph = {"codi": node("CoDiLoad", name="tiny"), "encode": node("CoDiEncodeText", codi=["codi", 0], text=text)}
    embedding = value(session, graph, ["encode", 0])[0][0]
    assert embedding.shape == (1, 1, 128) and abs(float(embedding.norm()) - 1) < 1e-4
    if same_as:
        graph["encode"]["inputs"]["text"] = same_as
        assert torch.equal(value(session, graph, ["encode", 0])[0][0], embedding)


def test_silence_and_a_single_frame_are_prompts(session):
    graph = {"codi": node("CoDiLoad", name="tiny"), "quiet": node("EmptyAudio", duration=3.0, sample_rate=44100, channels=2)}
    graph["encode"] = node("CoDiEncodeAudio", codi=["codi", 0], audio=["quiet", 0])
    assert torch.isfinite(value(session, graph, ["encode", 0])[0][0]).all()
    graph = encoder("video", 0)
    still = value(session, graph, ["encode", 0])[0][0]
    assert torch.isfinite(still).all() and abs(float(still.norm()) - 1) < 1e-4


def test_a_changed_model_file_is_loaded_again(session, base):
    import os

    graph = {"load": node("CoDiLoadJoint", name="tiny", dtype="auto", **outputs("text"))}
    first = value(session, graph, ["load", 1])
    assert value(session, graph, ["load", 1]) is first
    os.utime(base / "models" / "codi" / "tiny" / "config.json", ns=(1, 1))
    assert value(session, graph, ["load", 1]) is not first

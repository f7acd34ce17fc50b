"""Outputs made together or in turns, and what a finished one tells the others."""

from __future__ import annotations

import pytest
import torch
from codi.codi_models.config import MODALITIES, CoDiConfig
from codi.codi_models.errors import CoDiError
from codi.codi_models.joint import JointDenoiser
from codi.codi_models.order import IN_TURN, TOGETHER, parse_order
from codi.codi_models.prompts import Prompt
from codi.codi_models.settings import Settings


@pytest.mark.parametrize(
    ("text", "outputs", "turns"),
    [
        (TOGETHER, MODALITIES, [set(MODALITIES)]),
        (TOGETHER, ("text",), [{"text"}]),
        (IN_TURN, MODALITIES, [{"text"}, {"audio"}, {"video"}, {"image"}]),
        (IN_TURN, ("text", "audio"), [{"text"}, {"audio"}]),
        ("image", MODALITIES, [{"image"}, {"video", "audio", "text"}]),
        (" text+image ,audio", ("audio", "image"), [{"image"}, {"audio"}]),
        ("", ("audio", "image"), [{"audio", "image"}]),
        (IN_TURN, (), []),
        (IN_TURN, ("video", "image"), [{"text"}, {"video"}, {"image"}]),
        (IN_TURN, ("video",), [{"video"}]),
        ("(text+audio), video", ("video", "audio"), [{"text", "audio"}, {"video"}]),
        ("image, (text)", ("image",), [{"image"}]),
        ("(text), image, (audio)", ("image", "video"), [{"text"}, {"image"}, {"audio"}, {"video"}]),
    ],
)
def test_turns(text, outputs, turns):
    assert [set(turn) for turn in parse_order(text, outputs)] == turns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sound", "unknown output 'sound'"),
        ("image, text+image", "twice"),
        ("image+,text", "''"),
        ("(text, image", r"'\(text'"),
        ("(text), text", "twice"),
    ],
)
def test_orders_that_are_none(text, message, pipe):
    with pytest.raises(CoDiError, match=message):
        parse_order(text, MODALITIES)
    with pytest.raises(CoDiError, match=message):
        Settings.settled(pipe.model.config, ["image"], order=text)


USUAL = {"steps": 3, "seed": 4, "cfg": 2.0, "alignment_guidance": 20}


def test_what_comes_first_is_what_it_is_alone_and_the_next_hears_it_clean(pipe, monkeypatch):
    heard, forward = [], JointDenoiser.forward
    monkeypatch.setattr(JointDenoiser, "forward", lambda self, *a, **k: heard.append((sorted(a[0]), k["spoken"])) or forward(self, *a, **k))
    (made,) = pipe("a red circle", ["image", "audio", "text"], order="audio, image", **USUAL)
    turns = list(heard)
    assert [names for names, _ in turns] == [["audio"]] * 3 + [["image"]] * 3 + [["text"]] * 3
    assert [sorted(spoken) for _, spoken in turns] == [[]] * 3 + [["audio"]] * 3 + [["audio", "image"]] * 3
    assert torch.equal(made.audio, pipe("a red circle", ["audio"], **USUAL)[0].audio)
    settings = Settings.settled(pipe.model.config, ["audio"], **USUAL)
    latents, _ = pipe._denoise(*pipe.condition([Prompt("text", "a red circle")]), settings, [4], lambda *_: None, {})
    joint = JointDenoiser({"audio_denoiser": pipe.model.component("audio_denoiser")}, register=False)
    said = joint.environment_embeddings(latents, torch.zeros(1, dtype=torch.long))["audio"]
    torch.testing.assert_close(turns[-1][1]["audio"], torch.cat([said, said]))  # without the prompt and with it


def test_the_order_changes_what_is_heard_and_nothing_else(pipe):
    together, turns, deaf, apart = (
        pipe("a red circle", ["image", "text"], **{**USUAL, **more})[0]
        for more in ({"order": TOGETHER}, {"order": IN_TURN}, {"order": IN_TURN, "wiring": "off"}, {"wiring": "off"})
    )
    assert torch.equal(deaf.image, apart.image) and deaf.text == apart.text
    assert turns.text == apart.text and not torch.equal(turns.image, apart.image) and not torch.equal(turns.image, together.image)


def test_a_bridge_is_made_only_where_something_is_left_to_hear_it():
    config = CoDiConfig.mini()
    for order, outputs, working in (
        (IN_TURN, ["image", "video"], {"image", "video", "text"}),
        ("(text), image", ["image"], {"image", "text"}),
        ("image, (text)", ["image"], {"image"}),
        (TOGETHER, ["image", "video"], {"image", "video"}),
    ):
        settings = Settings.settled(config, outputs, order=order)
        assert set(settings.working) == working and settings.listening is (len(working) > 1)
        deaf = Settings.settled(config, outputs, order=order, wiring="off")
        assert set(deaf.working) == set(outputs) and not deaf.listening
    assert parse_order(IN_TURN, ("image", "video"), lent=("audio",)) == (("video",), ("image",))
    assert parse_order(IN_TURN, ("image", "video"), ("image",)) == (("text",), ("image",))  # the clip is given
    assert parse_order(IN_TURN, ("image", "video"), ()) == ()


def test_a_picture_and_a_clip_are_those_of_a_run_that_gives_the_caption_out(pipe, monkeypatch):
    told: list[tuple[int, int]] = []
    hidden = pipe("a red circle", ["image", "video"], order=IN_TURN, callback=lambda *done: told.append(done), **USUAL)[0]
    whole = pipe("a red circle", ["image", "video", "text"], order=IN_TURN, **USUAL)[0]
    assert hidden.text is None and whole.text is not None and told[-1] == (9, 9)
    assert torch.equal(hidden.image, whole.image) and torch.equal(hidden.video, whole.video)
    apart = pipe("a red circle", ["image", "video"], order="video, image", **USUAL)[0]
    assert not torch.equal(apart.video, hidden.video)
    loaded: list[str] = []
    monkeypatch.setattr(pipe.model, "component", lambda name, component=pipe.model.component: loaded.append(name) or component(name))
    for wiring, denoisers in (("cross", {"vision_denoiser", "text_denoiser"}), ("off", {"vision_denoiser"})):
        loaded.clear()
        pipe("a red circle", ["image", "video"], order=IN_TURN, wiring=wiring, **USUAL)
        assert {name for name in loaded if "denoiser" in name} == denoisers and "text_autoencoder" not in loaded


def test_a_kept_clip_is_heard_by_the_bridge(pipe):
    clip = pipe("a red circle", ["video"], **USUAL)[0].video
    turns = Settings.settled(pipe.model.config, ["image"], keep=["video"], order=IN_TURN).turns(["image"])
    assert turns == (("text",), ("image",))
    bridged, direct = (pipe("", ["image"], keep={"video": clip}, order=order, **USUAL)[0] for order in (IN_TURN, "image"))
    assert torch.equal(bridged.video, direct.video) and not torch.equal(bridged.image, direct.image) and bridged.text is None


def test_a_single_output_hears_a_bridge_that_is_asked_for(pipe):
    alone, bridged, deaf = (
        pipe("", ["image"], **{**USUAL, **more})[0].image
        for more in ({}, {"order": "(text), image"}, {"order": "(text), image", "wiring": "off"})
    )
    assert torch.equal(alone, deaf) and not torch.equal(alone, bridged)


def test_steps_are_counted_over_all_turns(pipe):
    told = []
    pipe("", ["image", "text"], order=IN_TURN, steps=2, callback=lambda done, steps: told.append((done, steps)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_something_spoken_is_heard_like_an_output(pipe):
    nets = {name: pipe.model.component(name) for name in ("vision_denoiser", "audio_denoiser")}
    joint = JointDenoiser(nets, register=False)
    generator = torch.Generator().manual_seed(0)
    image, audio = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 8, 16, 8, generator=generator)
    time, context = torch.tensor([40, 900]), torch.randn(2, 1, pipe.model.config.vision_denoiser.context_dim, generator=generator)
    said = joint.environment_embeddings({"audio": audio}, time)
    both = joint({"image": image, "audio": audio}, time, context)["image"]
    given = joint({"image": image}, time, context, spoken=said)
    assert list(given) == ["image"]
    torch.testing.assert_close(given["image"], both)
    off = joint({"image": image}, time, context, spoken=said, pairs={("image", "audio"): 0.0})["image"]
    torch.testing.assert_close(off, joint({"image": image}, time, context)["image"])
    assert (off - both).abs().max() > 1e-4

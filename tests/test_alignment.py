"""Latent alignment as one value: wiring, range, directions and strengths, on tiny denoisers; and prompts of single frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from codi.codi_models.alignment import WIRINGS, Alignment, parse_directions
from codi.codi_models.errors import CoDiError
from codi.codi_models.joint import JointDenoiser
from codi.codi_models.modalities import MODALITIES
from tiny_joint import TIME, latents, prompt, tiny_joint
from torch import Tensor


@pytest.fixture(scope="module")
def joint() -> JointDenoiser:
    return tiny_joint()


def differ(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) > 1e-4


def step(joint: JointDenoiser, x: dict[str, Tensor], alignment: Alignment | None = None, **more: Any) -> dict[str, Tensor]:
    return joint(x, TIME, prompt(1), alignment=alignment, **more)


def test_sources() -> None:
    outputs = ("video", "image", "audio")
    assert Alignment().sources("video", outputs) == {"image": 1.0, "audio": 1.0}
    assert Alignment("self").sources("video", outputs) == {"video": 1.0}
    assert Alignment("off").sources("video", outputs) == Alignment(strength=0.0).sources("video", outputs) == {}
    assert Alignment().sources("video", ["video"]) == Alignment("self").sources("video", ["video"]) == {}
    directed = Alignment(directions={("video", "audio"): 0.25, ("image", "video"): 0.0, ("image", "audio"): 0.0})
    assert directed.sources("video", outputs) == {"image": 1.0, "audio": 0.25}
    assert directed.sources("image", outputs) == {} and directed.sources("audio", outputs) == {"video": 1.0, "image": 1.0}


def test_disabled_and_off() -> None:
    assert [Alignment(wiring).disabled for wiring in WIRINGS] == [False, False, True]
    assert Alignment(strength=0.0).disabled and not Alignment(strength=-0.5).disabled
    assert not Alignment(strength=torch.zeros(2)).disabled  # of single samples: the network leaves each alone
    one = Alignment("self", 0.5, 3.0, 0.1, 0.9, {("video", "audio"): 0.5})
    assert one.off() == Alignment("off", 0.5, 3.0, 0.1, 0.9, {("video", "audio"): 0.5}) and one.off().disabled


def test_its_range_is_of_the_run_and_holds_its_start_but_not_its_end() -> None:
    middle = Alignment(start=0.25, end=0.5)
    for timestep, active in ((999, False), (750, False), (749.25, True), (600, True), (500, True), (499, False), (0, False)):
        assert middle.at(timestep) == (middle if active else middle.off()), timestep
    assert all(not Alignment().at(t).disabled for t in (999, 500, 0))
    assert not Alignment(end=0.5).at(999).disabled and Alignment(end=0.0).at(999).disabled
    assert Alignment(start=1.0).at(1).disabled and not Alignment(start=1.0).at(0).disabled


def test_each_direction_has_its_own_strength(joint: JointDenoiser) -> None:
    x = latents("image", "audio")
    off, on = step(joint, x, Alignment("off")), step(joint, x)
    one_way = step(joint, x, Alignment(directions={("image", "audio"): 0.0}))
    assert torch.equal(one_way["image"], off["image"]) and torch.equal(one_way["audio"], on["audio"])
    half = step(joint, x, Alignment(directions={("audio", "image"): 0.5}))
    assert torch.equal(half["image"], on["image"])
    assert torch.equal(half["audio"], step(joint, x, Alignment(strength=0.5))["audio"])
    assert differ(half["audio"], on["audio"]) and differ(half["audio"], off["audio"])
    assert torch.equal(step(joint, x, Alignment(strength=0.5, directions={("audio", "image"): 0.5}))["audio"],
                       step(joint, x, Alignment(strength=0.25))["audio"])  # fmt: skip


def test_strengths_of_three_outputs(joint: JointDenoiser) -> None:
    x = latents("image", "audio", "text")
    on = step(joint, x)
    same = step(joint, x, Alignment(directions={(a, b): 1.0 for a in x for b in x if a != b}))
    assert all(torch.equal(on[m], same[m]) for m in x)
    only_audio = step(joint, x, Alignment(directions={("text", "image"): 0.0}))
    other_image = x | {"image": x["image"] * 9}
    unmoved = step(joint, other_image, Alignment(directions={("text", "image"): 0.0}))
    assert torch.allclose(only_audio["text"], unmoved["text"], atol=1e-6) and differ(on["text"], step(joint, other_image)["text"])
    scaled = step(joint, x, Alignment(directions={("text", "image"): 0.5, ("text", "audio"): 0.5}))
    assert torch.equal(scaled["text"], step(joint, x, Alignment(strength=0.5))["text"])
    nearly = step(joint, x, Alignment(directions={("text", "image"): 1e-6}))  # a weight that vanishes is as good as none
    assert torch.allclose(nearly["text"], only_audio["text"], atol=1e-4)
    between = step(joint, x, Alignment(directions={("text", "image"): 0.3}))
    assert differ(between["text"], on["text"]) and differ(between["text"], only_audio["text"])


def test_targets_alone_are_predicted_and_given_embeddings_replace_their_latents(joint: JointDenoiser) -> None:
    x = latents("image", "audio", "text")
    whole, some = step(joint, x), step(joint, x, targets=("audio",))
    assert some.keys() == {"audio"} and torch.equal(some["audio"], whole["audio"])
    given = joint.environment_embeddings({m: x[m] for m in ("image", "text")}, TIME)
    alone = step(joint, {"audio": x["audio"]}, given=given)
    assert alone.keys() == {"audio"} and torch.equal(alone["audio"], whole["audio"])
    swapped = {"image": given["text"], "text": given["image"]}
    known = step(joint, x, given=swapped)  # of latents that are there too
    assert not torch.equal(known["image"], whole["image"]) and torch.equal(
        known["audio"], step(joint, latents("audio") | x, given=swapped)["audio"]
    )


def test_environments_that_no_target_attends_to_are_not_computed(joint: JointDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = JointDenoiser.environment_embeddings
    monkeypatch.setattr(JointDenoiser, "environment_embeddings", lambda self, x, t: seen.extend(x) or plain(self, x, t))
    x = latents("image", "audio", "text")
    for alignment, targets, expected in (
        (Alignment(), None, ["image", "audio", "text"]),
        (Alignment(), ("text",), ["image", "audio"]),
        (Alignment("self"), ("text",), ["text"]),
        (Alignment("off"), None, []),
        (Alignment(directions={("text", "image"): 0.0}), ("text",), ["audio"]),
    ):
        seen.clear()
        step(joint, x, alignment, targets=targets)
        assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_prompt_for_every_frame(joint: JointDenoiser, tokens: int) -> None:
    net, x = joint.denoiser("video"), latents("video")["video"]
    shared = prompt(tokens)
    expanded = shared[:, None].expand(-1, 3, -1, -1)
    assert torch.allclose(net(x, TIME, expanded), net(x, TIME, shared), atol=1e-5)
    travel = prompt(3, tokens)
    moved = net(x, TIME, travel)
    assert differ(moved, net(x, TIME, travel[:, 0]))
    one = net(x, TIME, travel[:, :1])  # one frame's prompt is shared by all
    assert torch.allclose(one, net(x, TIME, travel[:, 0]), atol=1e-5)


def test_frames_without_temporal_modules_see_their_own_prompt_only(joint: JointDenoiser) -> None:
    transformer = joint.denoiser("video").prompt_transformers()[0]
    x = torch.randn(6, transformer.proj_in.weight.shape[1], 4, 4, generator=torch.Generator().manual_seed(2))  # 2 samples of 3 frames
    travel = prompt(3, 2)
    whole = transformer(x, travel)
    for sample in range(2):
        for frame in range(3):
            row = 3 * sample + frame
            alone = transformer(x[row : row + 1], travel[sample, frame][None])
            assert torch.allclose(whole[row], alone[0], atol=1e-5)


def test_what_is_refused(joint: JointDenoiser) -> None:
    with pytest.raises(CoDiError, match="prompts for 4 frames.*latent of 3"):
        joint.denoiser("video")(latents("video")["video"], TIME, prompt(4, 1))
    with pytest.raises(CoDiError, match="prompts for 3 frames.*latent of 1"):
        joint.denoiser("audio")(latents("audio")["audio"], TIME, prompt(3, 1))
    for directions, words in (
        ({("image", "image"): 1.0}, "cannot attend to"),
        ({("image", "audio"): -1.0}, "0 or more"),
        ({("image", "audio"): float("inf")}, "finite"),
        ({("image", "smell"): 1.0}, "smell"),
    ):
        with pytest.raises(CoDiError, match=words):
            Alignment(directions=directions)
    for start, end in ((0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0), (0.0, float("nan"))):
        with pytest.raises(CoDiError, match="start comes before end"):
            Alignment(start=start, end=end)
    for values, words in (
        ({"wiring": "crossed"}, "'crossed'.*cross, self, off"),
        ({"strength": float("inf")}, "alignment inf"),
        ({"guidance": float("nan")}, "alignment guidance nan"),
    ):
        with pytest.raises(CoDiError, match=words):
            Alignment(**values)


def test_directions_as_text() -> None:
    assert parse_directions("video<audio=0.5,\n audio < video = 0") == {("video", "audio"): 0.5, ("audio", "video"): 0.0}
    assert parse_directions(" ") == {}
    for text, word in (
        ("video=1", "video"), ("video<audio", "target<source"), ("video<audio=loud", "loud"), ("a<b=1", "'a'"),
        ("video<audio=-1", "0 or more"), ("video<video=1", "cannot attend"), ("video<audio=nan", "finite"),
    ):  # fmt: skip
        with pytest.raises(CoDiError, match=word):
            parse_directions(text)
    every = ",".join(f"{a}<{b}=2" for a in MODALITIES for b in MODALITIES if a != b)
    assert len(parse_directions(every)) == len(MODALITIES) * (len(MODALITIES) - 1)

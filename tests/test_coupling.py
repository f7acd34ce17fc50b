"""Directions, strengths and schedule of latent alignment, and prompts of single frames, on tiny denoisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from codi.codi_models.coupling import Coupling, parse_pairs
from codi.codi_models.denoisers.unet2d import UNet2D
from codi.codi_models.denoisers.unet_text import TextUNet
from codi.codi_models.errors import CoDiError
from codi.codi_models.joint import JointDenoiser
from host.tiny import tiny_config
from torch import Tensor, nn

CONFIG = tiny_config()
SHAPES = {"video": (4, 3, 8, 8), "image": (4, 8, 8), "audio": (8, 8, 8), "text": (64,)}
TIME = torch.tensor([500, 500])


@pytest.fixture(scope="module")
def joint() -> JointDenoiser:
    nets: dict[str, Any] = {
        "vision_denoiser": UNet2D(CONFIG.vision_denoiser),
        "audio_denoiser": UNet2D(CONFIG.audio_denoiser),
        "text_denoiser": TextUNet(CONFIG.text_denoiser),
    }
    generator = torch.Generator().manual_seed(3)
    for net in nets.values():
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        net.eval().requires_grad_(False)
    return JointDenoiser(nets)


def latents(*names: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {m: torch.randn(2, *SHAPES[m], generator=generator) for m in names}


def prompt(*shape: int) -> Tensor:
    return nn.functional.normalize(torch.randn(2, *shape, 128, generator=torch.Generator().manual_seed(1)), dim=-1)


def differ(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) > 1e-4


def calls(joint: JointDenoiser, **settings: Any) -> dict[str, int]:
    """Passes of every denoiser in one joint step."""
    counts: dict[str, int] = {}
    handles = []
    for name in ("vision_denoiser", "audio_denoiser", "text_denoiser"):
        counts[name] = 0

        def count(*_: Any, name: str = name) -> None:
            counts[name] += 1

        handles.append(getattr(joint, name).register_forward_pre_hook(count))
    joint(latents("image", "audio", "text"), TIME, prompt(1), **settings)
    for handle in handles:
        handle.remove()
    return counts


def test_each_direction_has_its_own_strength(joint: JointDenoiser) -> None:
    x = latents("image", "audio")
    off, on = joint(x, TIME, prompt(1), wiring="off"), joint(x, TIME, prompt(1))
    deaf = joint(x, TIME, prompt(1), pairs={("image", "audio"): 0.0})
    assert torch.equal(deaf["image"], off["image"]) and torch.equal(deaf["audio"], on["audio"])
    half = joint(x, TIME, prompt(1), pairs={("audio", "image"): 0.5})
    assert torch.equal(half["image"], on["image"])
    assert torch.equal(half["audio"], joint(x, TIME, prompt(1), alignment=0.5)["audio"])
    assert differ(half["audio"], on["audio"]) and differ(half["audio"], off["audio"])


def test_strengths_of_three_outputs(joint: JointDenoiser) -> None:
    x = latents("image", "audio", "text")
    on = joint(x, TIME, prompt(1))
    same = joint(x, TIME, prompt(1), pairs={(a, b): 1.0 for a in x for b in x if a != b})
    assert all(torch.equal(on[m], same[m]) for m in x)
    only_audio = joint(x, TIME, prompt(1), pairs={("text", "image"): 0.0})
    assert torch.allclose(only_audio["text"], joint(latents("image", "audio", "text") | {"image": x["image"] * 9}, TIME, prompt(1),
                                                    pairs={("text", "image"): 0.0})["text"], atol=1e-6)  # fmt: skip
    scaled = joint(x, TIME, prompt(1), pairs={("text", "image"): 0.5, ("text", "audio"): 0.5})
    assert torch.equal(scaled["text"], joint(x, TIME, prompt(1), alignment=0.5)["text"])
    nearly = joint(x, TIME, prompt(1), pairs={("text", "image"): 1e-6})  # a weight that vanishes is as good as none
    assert torch.allclose(nearly["text"], only_audio["text"], atol=1e-4)
    between = joint(x, TIME, prompt(1), pairs={("text", "image"): 0.3})
    assert differ(between["text"], on["text"]) and differ(between["text"], only_audio["text"])


def test_outputs_listen_in_a_part_of_the_run_only(joint: JointDenoiser) -> None:
    x = latents("image", "audio")
    off, on = joint(x, TIME, prompt(1), wiring="off"), joint(x, TIME, prompt(1))
    for window, same in (((0.0, 0.4), off), ((0.6, 1.0), off), ((0.4, 0.6), on), ((0.0, 1.0), on)):
        got = joint(x, TIME, prompt(1), window=window)
        assert all(torch.equal(got[m], same[m]) for m in x)
    mixed = joint(x, torch.tensor([999, 0]), prompt(1), window=(0.5, 1.0))
    for row, whole in ((0, {"wiring": "off"}), (1, {})):
        same = joint(x, torch.tensor([999, 0]), prompt(1), **whole)
        assert all(torch.allclose(mixed[m][row], same[m][row], atol=1e-5) for m in x)
    assert torch.equal(torch.as_tensor(Coupling(end=0.5).at(torch.tensor([999, 499]))), torch.tensor([1.0, 0.0]))


def test_passes_that_nobody_needs_are_left_out(joint: JointDenoiser) -> None:
    once = {"vision_denoiser": 1, "audio_denoiser": 1, "text_denoiser": 1}
    assert calls(joint) == once
    assert calls(joint, alignment_guidance=2.0) == {name: 2 for name in once}
    assert calls(joint, alignment_guidance=2.0, window=(0.0, 0.1)) == once
    deaf = {("text", "image"): 0.0, ("text", "audio"): 0.0}
    assert calls(joint, alignment_guidance=2.0, pairs=deaf) == {**once, "vision_denoiser": 2, "audio_denoiser": 2}
    assert calls(joint, only=("audio",)) == {**{name: 0 for name in once}, "audio_denoiser": 1}


def test_noise_of_some_outputs_only(joint: JointDenoiser) -> None:
    x = latents("image", "audio", "text")
    whole, some = joint(x, TIME, prompt(1)), joint(x, TIME, prompt(1), only=("audio",))
    assert torch.equal(some["audio"], whole["audio"])
    assert not some["image"].any() and some["text"].shape == x["text"].shape


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_prompt_for_every_frame(joint: JointDenoiser, tokens: int) -> None:
    net, x = joint.vision_denoiser, latents("video")["video"]
    shared = prompt(tokens)
    expanded = shared[:, None].expand(-1, 3, -1, -1)
    assert torch.allclose(net(x, TIME, expanded), net(x, TIME, shared), atol=1e-5)
    travel = prompt(3, tokens)
    moved = net(x, TIME, travel)
    assert differ(moved, net(x, TIME, travel[:, 0]))
    one = net(x, TIME, travel[:, :1])  # one frame's prompt is shared by all
    assert torch.allclose(one, net(x, TIME, travel[:, 0]), atol=1e-5)


def test_frames_without_temporal_modules_see_their_own_prompt_only(joint: JointDenoiser) -> None:
    transformer = next(m for m in joint.vision_denoiser.prompt_transformers())
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
        joint.vision_denoiser(latents("video")["video"], TIME, prompt(4, 1))
    with pytest.raises(CoDiError, match="prompts for 3 frames.*latent of 1"):
        joint.audio_denoiser(latents("audio")["audio"], TIME, prompt(3, 1))
    for pairs, words in (
        ({("image", "image"): 1.0}, "cannot listen"),
        ({("image", "audio"): -1.0}, "0 or more"),
        ({("image", "smell"): 1.0}, "smell"),
    ):
        with pytest.raises(CoDiError, match=words):
            Coupling(pairs=pairs)
    for window in ((0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)):
        with pytest.raises(CoDiError, match="start comes before end"):
            joint(latents("image"), TIME, prompt(1), window=window)


def test_directions_as_text() -> None:
    assert parse_pairs("video<audio=0.5,\n audio < video = 0") == {("video", "audio"): 0.5, ("audio", "video"): 0.0}
    assert parse_pairs(" ") == {}
    for text, word in (("video=1", "video"), ("video<audio", "listener<speaker"), ("video<audio=loud", "loud"), ("a<b=1", "'a'")):
        with pytest.raises(CoDiError, match=word):
            parse_pairs(text)

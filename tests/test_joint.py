"""Denoisers and the joint step: wiring, strength, folded prompts, training, and errors."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from codi.codi_models.alignment import Alignment
from codi.codi_models.denoisers.alignment import alignment_parameters, copy_prompt_attention_into_connectors
from codi.codi_models.denoisers.layers import FoldedContext
from codi.codi_models.denoisers.unet import UNet
from codi.codi_models.denoisers.unet2d import UNet2D
from codi.codi_models.denoisers.unet_text import TextUNet
from codi.codi_models.errors import CoDiError
from codi.codi_models.joint import JointDenoiser
from small import small_config
from torch import Tensor, nn

CONFIG = small_config()
WIDTH = CONFIG.vision_denoiser.context_dim


def stir(module: nn.Module, seed: int = 0) -> None:
    """Random weights everywhere, so that every branch takes part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def nets() -> dict[str, UNet]:
    made: dict[str, UNet] = {
        "vision_denoiser": UNet2D(CONFIG.vision_denoiser),
        "audio_denoiser": UNet2D(CONFIG.audio_denoiser),
        "text_denoiser": TextUNet(CONFIG.text_denoiser),
    }
    for seed, net in enumerate(made.values()):
        stir(net, seed)
        net.eval().requires_grad_(False)
    return made


def latents(*modalities: str, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"video": (4, 4, 8, 8), "image": (4, 8, 8), "audio": (8, 16, 8), "text": (64,)}
    return {m: torch.randn(batch, *shapes[m], generator=generator) for m in modalities}


def prompt(batch: int = 2, tokens: int = 1) -> Tensor:
    x = torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(7))
    return nn.functional.normalize(x, dim=-1)


TIME = torch.tensor([40, 900])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for m in a:
        torch.testing.assert_close(a[m], b[m], rtol=1e-4, atol=1e-5)


def differ(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) > 1e-3 * float(b.abs().max())


@pytest.mark.parametrize("modality", ["video", "image", "audio", "text"])
def test_folded_prompt_equals_the_general_path(nets: dict[str, UNet], modality: str) -> None:
    joint, x = JointDenoiser(nets), latents(modality)
    folded = joint.fold_contexts(prompt(), [modality])
    assert isinstance(folded[modality], FoldedContext) and folded[modality].batch == 2
    one = joint(x, TIME, folded)
    # The same token twice takes the general path, and a softmax over equal tokens averages equal values.
    same(joint(x, TIME, prompt().expand(-1, 2, -1)), one)
    same(joint(x, TIME, prompt()), one)
    second = {m: v.map(lambda t: t[1:]) for m, v in folded.items()}
    same(joint({m: v[1:] for m, v in x.items()}, TIME[1:], second), {m: v[1:] for m, v in one.items()})
    assert joint.fold_contexts(prompt(tokens=2), [modality])[modality].shape == (2, 2, WIDTH)


@pytest.mark.parametrize("modality", ["video", "image", "audio", "text"])
def test_folded_environment_equals_the_general_path(nets: dict[str, UNet], modality: str) -> None:
    joint, x = JointDenoiser(nets), latents(modality)[modality]
    net, environment = joint.denoiser(modality), prompt()
    once = net(x, TIME, prompt(), environment=environment)
    torch.testing.assert_close(net(x, TIME, prompt(), environment=environment.expand(-1, 3, -1)), once, rtol=1e-4, atol=1e-5)
    assert differ(once, net(x, TIME, prompt()))


def test_injected_attention_is_used(nets: dict[str, UNet]) -> None:
    calls: list[int] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        calls.append(heads)
        q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    net = UNet2D(CONFIG.audio_denoiser, attention=attention)
    net.load_state_dict(nets["audio_denoiser"].state_dict())
    x = latents("audio")["audio"]
    torch.testing.assert_close(net(x, TIME, prompt(tokens=3)), nets["audio_denoiser"](x, TIME, prompt(tokens=3)), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2 * len(net.prompt_transformers()) and set(calls) == {CONFIG.audio_denoiser.num_heads}


def test_injected_operations_make_every_layer() -> None:
    made: list[nn.Module] = []

    class Operations:
        def __getattr__(self, name: str) -> Any:
            def build(*args: Any, **kwargs: Any) -> nn.Module:
                assert kwargs["dtype"] == torch.bfloat16 and kwargs["device"] == "meta"
                made.append(getattr(nn, name)(*args, **kwargs))
                return made[-1]

            return build

    for cls, config in ((UNet2D, CONFIG.vision_denoiser), (TextUNet, CONFIG.text_denoiser)):
        made.clear()
        net: UNet = cls(config, operations=Operations(), dtype=torch.bfloat16, device="meta")  # type: ignore[arg-type]
        assert all(p.dtype == torch.bfloat16 and p.is_meta for p in net.parameters())
        own = {m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d | nn.GroupNorm | nn.LayerNorm)}
        assert own == set(made)


def test_outputs_attend_to_each_other_in_cross_wiring_and_not_in_self_wiring(nets: dict[str, UNet]) -> None:
    joint, x = JointDenoiser(nets), latents("video", "audio", "text")
    other = x | {"audio": latents("audio", seed=5)["audio"]}
    for wiring, attends in (("cross", True), ("self", False), ("off", False)):
        before, after = joint(x, TIME, prompt(), alignment=Alignment(wiring)), joint(other, TIME, prompt(), alignment=Alignment(wiring))
        for m in ("video", "text"):
            assert differ(after[m], before[m]) if attends else torch.equal(after[m], before[m])
    same(joint(x, TIME, prompt(), alignment=Alignment(strength=0.0)), joint(x, TIME, prompt(), alignment=Alignment("off")))
    assert differ(
        joint(x, TIME, prompt(), alignment=Alignment("self"))["text"], joint(x, TIME, prompt(), alignment=Alignment("off"))["text"]
    )


def test_three_outputs_attend_to_the_other_two(nets: dict[str, UNet]) -> None:
    joint, x = JointDenoiser(nets), latents("image", "audio", "text")
    own = joint.environment_embeddings(x, TIME)
    assert all(e.shape == (2, 1, WIDTH) for e in own.values())
    torch.testing.assert_close(torch.stack([e.norm(dim=-1) for e in own.values()]), torch.ones(3, 2, 1))
    expected = nets["audio_denoiser"](x["audio"], TIME, prompt(), environment=torch.cat([own["image"], own["text"]], dim=1))
    torch.testing.assert_close(joint(x, TIME, prompt())["audio"], expected)


def test_sources_one_by_one_add_up(nets: dict[str, UNet]) -> None:
    joint, x, halves = JointDenoiser(nets), latents("image", "audio", "text"), {("audio", "text"): 0.5, ("text", "image"): 0.0}
    summed = Alignment(combine="sum", directions=halves)
    made, alone = joint(x, TIME, prompt(), alignment=summed), joint(x, TIME, prompt(), alignment=Alignment("off"))
    for target in x:
        expected = alone[target]
        for source in set(x) - {target}:
            only = {(target, other): halves.get((target, other), 1.0) * (other == source) for other in set(x) - {target}}
            expected = expected + joint(x, TIME, prompt(), alignment=Alignment(directions=only))[target] - alone[target]
        torch.testing.assert_close(made[target], expected)
    assert differ(made["audio"], joint(x, TIME, prompt(), alignment=Alignment(directions=halves))["audio"])
    pair = latents("image", "audio")
    same(joint(pair, TIME, prompt(), alignment=Alignment(combine="sum")), joint(pair, TIME, prompt()))


def test_strength_of_the_connectors(nets: dict[str, UNet]) -> None:
    joint, x = JointDenoiser(nets), latents("image", "audio")
    off, on = joint(x, TIME, prompt(), alignment=Alignment("off")), joint(x, TIME, prompt())
    per_sample = joint(x, TIME, prompt(), alignment=Alignment(strength=torch.tensor([0.0, 1.0])))
    for m in x:
        torch.testing.assert_close(per_sample[m][0], off[m][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(per_sample[m][1], on[m][1], rtol=1e-4, atol=1e-5)
    half = joint(x, TIME, prompt(), alignment=Alignment(strength=0.5))
    same(half, joint(x, TIME, prompt(), alignment=Alignment(strength=torch.tensor([0.5, 0.5]))))
    assert differ(half["audio"], off["audio"]) and differ(half["audio"], on["audio"])


def test_image_and_video_share_a_denoiser(nets: dict[str, UNet]) -> None:
    joint, x = JointDenoiser({"vision_denoiser": nets["vision_denoiser"]}), latents("image", "video")
    noise = joint(x, TIME, prompt())
    assert {m: e.shape for m, e in noise.items()} == {m: v.shape for m, v in x.items()}
    single = joint({"image": x["image"]}, TIME, prompt())
    torch.testing.assert_close(single["image"], nets["vision_denoiser"](x["image"], TIME, prompt()))


def test_samples_do_not_depend_on_their_batch(nets: dict[str, UNet]) -> None:
    joint, x = JointDenoiser(nets), latents("video", "audio", "text")
    whole = joint(x, TIME, prompt())
    alone = joint({m: v[1:] for m, v in x.items()}, TIME[1:], prompt()[1:])
    same(alone, {m: v[1:] for m, v in whole.items()})


def test_every_output_may_have_its_own_timestep(nets: dict[str, UNet]) -> None:
    joint, x = JointDenoiser(nets), latents("image", "audio")
    times = {"image": TIME, "audio": torch.tensor([3.5, 700.25])}
    own = {m: joint.denoiser(m).environment_embedding(x[m], times[m]) for m in x}
    made = joint(x, times, prompt())
    for m, other in (("image", "audio"), ("audio", "image")):
        torch.testing.assert_close(made[m], joint.denoiser(m)(x[m], times[m], prompt(), environment=own[other]))
    assert differ(made["audio"], joint(x, TIME, prompt())["audio"])


def test_text_latent_of_the_host_has_a_third_dimension(nets: dict[str, UNet]) -> None:
    x = latents("text")["text"]
    noise = nets["text_denoiser"](x[..., None], TIME, prompt())
    torch.testing.assert_close(noise, nets["text_denoiser"](x, TIME, prompt())[..., None])


def test_register_decides_about_the_module_tree(nets: dict[str, UNet]) -> None:
    loose = JointDenoiser(nets, register=False)
    assert not list(loose.parameters()) and loose.denoiser("image") is nets["vision_denoiser"]
    assert next(iter(JointDenoiser(nets).state_dict())).startswith("vision_denoiser.")


def test_a_fresh_network_predicts_zero_and_its_connectors_are_the_identity() -> None:
    joint = JointDenoiser({"vision_denoiser": UNet2D(CONFIG.vision_denoiser), "text_denoiser": TextUNet(CONFIG.text_denoiser)})
    for name, parameter in joint.named_parameters():
        assert torch.isfinite(parameter).all()
        if name.endswith("_embeds"):
            assert 0.2 < parameter.std() < 0.4
    x = latents("video", "text")
    with torch.no_grad():
        assert all(not noise.any() for noise in joint(x, TIME, prompt()).values())
        for name, head in (("vision_denoiser", "out"), ("text_denoiser", "out")):
            stir(getattr(getattr(joint, name), head))
        same(joint(x, TIME, prompt()), joint(x, TIME, prompt(), alignment=Alignment("off")))


@pytest.mark.parametrize("modality", ["video", "audio", "text"])
def test_a_denoiser_learns(modality: str) -> None:
    torch.manual_seed(0)
    name = {"video": "vision_denoiser", "audio": "audio_denoiser", "text": "text_denoiser"}[modality]
    net: UNet = (TextUNet if modality == "text" else UNet2D)(getattr(CONFIG, name))
    x, target = latents(modality)[modality], latents(modality, seed=1)[modality]
    context = prompt()
    main = [p for n, p in net.named_parameters() if "connecters" not in n]
    optimiser = torch.optim.Adam(main, lr=3e-3)
    losses = []
    for _ in range(8):
        loss = (net(x, TIME, context) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_alignment_trains_connectors_and_environment_encoders_only(nets: dict[str, UNet]) -> None:
    """Frozen UNets in front of trainable connectors, on CPU: every alignment parameter that can matter gets a gradient."""
    joint = JointDenoiser({name: copy.deepcopy(net) for name, net in nets.items()})
    for net in (joint.denoiser("video"), joint.denoiser("audio"), joint.denoiser("text")):
        chosen = {id(p) for p in alignment_parameters(net)}
        for name, parameter in net.named_parameters():
            aligns = name.startswith(("connecters_out", "input_block_connecters_in", "output_block_connecters_in"))
            assert (id(parameter) in chosen) == aligns
            parameter.requires_grad_(aligns)
    x = latents("video", "audio", "text")
    sum(noise.square().mean() for noise in joint(x, TIME, prompt()).values()).backward()
    for name, parameter in joint.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    for modality in ("video", "audio", "text"):
        grads = [p.grad for n, p in joint.denoiser(modality).named_parameters() if n.startswith("connecters_out.0")]
        assert all(g is not None and g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("modality", ["video", "audio", "text"])
def test_connectors_start_as_copies_of_the_prompt_attention(nets: dict[str, UNet], modality: str) -> None:
    name = {"video": "vision_denoiser", "audio": "audio_denoiser", "text": "text_denoiser"}[modality]
    net = copy.deepcopy(nets[name])
    copy_prompt_attention_into_connectors(net)
    environment, copied = prompt(), 0
    for connectors, blocks in (
        (net.input_block_connecters_in, net.input_blocks),
        (net.output_block_connecters_in, net.output_blocks),
    ):
        for index, holder in connectors.items():
            connector: Any = holder[0]  # type: ignore[index]
            x = torch.randn(2, connector.norm.num_channels, 4, 1)
            change = connector(x, environment) - x
            prompts: list[Any] = [layer for layer in blocks[int(index)] if layer.__class__ is connector.__class__]  # type: ignore[union-attr]
            if not prompts:
                assert not change.any()
                continue
            attention = prompts[0].transformer_blocks[0].attn2
            value = attention.to_out[0].weight @ (attention.to_v.weight @ environment[:, 0].T)  # (C, B)
            expected = (prompts[0].proj_out.weight[:, :, 0, 0] @ value).T[:, :, None, None]
            torch.testing.assert_close(change, expected.expand_as(change), rtol=1e-4, atol=1e-5)
            assert change.abs().max() > 1e-2
            copied += 1
    assert copied > 0
    # The prompt path itself is untouched.
    x = latents(modality)[modality]
    torch.testing.assert_close(net(x, TIME, prompt()), nets[name](x, TIME, prompt()))


def test_copying_needs_equal_widths() -> None:
    config = dataclasses.replace(CONFIG.audio_denoiser, connector_dim=64)
    with pytest.raises(CoDiError, match=f"64.*{WIDTH}"):
        copy_prompt_attention_into_connectors(UNet2D(config, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near(nets: dict[str, UNet], dtype: torch.dtype) -> None:
    joint = JointDenoiser(nets)
    low = JointDenoiser({name: copy.deepcopy(net).to(dtype) for name, net in nets.items()})
    x = latents("image", "audio", "text")
    exact = joint(x, TIME, prompt())
    rough = low({m: v.to(dtype) for m, v in x.items()}, TIME, prompt().to(dtype))
    for m in x:
        assert rough[m].dtype == dtype
        assert float((rough[m].float() - exact[m]).norm() / exact[m].norm()) < 0.1


def test_refusals(nets: dict[str, UNet]) -> None:
    joint, x = JointDenoiser({"audio_denoiser": nets["audio_denoiser"]}), latents("audio", "text", "video")
    with pytest.raises(CoDiError, match="'text' needs text_denoiser.*audio_denoiser"):
        joint({"audio": x["audio"], "text": x["text"]}, TIME, prompt())
    with pytest.raises(CoDiError, match="smell"):
        joint.denoiser("smell")
    with pytest.raises(CoDiError, match="radio_denoiser"):
        JointDenoiser({"radio_denoiser": nets["audio_denoiser"]})
    with pytest.raises(CoDiError, match="no timestep for output 'audio'"):
        joint({"audio": x["audio"]}, {"text": TIME}, prompt())
    with pytest.raises(CoDiError, match="no output"):
        joint({}, TIME, prompt())
    with pytest.raises(CoDiError, match="no prompt for output 'audio'"):
        joint({"audio": x["audio"]}, TIME, {"text": prompt()})
    with pytest.raises(CoDiError, match=rf"\(2, 1, 32\).*{WIDTH}"):
        joint({"audio": x["audio"]}, TIME, torch.zeros(2, 1, 32))
    with pytest.raises(CoDiError, match="no temporal modules"):
        joint({"audio": torch.zeros(2, 8, 3, 16, 8)}, TIME, prompt())
    with pytest.raises(CoDiError, match="multiples of 2"):
        joint({"audio": torch.zeros(2, 8, 15, 8)}, TIME, prompt())
    vision = JointDenoiser(nets)
    with pytest.raises(CoDiError, match="at most 30 frames, got 31"):
        vision({"video": torch.zeros(2, 4, 31, 2, 2)}, TIME, prompt())
    with pytest.raises(CoDiError, match=r"\(2, 65\).*\(batch, 64\)"):
        vision({"text": torch.zeros(2, 65)}, TIME, prompt())

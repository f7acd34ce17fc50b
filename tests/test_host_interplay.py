"""CoDi's shared space and the host's CLIP; CoDi's autoencoders under the host's VAE nodes; the host's Save nodes."""

from __future__ import annotations

import json

import pytest
import torch
from codi.codi_models.encoders.shared_space import SharedSpace
from host.graph import base_graph, node, sampled, shown
from host.session import Failed
from torch.nn.functional import normalize


@pytest.fixture
def codi(session):
    """The handle of `tiny`, with means in its shared space for the length of a test."""
    handle = session.pack.nodes.host.handle.open_handle("tiny")
    saved = handle.model.space
    generator = torch.Generator().manual_seed(3)
    # Of the pack that the host loaded: the tests' own import is another module.
    cls = type(saved)
    assert cls.__name__ == SharedSpace.__name__
    handle.model.space = cls(
        {m: normalize(torch.randn(128, generator=generator), dim=0) * 0.5 for m in ("text", "image", "audio", "video")}
    )
    yield handle
    handle.model.space = saved


def run(session, kind: str, **inputs):
    with torch.inference_mode():
        return session.classes[kind].execute(**inputs).result


class _Embeds:
    """A CLIP_VISION_OUTPUT of some width."""

    def __init__(self, batch: int, width: int = 128) -> None:
        self.image_embeds = torch.randn(batch, width, generator=torch.Generator().manual_seed(0)) * 12


def test_clip_vision_goes_in_and_comes_out_again(session, codi):
    given = _Embeds(3)
    (conditioning,) = run(session, "CoDiFromCLIPVision", codi=codi, clip_vision_output=given)
    point = conditioning[0][0]
    unit = normalize(given.image_embeds, dim=-1)[:, None]
    assert torch.allclose(point, codi.model.space.align(unit, "image"), atol=1e-6)
    settings = {"codi": codi, "conditioning": conditioning, "as_kind": "image"}
    (back,) = run(session, "CoDiToCLIPVision", **settings, length=0.0, like=given)
    length = given.image_embeds.norm(dim=-1).mean()
    assert torch.allclose(back["image_embeds"], unit[:, 0] * length, atol=1e-4)
    (long,) = run(session, "CoDiToCLIPVision", **settings, length=7.0)
    assert torch.allclose(long.image_embeds.norm(dim=-1), torch.full((3,), 7.0), atol=1e-4)
    (plain,) = run(session, "CoDiToCLIPVision", **settings, length=0.0)
    assert torch.allclose(plain.image_embeds, unit[:, 0], atol=1e-5)


def test_a_sound_prompts_the_stock_unclip_node(session):
    graph = base_graph("text")
    graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
    graph["sound"] = node("CoDiEncodeAudio", codi=["load", 1], audio=["scene", 1])
    graph["out"] = node("CoDiToCLIPVision", codi=["load", 1], conditioning=["sound", 0], as_kind="image", length=0.0)
    graph["un"] = node("unCLIPConditioning", conditioning=["yes", 0], clip_vision_output=["out", 0], strength=1.0, noise_augmentation=0.0)
    session.run(shown(graph, ["un", 0]))
    embeds = session.value("un")[0][1]["unclip_conditioning"][0]["clip_vision_output"].image_embeds
    assert torch.allclose(embeds, session.value("sound")[0][0][:, 0], atol=1e-6)  # this model has no means to put back


def test_what_reads_image_embeds_takes_a_sound_and_what_reads_hidden_states_says_why_not(session, codi):
    """The host's own readers: unCLIP's and Stable Cascade's of image_embeds, style models of hidden states."""
    import comfy.conds
    import comfy.model_base
    import comfy.sd

    prompt = [[normalize(torch.randn(1, 1, 128), dim=-1), {}]]
    (out,) = run(session, "CoDiToCLIPVision", codi=codi, conditioning=prompt, as_kind="audio", length=9.0)

    class Noise:
        """As unCLIP's noise on embeddings, without noise."""

        max_noise_level = 1000

        def __call__(self, x, noise_level, seed=None):
            return x.reshape(1, -1), torch.zeros(1, 4)

    unclip = [{"clip_vision_output": out, "strength": 1.0, "noise_augmentation": 0.0}]
    adm = comfy.model_base.unclip_adm(unclip, "cpu", Noise())
    assert torch.equal(adm[:, :128], out.image_embeds)
    given = {"pooled_output": torch.zeros(1, 4), "unclip_conditioning": unclip, "cross_attn": None}
    cascade = comfy.model_base.StableCascade_C.extra_conds(object.__new__(comfy.model_base.StableCascade_C), **given)
    assert torch.equal(cascade["clip_img"].cond[0], out.image_embeds)
    style = comfy.sd.StyleModel(torch.nn.Linear(128, 4))
    session.classes["TestStyle"] = type(
        "TestStyle", (), {"RETURN_TYPES": ("STYLE_MODEL",), "FUNCTION": "go", "CATEGORY": "test",
                          "INPUT_TYPES": classmethod(lambda cls: {"required": {}}), "go": lambda self: (style,)},
    )  # fmt: skip
    graph = base_graph("text")
    graph["out"] = node("CoDiToCLIPVision", codi=["load", 1], conditioning=["yes", 0], as_kind="image", length=0.0)
    graph["style"] = node("TestStyle")
    links = {"conditioning": ["yes", 0], "style_model": ["style", 0], "clip_vision_output": ["out", 0]}
    graph["apply"] = node("StyleModelApply", **links, strength=1.0, strength_type="multiply")
    with pytest.raises(Failed, match="holds image_embeds only; this node reads last_hidden_state") as failure:
        session.run(shown(graph, ["apply", 0]))
    assert failure.value.node == "StyleModelApply"
    for name in ("last_hidden_state", "penultimate_hidden_states", "all_hidden_states", "mm_projected"):
        assert not hasattr(out, name) and getattr(out, name, None) is None
        with pytest.raises(ValueError, match=name):
            out[name]
    assert out["image_embeds"] is out.image_embeds and len(out.image_sizes) == 1


def test_the_hosts_clip_vision_is_the_models_own(session, tmp_path):
    """The same weights in the host's CLIP vision tower and in CoDi's give the same prompt."""
    import comfy.clip_vision

    handle = session.pack.nodes.host.handle.open_handle("tiny")
    own, config = handle.model.clip, handle.config.clip
    settings = {
        "hidden_size": config.vision_dim,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "intermediate_size": config.vision_mlp,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "projection_dim": config.projection_dim,
        "num_channels": 3,
        "hidden_act": "quick_gelu",
        "model_type": "clip_vision_model",
    }
    file = tmp_path / "clip_vision.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    host_clip = comfy.clip_vision.ClipVisionModel(str(file))
    weights = {k: v for k, v in own.state_dict().items() if k.startswith(("vision_model.", "visual_projection."))}
    missing, _ = host_clip.load_sd(weights)
    assert not missing
    image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    seen = comfy.clip_vision.Output()
    with torch.inference_mode():  # not encode_image, which reads the layer before the last: this tower has one
        pixels = comfy.clip_vision.clip_preprocess((image * 255).round() / 255, size=config.image_size).float()
        seen["image_embeds"] = host_clip.model(pixel_values=pixels)[2]
    (theirs,) = run(session, "CoDiFromCLIPVision", codi=handle, clip_vision_output=seen)
    (ours,) = run(session, "CoDiEncodeImage", codi=handle, image=image)
    assert torch.allclose(theirs[0][0], ours[0][0], atol=2e-2)
    assert (theirs[0][0][0] - theirs[0][0][1]).abs().max() > 1e-3


@pytest.mark.parametrize("projected", [True, False], ids=["with projection", "without"])
def test_the_hosts_clip_text_is_the_models_own(session, codi, projected):
    """The same weights in the host's CLIP text tower; where it has no projection of its own, CoDi's is taken."""
    clip = host_text_clip(session, codi, projected)
    (conditioning,) = run(session, "CoDiFromCLIP", codi=codi, clip=clip, text="a red square")
    ids = torch.tensor([[t[0] for t in clip.tokenize("a red square")["l"][0]]])
    own = codi.model.clip
    with torch.inference_mode():
        expected = codi.model.space.align(own.encode_text(ids), "text")
    assert conditioning[0][0].shape == (1, 1, 128)
    assert torch.allclose(conditioning[0][0], expected, atol=1e-4)


def host_text_clip(session, codi, projected: bool):
    """A host CLIP of the tiny model's text tower, with a tokenizer of a few ids."""
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.ops
    import comfy.sd
    import comfy.sd1_clip

    config = codi.config.clip
    settings = {
        "hidden_act": "quick_gelu",
        "hidden_size": config.text_dim,
        "intermediate_size": config.text_mlp,
        "max_position_embeddings": config.text_positions,
        "num_attention_heads": config.text_heads,
        "num_hidden_layers": config.text_layers,
        "vocab_size": config.vocab_size,
        "eos_token_id": config.vocab_size - 1,
    }
    special = {"start": config.vocab_size - 2, "end": config.vocab_size - 1, "pad": config.vocab_size - 1}
    tower = comfy.sd1_clip.SDClipModel(
        device="cpu", max_length=config.text_positions, textmodel_json_config=settings, dtype=torch.float32, special_tokens=special
    )
    weights = {k: v for k, v in codi.model.clip.state_dict().items() if k.startswith(("text_model.", "text_projection."))}
    key = "text_model.embeddings.token_embedding.weight"
    weights[key] = torch.nn.functional.pad(weights[key], (0, 0, 0, 49408 - config.vocab_size))  # the host's tower has CLIP's vocabulary
    if not projected:
        weights["text_projection.weight"] = torch.eye(config.text_dim)
    tower.load_sd(weights)

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip_l = tower

    class Tokenizer:
        def tokenize_with_weights(self, text, return_word_ids=False, **_):
            ids = [special["start"], *(ord(c) for c in text), special["end"]]
            return {"l": [[(i, 1.0) for i in ids + [special["pad"]] * (config.text_positions - len(ids))]]}

    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model, clip.tokenizer = Both(), Tokenizer()
    clip.tokenizer_options, clip.layer_idx, clip.use_clip_schedule = {}, None, False
    place = mm.text_encoder_device()
    clip.patcher = comfy.model_patcher.ModelPatcher(clip.cond_stage_model, load_device=place, offload_device=place)
    return clip


def test_foreign_embeddings_are_refused(session, codi):
    def refuses(words: str, kind: str, **inputs) -> None:
        with pytest.raises(Exception, match=words):
            run(session, kind, codi=codi, **inputs)

    refuses("1280 wide, the shared space of tiny is 128", "CoDiFromCLIPVision", clip_vision_output=_Embeds(1, 1280))
    refuses("holds no image_embeds", "CoDiFromCLIPVision", clip_vision_output=object())
    foreign = {"as_kind": "image", "length": 0.0}
    refuses("make it with CoDi's Encode nodes", "CoDiToCLIPVision", conditioning=[[torch.ones(1, 77, 128), {}]], **foreign)
    refuses("768 wide", "CoDiToCLIPVision", conditioning=[[torch.ones(1, 1, 768), {}]], **foreign)

    class Other:
        cond_stage_model = torch.nn.Linear(1, 1)

    refuses("no CLIP ViT-L/14", "CoDiFromCLIP", clip=Other(), text="")


def image_graph(width: int = 64, height: int = 64) -> dict:
    graph = base_graph("image")
    graph["vae"] = node("CoDiVAE", codi=["load", 1])
    graph["pixels"] = node("EmptyImage", width=width, height=height, batch_size=2, color=0x3060C0)
    return graph


def test_stock_vae_nodes_take_the_picture_autoencoder(session):
    graph = image_graph(70, 68)
    graph["mask"] = node("SolidMask", value=1.0, width=70, height=68)
    graph["plain"] = node("VAEEncode", pixels=["pixels", 0], vae=["vae", 0])
    graph["tiled"] = node(
        "VAEEncodeTiled", pixels=["pixels", 0], vae=["vae", 0], tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8
    )
    graph["fill"] = node("VAEEncodeForInpaint", pixels=["pixels", 0], vae=["vae", 0], mask=["mask", 0], grow_mask_by=6)
    links = {"positive": ["yes", 0], "negative": ["no", 0], "vae": ["vae", 0], "pixels": ["pixels", 0], "mask": ["mask", 0]}
    graph["paint"] = node("InpaintModelConditioning", **links, noise_mask=True)
    graph["back"] = node("VAEDecode", samples=["plain", 0], vae=["vae", 0])
    graph["tiles"] = node(
        "VAEDecodeTiled", samples=["plain", 0], vae=["vae", 0], tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8
    )
    for i, link in enumerate((["tiled", 0], ["fill", 0], ["paint", 2], ["back", 0], ["tiles", 0])):
        graph[f"show{i}"] = node("PreviewAny", source=link)
    session.run(graph)
    plain = session.value("plain")["samples"]
    assert plain.shape == (2, 4, 8, 8) and torch.equal(plain, session.value("tiled")["samples"])
    assert session.value("fill")["samples"].shape == (2, 4, 8, 8) and session.value("fill")["noise_mask"].shape[-2:] == (64, 64)
    assert session.value("paint", 2)["samples"].shape == (2, 4, 8, 8)
    assert session.value("back").shape == (2, 64, 64, 3) and torch.allclose(session.value("back"), session.value("tiles"), atol=1e-5)


def test_inpainting_with_stock_nodes_keeps_what_the_mask_keeps(session):
    graph = sampled("image", batch_size=2)
    graph.update({k: v for k, v in image_graph().items() if k in ("vae", "pixels")})
    graph["mask"] = node("SolidMask", value=0.0, width=64, height=64)
    graph["half"] = node("SolidMask", value=1.0, width=32, height=64)
    graph["both"] = node("MaskComposite", destination=["mask", 0], source=["half", 0], x=32, y=0, operation="add")
    graph["plain"] = node("VAEEncode", pixels=["pixels", 0], vae=["vae", 0])
    graph["masked"] = node("SetLatentNoiseMask", samples=["plain", 0], mask=["both", 0])
    graph["sample"]["inputs"]["latent"] = ["masked", 0]
    session.run(shown(graph, ["sample", 0]))
    before, after = session.value("plain")["samples"], session.value("sample")["samples"]
    assert torch.allclose(after[..., :4], before[..., :4], atol=1e-4)
    assert (after[..., 4:] - before[..., 4:]).abs().max() > 1e-2


def test_pictures_that_cannot_be_encoded(session):
    graph = image_graph(4, 64)
    graph["plain"] = node("VAEEncode", pixels=["pixels", 0], vae=["vae", 0])
    with pytest.raises(Failed, match="8 x 8 or more"):
        session.run(shown(graph, ["plain", 0]))
    vae = session.pack.nodes.host.vae.ImageVAE(session.pack.nodes.host.handle.open_handle("tiny"))
    for pixels, words in ((torch.full((1, 16, 16, 3), float("nan")), "NaN"), (torch.zeros(0, 16, 16, 3), "cannot be encoded")):
        with pytest.raises(Exception, match=words):
            vae.encode(pixels)
    assert vae.encode(torch.rand(1, 3, 16, 16, 4)).shape == (3, 4, 2, 2) and vae.encode(torch.rand(1, 16, 16, 1)).shape == (1, 4, 2, 2)

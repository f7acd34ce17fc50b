"""The host's nodes that merge and save, on CoDi's MODELs: whole files that `convert` makes model folders of, or a refusal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from codi.codi_models.checkpoints import read_weights
from codi.codi_models.components import COMPONENTS
from codi.codi_models.config import CoDiConfig
from codi.codi_models.conversion.convert import convert
from host.graph import base_graph, node
from host.session import Failed

ALL = ("video", "image", "text", "audio")
MEMBERS = ("vision_denoiser", "audio_denoiser", "text_denoiser")


def saved(session, base: Path, *, joint: bool, model: str, prefix: str) -> Path:
    """File of Save Model, of a MODEL whose self-attention values are doubled and merged half with the plain one."""
    graph = base_graph(*ALL, model=model)
    graph["alone"] = node("CoDiDenoiser", codi=["load", 1], denoiser="vision_denoiser", dtype="auto")
    start = ["load" if joint else "alone", 0]
    graph["twice"] = node("UNetSelfAttentionMultiply", model=start, q=1.0, k=1.0, v=2.0, out=1.0)
    graph["merged"] = node("ModelMergeSimple", model1=["twice", 0], model2=start, ratio=0.5)
    graph["save"] = node("ModelSave", model=["merged", 0], filename_prefix=prefix)
    before = set(base.rglob("*.safetensors"))
    session.run({**graph, "one": node("PreviewAny", source=["merged", 0])})
    (file,) = set(base.rglob("*.safetensors")) - before
    return file


@pytest.mark.parametrize("model", ["tiny", "tiny-shifted"])
@pytest.mark.parametrize("joint", [False, True], ids=["alone", "joint"])
def test_a_saved_model_makes_a_model_folder(session, base, tmp_path, joint, model):
    folder = base / "models" / "codi" / model
    file = saved(session, base, joint=joint, model=model, prefix=f"whole/{model}")
    result = convert([file], tmp_path / "made", dtype="fp32", config=CoDiConfig.load(folder / "config.json"))
    assert set(result.components) == (set(MEMBERS) if joint else {"vision_denoiser"})
    for name in result.components:
        made, own = read_weights(tmp_path / "made" / f"{name}.safetensors")[0], read_weights(folder / f"{name}.safetensors")[0]
        assert made.keys() == own.keys()
        for key, weight in made.items():
            changed = key.endswith("attn1.to_v.weight")
            torch.testing.assert_close(weight, own[key] * (1.5 if changed else 1.0), rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("joint", [False, True], ids=["alone", "joint"])
def test_a_checkpoint_with_other_networks_is_refused_and_leaves_no_file(session, base, joint):
    host = session.pack.nodes.host
    patcher = host.denoiser.denoiser_model(host.handle.open_handle("tiny"), "audio_denoiser")
    patcher = host.compose.compose([patcher]) if joint else patcher
    clip = SimpleNamespace(load_model=lambda: patcher, state_dict_for_saving=dict, get_sd=dict)
    before = set(base.rglob("*.safetensors*"))
    with pytest.raises(ValueError, match="save the MODEL alone with Save Model"), torch.inference_mode():
        session.classes["CheckpointSave"]().save(patcher, clip, host.vae.ImageVAE(host.handle.open_handle("tiny")), "refused/it")
    assert set(base.rglob("*.safetensors*")) == before


def test_vaes_are_saved_whole_or_refused(session, base):
    for slot, (kind, ends) in enumerate({"image": None, "audio": "copy the model folder"}.items()):
        graph = {"load": base_graph("text")["load"], "vae": node("CoDiVAE", codi=["load", 1])}
        graph["save"] = node("VAESave", vae=["vae", slot], filename_prefix=f"vae/{kind}")
        before = set(base.rglob("*.safetensors*"))
        if ends:
            with pytest.raises(Failed, match=ends):
                session.run(graph)
            assert set(base.rglob("*.safetensors*")) == before
            continue
        session.run(graph)
        (file,) = set(base.rglob("*.safetensors")) - before
        made, own = read_weights(file)[0], read_weights(base / "models" / "codi" / "tiny" / "image_autoencoder.safetensors")[0]
        assert made.keys() == own.keys() and all(torch.equal(made[k].float(), own[k].float()) for k in own)


def test_merging_gathers_the_weights_a_few_times_whatever_their_number(session, monkeypatch):
    latent_model = session.pack.nodes.host.latent_model.LatentModel
    plain, calls = latent_model._weights, []
    monkeypatch.setattr(latent_model, "_weights", lambda self, *a, **kw: calls.append(1) or plain(self, *a, **kw))
    host = session.pack.nodes.host
    codi = host.handle.open_handle("tiny")
    joint = host.compose.compose([host.denoiser.denoiser_model(codi, name) for name in MEMBERS])
    merged, _ = session.classes["ModelMergeBlocks"]().merge(joint, joint, input=0.5, middle=0.5, out=0.5)[0], calls.clear()
    session.classes["ModelMergeBlocks"]().merge(merged, joint, input=0.5, middle=0.5, out=0.5)
    assert len(joint.model.weight_shapes()) > 300 and len(calls) < 12


def test_what_another_model_left_loaded_does_not_get_into_the_file(session, base):
    """A MODEL's own patches are saved, whichever MODEL of the same networks was loaded last."""
    import comfy.model_management as mm

    joint = session.pack.nodes.host.compose.compose(
        [session.pack.nodes.host.denoiser.denoiser_model(session.pack.nodes.host.handle.open_handle("tiny"), name) for name in MEMBERS]
    )
    key = next(k for k in joint.members()["vision_denoiser"].model_state_dict() if k.endswith("attn1.to_v.weight"))
    whole = key.replace("diffusion_model.", "diffusion_model.vision_denoiser.")
    file = base / "models" / "codi" / "tiny" / "vision_denoiser.safetensors"
    plain = read_weights(file)[0][key.removeprefix("diffusion_model.")].float()  # in the network itself lies what was loaded last
    ours, other = joint.clone(), joint.clone()
    for patcher, value in ((ours, 2.0), (other, 5.0)):
        assert patcher.add_patches({whole: (torch.full_like(plain, value),)}) == [whole]
    with torch.inference_mode():
        mm.load_models_gpu([other, *other.members().values()])
        found = ours.state_dict_for_saving()
    weight = found[COMPONENTS["vision_denoiser"].published_prefix + key.removeprefix("diffusion_model.")]
    torch.testing.assert_close(weight.to("cpu").float(), plain + 2.0)

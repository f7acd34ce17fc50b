"""Joint LATENTs split, joined, batched, repeated, picked from, saved and loaded."""

from __future__ import annotations

import json

import pytest
import torch
from host.graph import base_graph, node, sampled, shown
from host.session import Failed

NAMES = ("video", "image", "text", "audio")


def parts(latent: dict) -> list[torch.Tensor]:
    samples = latent["samples"]
    return list(samples.unbind()) if samples.is_nested else [samples]


def value(session, graph: dict, link: list):
    session.run(shown(graph, link))
    return session.value(*link)


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def test_split_and_join_are_inverse(session):
    graph = sampled(*NAMES, batch_size=2)
    graph["split"] = node("CoDiSplitLatent", codi=["load", 1], latent=["sample", 0])
    graph["join"] = node("CoDiJoinLatents", codi=["load", 1], **{f"latents.latent{i}": ["split", 3 - i] for i in range(4)})
    joined = value(session, graph, ["join", 0])
    assert equal(joined, session.value("sample"))
    assert torch.equal(session.value("split", 2)["samples"], parts(session.value("sample"))[2])


def test_an_output_that_is_not_there_blocks_what_hangs_on_it(session):
    graph = sampled("audio")
    graph["split"] = node("CoDiSplitLatent", codi=["load", 1], latent=["sample", 0])
    graph["gone"] = node("PreviewAny", source=["split", 1])
    session.forget()
    assert "gone" not in session.run({**graph, "show": node("PreviewAny", source=["split", 3])})


def test_batch_repeat_and_select_with_masks(session):
    graph = sampled("image", "audio", batch_size=2)
    graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
    graph["keep"] = node("CoDiKeep", codi=["load", 1], latent=["empty", 0], image=["scene", 0])
    graph["sample"]["inputs"]["latent"] = ["keep", 0]
    two = {f"latents.latent{i}": [name, 0] for i, name in enumerate(("sample", "keep"))}
    graph["batch"] = node("CoDiBatchLatents", codi=["load", 1], **two)
    graph["some"] = node("CoDiSelectFromBatch", codi=["load", 1], latent=["batch", 0], samples="3, 0, -1")
    graph["repeat"] = node("CoDiRepeatLatent", codi=["load", 1], latent=["some", 0], amount=2)
    repeated = value(session, graph, ["repeat", 0])
    one, other = parts(session.value("sample")), parts(session.value("keep"))
    for got, a, b in zip(parts(repeated), one, other, strict=True):
        assert torch.equal(got, torch.cat([torch.stack([b[1], a[0], b[1]])] * 2))
    masks = repeated["noise_mask"].unbind()
    assert masks[0].shape == (6, 1, 8, 8) and not masks[0].any() and masks[1].all()
    graph["joined"] = node("CoDiJoinLatents", codi=["load", 1], **two)  # of the same outputs: a batch
    graph["more"] = node("CoDiSelectFromBatch", codi=["load", 1], latent=["some", 0], samples="", repeat=2)
    session.run({**shown(graph, ["joined", 0]), "other": node("PreviewAny", source=["batch", 0])})
    assert equal(session.value("joined"), session.value("batch"))
    assert equal(value(session, graph, ["more", 0]), repeated)
    graph["again"] = node("CoDiJointSampler", **{**graph["sample"]["inputs"], "latent": ["repeat", 0]})
    assert torch.equal(parts(value(session, graph, ["again", 0]))[0], parts(repeated)[0])


def test_saved_and_loaded(session, base):
    graph = sampled(*NAMES)
    graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
    graph["keep"] = node("CoDiKeep", codi=["load", 1], latent=["empty", 0], image=["scene", 0])
    graph["sample"]["inputs"]["latent"] = ["keep", 0]
    graph["save"] = node("CoDiSaveLatent", codi=["load", 1], latent=["sample", 0], filename_prefix="mine/joint")
    (entry,) = session.run(graph)["save"]["latents"]
    before = session.value("sample")
    assert (base / "output" / entry["subfolder"] / entry["filename"]).is_file()
    name = f"{entry['subfolder']}/{entry['filename']} [output]"
    graph = {"codi": node("CoDiLoad", name="tiny"), "file": node("CoDiLoadLatent", codi=["codi", 0], file=name)}
    after = value(session, graph, ["file", 0])
    assert equal(before, after) and after["type"] == "codi"
    assert all(torch.equal(a, b) for a, b in zip(after["noise_mask"].unbind(), before["noise_mask"].unbind(), strict=True))


@pytest.mark.parametrize(
    "file", ["../secret.codi.safetensors", "/etc/passwd", "../../a.codi.safetensors [output]", "nothing.codi.safetensors"]
)
def test_nothing_outside_the_folders_is_read(session, base, file):
    (base / "secret.codi.safetensors").write_bytes(b"x")
    graph = {"codi": node("CoDiLoad", name="tiny"), "file": node("CoDiLoadLatent", codi=["codi", 0], file=file)}
    with pytest.raises(Failed, match="inside the input folder|there is no file"):
        session.run(shown(graph, ["file", 0]))


@pytest.mark.parametrize("prefix", ["../out", "/tmp/out"])
def test_nothing_outside_the_folders_is_written(session, prefix):
    graph = base_graph("text")
    graph["save"] = node("CoDiSaveLatent", codi=["load", 1], latent=["empty", 0], filename_prefix=prefix)
    with pytest.raises(Failed, match="output folder"):
        session.run(graph)


@pytest.mark.parametrize("content", [b"not a file of tensors", b""])
def test_damaged_files(session, base, content):
    (base / "input").mkdir(exist_ok=True)
    (base / "input" / "bad.codi.safetensors").write_bytes(content)
    graph = {"codi": node("CoDiLoad", name="tiny"), "file": node("CoDiLoadLatent", codi=["codi", 0], file="bad.codi.safetensors")}
    with pytest.raises(Failed, match="bad.codi.safetensors"):
        session.run(shown(graph, ["file", 0]))


def test_places_in_a_batch_are_kept_and_are_numbers(session, base):
    """The host draws noise up to the largest of them: a file may not make it draw without end."""
    from safetensors.torch import load_file, save_file

    graph = base_graph("image", batch_size=2)
    handle, files = session.pack.nodes.host.handle.open_handle("tiny"), session.pack.nodes.host.latent_files
    latent = {**value(session, graph, ["empty", 0]), "batch_index": [7, 3]}
    name, folder = files.save(latent, "mine/places", handle.config)
    assert files.load(f"{folder}/{name} [output]", handle.config)["batch_index"] == [7, 3]
    path = base / "output" / folder / name
    for places in ([7, 10**12], [7], [0.5, 1], "x", {"a": 1}, [True, [1]], None, "[" * 5000):
        text = places if isinstance(places, str) else json.dumps(places)
        metadata = {"kind": "codi latent 1", "model": "tiny", "sample_rate": "16000", "batch_index": text}
        save_file(load_file(path), path, metadata={"codi": json.dumps(metadata)})
        with pytest.raises(Exception, match="batch_index"):
            files.load(f"{folder}/{name} [output]", handle.config)


def test_what_is_refused(session):
    graph = base_graph("text")
    graph["more"] = node("CoDiEmptyJointLatent", **{**graph["empty"]["inputs"], "audio": True, "batch_size": 2})
    links = {"latents.latent0": ["empty", 0], "latents.latent1": ["more", 0]}
    for kind, words in (("CoDiJoinLatents", "text comes twice"), ("CoDiBatchLatents", "same outputs")):
        graph["it"] = node(kind, codi=["load", 1], **links)
        with pytest.raises(Failed, match=words) as failure:
            session.run(shown(graph, ["it", 0]))
        assert failure.value.node == kind
    for samples, words in (("5", "batch of 1"), (",", "none"), ("a", "whole numbers")):
        graph["it"] = node("CoDiSelectFromBatch", codi=["load", 1], latent=["empty", 0], samples=samples)
        with pytest.raises(Failed, match=words):
            session.run(shown(graph, ["it", 0]))

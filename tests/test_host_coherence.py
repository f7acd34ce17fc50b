"""Outputs encoded back, compared and picked; the picture of the shared space; CoDi Preview."""

from __future__ import annotations

import pytest
import torch
from codi.codi_models import coherence, latents
from codi.codi_models.model import CoDi
from host.graph import decoded, node, sampled, shown
from host.session import Failed

ALL = ("video", "image", "text", "audio")


@pytest.fixture(scope="module")
def headless(base) -> CoDi:
    return CoDi.from_pretrained(base / "models" / "codi" / "tiny", device="cpu")


def encoded(headless: CoDi, samples: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parts of a latent, decoded and encoded by the headless code."""
    config, made = headless.config, {}
    for modality, z in samples.items():
        if modality == "text":
            made[modality] = latents.decode_text(headless, z[..., 0] * config.text_autoencoder.scale, range(len(z)))
        elif modality == "audio":
            made[modality] = latents.decode_audio(headless, z * config.audio_autoencoder.scale)
        else:
            made[modality] = latents.decode_pixels(headless, z * config.image_autoencoder.scale)
    return coherence.encode_outputs(headless, made)


def parts(session, names, link=("sample", 0)) -> dict[str, torch.Tensor]:
    samples = session.value(*link)["samples"]
    return dict(zip(names, samples.unbind() if samples.is_nested else [samples], strict=True))


def test_outputs_are_encoded_back_and_nothing_runs_on_what_is_not_there(session, headless):
    graph = sampled("image", "audio", batch_size=2)
    graph["back"] = node("CoDiEncodeOutputs", codi=["load", 1], latent=["sample", 0])
    for i, name in enumerate(ALL):
        graph[name] = node("PreviewAny", source=["back", i])
    ui = session.run(graph)
    assert {"image", "audio"} <= ui.keys() and not {"video", "text"} & ui.keys()
    expected = encoded(headless, parts(session, ("image", "audio")))
    for slot, name in ((1, "image"), (3, "audio")):
        assert torch.allclose(session.value("back", slot)[0][0], expected[name], atol=1e-4)


def test_coherence_compares_prompts_and_outputs(session, headless):
    graph = sampled(*ALL, batch_size=2)
    graph["mean"] = node("CoDiCoherence", codi=["load", 1], latent=["sample", 0], names="", **{"prompts.prompt0": ["yes", 0]})
    ui = session.run(graph)["mean"]
    made = encoded(headless, parts(session, ALL))
    prompt = session.value("yes")[0][0]
    matrix = coherence.similarities([prompt, *made.values()])
    image, score, table = (session.value("mean", i) for i in range(3))
    assert score == pytest.approx(float(coherence.scores(matrix, 4).mean()), abs=1e-3)
    assert image.shape[0] == 2 and image.shape[-1] == 3 and (image[0] - image[1]).abs().max() > 0.1
    assert len(ui["images"]) == 3 and ui["text"][0] == table
    assert '"a red square bounces twice" - made video: ' in table and "item 2: " in table
    assert len(table.splitlines()) == 2 * (1 + 10)

    graph["mean"]["inputs"]["names"] = "wish"
    session.run(graph)
    assert "wish - made video" in session.value("mean", 2)


def test_coherence_of_prompts_alone(session):
    graph = {"load": node("CoDiLoad", name="tiny")}
    for i, text in enumerate(("a red square", "a blue star")):
        graph[f"t{i}"] = node("CoDiEncodeText", codi=["load", 0], text=text)
    links = {f"prompts.prompt{i}": [f"t{i}", 0] for i in range(2)}
    graph["c"] = node("CoDiCoherence", codi=["load", 0], **links)
    graph["p"] = node("CoDiSharedSpace", codi=["load", 0], names="one, two", **links)
    ui = session.run(graph)
    a, b = (session.value(f"t{i}")[0][0].flatten() for i in range(2))
    assert session.value("c", 1) == pytest.approx(float(a @ b), abs=1e-4)
    assert session.value("p").shape == (1, 560, 720, 3) and ui["p"]["images"]


def test_the_best_of_a_batch(session, headless):
    graph = sampled("image", "text", "audio", batch_size=4)
    links = {"codi": ["load", 1], "latent": ["sample", 0], "prompt": ["yes", 0]}
    graph["pick"] = node("CoDiPickBest", **links, count=2, by="all")
    ui = session.run(graph)["pick"]
    samples = parts(session, ("image", "text", "audio"))
    matrix = coherence.similarities([session.value("yes")[0][0], *encoded(headless, samples).values()])
    score = coherence.scores(matrix, 3)
    rows = coherence.best(score, 2)
    chosen = session.value("pick")
    assert chosen["batch_index"] == rows and chosen["type"] == "codi"
    for part, whole in zip(chosen["samples"].unbind(), samples.values(), strict=True):
        assert torch.equal(part, whole[rows])
    assert session.value("pick", 1) == pytest.approx(float(score[rows[0]]), abs=1e-3)
    lines = ui["text"][0].splitlines()
    assert len(lines) == 4 and lines[0].startswith(f"item {rows[0] + 1}: ")


def test_picking_keeps_masks_and_single_parts(session):
    from comfy.nested_tensor import NestedTensor

    select = session.pack.nodes.host.shared.select
    latent = {"samples": NestedTensor([torch.arange(3.0)[:, None, None], torch.arange(3.0)[:, None, None] + 10])}
    latent["noise_mask"] = NestedTensor([torch.ones(1, 1, 1), torch.arange(3.0)[:, None, None]])
    picked = select({**latent, "batch_index": [5, 6, 7]}, [2, 0])
    assert [p.flatten().tolist() for p in picked["samples"].unbind()] == [[2, 0], [12, 10]]
    assert [p.flatten().tolist() for p in picked["noise_mask"].unbind()] == [[1], [2, 0]] and picked["batch_index"] == [7, 5]
    assert select({"samples": torch.arange(4.0)[:, None]}, [3])["samples"].tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": "one, two, three"}, "3 names for 1 prompts"),
        ({"prompts.prompt0": ["other", 0]}, "CoDi's Encode nodes"),
        ({"latent": ["foreign", 0]}, "none of tiny"),
        ({"latent": None}, "nothing to compare"),
    ],
)
def test_coherence_refuses(session, changes, words):
    graph = sampled("text")
    graph["foreign"] = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    graph["two"] = node("ConditioningConcat", conditioning_to=["yes", 0], conditioning_from=["no", 0])
    graph["other"] = graph.pop("two")
    inputs = {"codi": ["load", 1], "latent": ["sample", 0], "names": "", "prompts.prompt0": ["yes", 0], **changes}
    graph["c"] = node("CoDiCoherence", **{k: v for k, v in inputs.items() if v is not None})
    with pytest.raises(Failed, match=words) as failure:
        session.run(graph)
    assert failure.value.node == "CoDiCoherence"


def test_preview_shows_what_the_decode_nodes_give(session):
    graph = decoded(sampled(*ALL, batch_size=2), *ALL)
    graph["video"]["inputs"]["audio"] = ["audio", 0]
    graph["all"] = node("CoDiPreview", codi=["load", 1], latent=["sample", 0])
    ui = session.run(graph)["all"]
    assert {k: len(v) for k, v in ui.items()} == {"images": 2, "video": 2, "audio": 2, "codi_spectrogram": 2, "text": 2}
    assert torch.equal(session.value("all", 0), session.value("image"))
    ours, theirs = (session.value(*link).get_components() for link in (("all", 1), ("video", 1)))
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.audio["waveform"], theirs.audio["waveform"])
    assert torch.equal(session.value("all", 2)["waveform"], session.value("audio")["waveform"])
    assert session.value("all", 3) == session.value("text") == "\n".join(ui["text"])


def test_preview_outputs_go_to_stock_save_nodes_as_far_as_there_are_any(session, base):
    graph = sampled("image", "audio")
    graph["all"] = node("CoDiPreview", codi=["load", 1], latent=["sample", 0])
    graph["image"] = node("SaveImage", images=["all", 0], filename_prefix="front/picture")
    graph["video"] = node("SaveVideo", video=["all", 1], filename_prefix="front/clip", format="auto", codec="auto")
    graph["audio"] = node("SaveAudio", audio=["all", 2], filename_prefix="front/sound")
    ui = session.run(graph)
    assert {"all", "image", "audio"} <= ui.keys() and "video" not in ui
    saved = sorted(p.suffix for p in (base / "output" / "front").iterdir())
    assert saved == [".flac", ".png"]


def test_nan_is_named(session):
    shared, model = session.pack.nodes.host.shared, session.pack.nodes.host.handle.open_handle("tiny")
    with pytest.raises(Exception, match="image of this LATENT is NaN"):
        shared.decode_parts(model, {"samples": torch.full((1, 4, 8, 8), float("nan"))})


def test_the_plot_has_a_point_for_every_item(session):
    graph = shown(sampled("image", "text", batch_size=2), ["plot", 0])
    graph["plot"] = node("CoDiSharedSpace", codi=["load", 1], latent=["sample", 0], **{"prompts.prompt0": ["yes", 0]})
    session.run(graph)
    picture = session.value("plot")[0]
    for colour in ((98, 190, 120), (238, 197, 87)):  # image, text
        assert int(((picture * 255 - torch.tensor(colour)).abs().amax(dim=-1) < 2).sum()) > 150

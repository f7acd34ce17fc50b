"""What a host does to a graph besides running it once: interrupts, memory that runs out, caches, queues, reloading."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from host.graph import base_graph, decoded, node, outputs, sampled, shown
from host.session import Failed

ALL = ("video", "image", "text", "audio")


def executed(session) -> set[str]:
    """Nodes that the last prompt ran, by the host's own events."""
    return {data["node"] for kind, data in session.events if kind == "executing" and data.get("node")}


def parts(session, link: str = "sample") -> list[torch.Tensor]:
    samples = session.value(link)["samples"]
    return list(samples.unbind()) if samples.is_nested else [samples]


@contextmanager
def counted(monkeypatch, place: Any, name: str) -> Iterator[list[tuple]]:
    """Arguments of every call of `place.name` within the block."""
    calls, plain = [], getattr(place, name)

    def counting(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        return plain(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(place, name, counting)
        yield calls


def everything() -> dict:
    """All four outputs of a mixture of two prompts, decoded."""
    graph = decoded(sampled(*ALL, positive=["mix", 0]), *ALL)
    graph["also"] = node("CoDiEncodeText", codi=["load", 1], text="a blue star")
    links = {"prompts.prompt0": ["yes", 0], "prompts.prompt1": ["also", 0]}
    graph["mix"] = node("CoDiConditionMixer", **links, weights="1, 0.5", method="linear")
    return graph


ENDS = {"video", "image", "text", "audio"}
AFTER_SAMPLING = {"sample", *ENDS}


@pytest.mark.parametrize(
    ("place", "widget", "value", "runs"),
    [
        ("sample", "seed", 8, AFTER_SAMPLING),
        ("sample", "steps", 3, AFTER_SAMPLING),
        ("sample", "cfg", 1.5, AFTER_SAMPLING),
        ("sample", "sampler_name", "heun", AFTER_SAMPLING),
        ("sample", "alignment", 0.5, AFTER_SAMPLING),
        ("sample", "wiring", "off", AFTER_SAMPLING),
        ("yes", "text", "a green circle", {"yes", "mix", *AFTER_SAMPLING}),
        ("also", "text", "a green circle", {"also", "mix", *AFTER_SAMPLING}),
        ("no", "text", "something red", {"no", *AFTER_SAMPLING}),
        ("mix", "weights", "1, -0.5", {"mix", *AFTER_SAMPLING}),
        ("mix", "method", "spherical", {"mix", *AFTER_SAMPLING}),
        ("empty", "frames", 3, {"empty", *AFTER_SAMPLING}),
        ("empty", "batch_size", 2, {"empty", *AFTER_SAMPLING}),
        ("text", "words_seed", 5, {"text"}),
        ("video", "frame_rate", 12.0, {"video"}),
        ("load", "dtype", "bf16", {"load", "yes", "also", "no", "mix", "empty", *AFTER_SAMPLING}),
    ],
)
def test_changing_a_widget_runs_only_what_depends_on_it(session, place, widget, value, runs):
    graph = everything()
    graph["text"]["inputs"]["words_seed"], graph["video"]["inputs"]["frame_rate"] = 0, 0.0
    session.run(graph)
    session.run(graph)
    assert executed(session) == set()
    graph[place]["inputs"][widget] = value
    session.run(graph)
    assert executed(session) == runs


def test_a_second_run_encodes_and_loads_only_what_changed(session, monkeypatch):
    host, encode = session.pack.nodes.host, session.pack.nodes.encode
    graph = everything()
    session.forget()
    session.run(graph)
    with (
        counted(monkeypatch, encode, "encode_prompt") as encoded,
        counted(monkeypatch, host.handle.HostedCoDi, "_read") as read,
        counted(monkeypatch, host.denoiser, "_build") as built,
    ):
        graph["sample"]["inputs"]["seed"] = 99
        session.run(graph)
        assert encoded == read == built == []
        graph["also"]["inputs"]["text"] = "a magenta square"
        session.run(graph)
        assert [given[1].value for given in encoded] == ["a magenta square"] and read == built == []


def test_an_interrupt_takes_hold_within_one_step(session, monkeypatch):
    import comfy.model_management as mm

    joint = session.pack.codi_models.joint.JointDenoiser
    plain, calls = joint.forward, []

    def interrupting(self, *arguments, **more):
        calls.append(len(calls))
        if len(calls) == 3:
            mm.interrupt_current_processing()
        return plain(self, *arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(joint, "forward", interrupting)
        with pytest.raises(Failed, match="interrupted"):
            session.run(shown(sampled("video", "audio", steps=200, sampler_name="euler", seed=31), ["sample", 0]))
    assert len(calls) <= 4
    session.run(shown(sampled("video", "audio", seed=32), ["sample", 0]))
    assert len(parts(session)) == 2


@pytest.mark.parametrize("joint", [False, True])
def test_what_is_loaded_stays_booked_when_its_patchers_go_at_once(session, joint):
    import comfy.model_management as mm

    host = session.pack.nodes.host
    first = host.denoiser.denoiser_model(host.handle.open_handle("tiny"), "audio_denoiser")
    first = host.compose.compose([first]) if joint else first
    between = first.clone()
    last = between.clone()
    mm.load_models_gpu([last])
    last.model_options["knot"] = between.model_options["knot"] = [last, between]
    del last, between
    gc.collect()
    (booked,) = [loaded for loaded in mm.current_loaded_models if loaded.real_model() is first.model]
    assert booked.model is first and not booked.is_dead()


def test_memory_that_runs_out_is_handled_by_the_host(session, monkeypatch):
    import comfy.model_management as mm

    joint, graph = session.pack.codi_models.joint.JointDenoiser, shown(sampled("image", "audio", seed=41), ["sample", 0])
    session.run(graph)
    expected = parts(session)
    session.forget()

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patched, counted(monkeypatch, mm, "unload_all_models") as unloaded:
        patched.setattr(joint, "forward", full)
        with pytest.raises(Failed, match="out of memory|Allocation on device") as failure:
            session.run(graph)
        assert failure.value.node == "CoDiJointSampler" and unloaded  # the host's own recovery
    error = next(data for kind, data in session.events if kind == "execution_error")
    assert "OutOfMemoryError" in error["exception_type"] and "memory" in error["exception_message"]
    session.run(graph)
    assert all(torch.equal(a, b) for a, b in zip(expected, parts(session), strict=True))


def test_models_unloaded_in_the_middle_come_back(session):
    import comfy.model_management as mm
    from comfy_api.latest import io

    class Unload(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            kind = io.AnyType
            return io.Schema(node_id="TestUnload", category="test", inputs=[kind.Input("thing")], outputs=[kind.Output()])

        @classmethod
        def execute(cls, thing):
            mm.unload_all_models()
            mm.soft_empty_cache()
            return io.NodeOutput(thing)

    session.classes["TestUnload"] = Unload
    graph = everything()
    session.run(graph)
    expected, caption, sound = parts(session), session.value("text"), session.value("audio")["waveform"]
    session.forget()
    graph["after prompts"] = node("TestUnload", thing=["mix", 0])
    graph["after sampling"] = node("TestUnload", thing=["sample", 0])
    graph["sample"]["inputs"]["positive"] = ["after prompts", 0]
    for name in ENDS:
        graph[name]["inputs"]["latent"] = ["after sampling", 0]
    session.run(graph)
    assert all(torch.equal(a, b) for a, b in zip(expected, parts(session), strict=True))
    assert session.value("text") == caption and torch.equal(session.value("audio")["waveform"], sound)


def test_another_dtype_in_the_same_session(session):
    made = {}
    for dtype in ("fp32", "bf16", "fp16", "fp32"):
        graph = sampled("image", "audio", "text", seed=51)
        graph["load"]["inputs"]["dtype"] = dtype
        session.run(shown(graph, ["sample", 0]))
        if dtype in made:
            assert all(torch.equal(a, b) for a, b in zip(made[dtype], parts(session), strict=True))
        made[dtype] = parts(session)
    for dtype in ("bf16", "fp16"):
        for half, full in zip(made[dtype], made["fp32"], strict=True):
            assert 0 < (half - full).abs().mean() < 0.1 * full.std()


def test_a_batch_of_eight_and_a_clip_of_thirty_frames(session):
    session.run(decoded(sampled("video", "audio", batch_size=8, frames=30, steps=1), "video", "audio"))
    assert [tuple(p.shape) for p in parts(session)] == [(8, 4, 30, 8, 8), (8, 8, 4, 8)]
    assert session.value("video").shape == (240, 64, 64, 3) and session.value("audio")["waveform"].shape[:2] == (8, 1)


def test_two_queued_prompts_and_the_same_result_as_in_process(session, server):
    graph = decoded(sampled("image", seed=61), "image")
    other = decoded(sampled("image", seed=62), "image")
    ids = [server.post("/prompt", {"prompt": prompt, "client_id": "two"})[1]["prompt_id"] for prompt in (graph, other)]
    ran = server.run(graph)  # waits behind them
    assert ran.end == "execution_success"
    history = [server.json(f"/history/{i}")[i] for i in ids]
    assert [entry["status"]["status_str"] for entry in history] == ["success", "success"]
    import io as streams

    import numpy as np
    from PIL import Image

    for prompt, entry in zip((graph, other), history, strict=True):
        session.run(prompt)
        ours = (session.value("image")[0].numpy() * 255).clip(0, 255).astype(np.uint8)
        theirs = np.asarray(Image.open(streams.BytesIO(server.file(entry["outputs"]["image"]["images"][0]))).convert("RGB"))
        assert np.array_equal(ours, theirs)


def test_the_pool_of_servers_in_the_documentation(server, capsys, monkeypatch):
    from host.setting import PACK

    code = (PACK / "docs" / "scaling.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    for page, here in (
        ('["http://127.0.0.1:8188", "http://127.0.0.1:8189"]', f"[{server.url!r}, 'http://127.0.0.1:9']"),
        ("range(100)", "range(1)"),
        ("items = queue", "workflow[sampler]['inputs']['steps'] = 1; items = queue"),
    ):
        assert page in code
        code = code.replace(page, here)
    monkeypatch.chdir(PACK)
    exec(compile(code, "docs/scaling.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("success" in line and server.url in line for line in lines)


def test_no_string_leads_out_of_the_hosts_folders(session, base, tmp_path):
    secret = base.parent / "secret"
    secret.mkdir(exist_ok=True)
    (secret / "config.json").write_text((base / "models" / "codi" / "tiny" / "config.json").read_text())
    for name in ("../../../secret", str(secret), "tiny/../../../../secret", "..", "", "tiny\x00", "~"):
        for kind in ("CoDiLoad", "CoDiLoadJoint"):
            graph = {"load": node(kind, name=name, **({"dtype": "auto", **outputs("text")} if kind == "CoDiLoadJoint" else {}))}
            with pytest.raises(Failed):
                session.run(shown(graph, ["load", 0]))
            with pytest.raises(ValueError, match="no CoDi model named"):  # also where the host's own check of the list is passed by
                session.pack.nodes.host.handle.open_handle(name)
    before = {p for p in base.parent.rglob("*") if base not in p.parents}
    graph = decoded(sampled("video", "text", "audio", batch_size=1), "video", "text", "audio")
    for place, widget in (("yes", "text"), ("no", "text")):
        graph[place]["inputs"][widget] = "../../outside.txt"
    session.run(graph)
    assert {p for p in base.parent.rglob("*") if base not in p.parents} == before


@pytest.mark.parametrize("shape", [(1, 40, 30, 4), (3, 17, 33, 3), (2, 8, 8, 1), (1, 1, 1, 3)], ids=str)
def test_pictures_of_any_shape_are_prompts(session, shape):
    assert prompt(session, "Image", "image", torch.rand(shape)).shape == (shape[0], 1, 128)


@pytest.mark.parametrize(("channels", "rate", "count"), [(1, 8000, 1), (2, 48000, 20_000), (6, 44100, 3000), (1, 192_000, 5)])
def test_sounds_of_any_shape_are_prompts(session, channels, rate, count):
    sound = {"waveform": torch.rand(2, channels, count) - 0.5, "sample_rate": rate}
    assert prompt(session, "Audio", "audio", sound).shape == (2, 1, 128)


@pytest.mark.parametrize(
    ("kind", "slot", "value", "words"),
    [
        ("Image", "image", torch.zeros(0, 8, 8, 3), "at least one image"),
        ("Image", "image", torch.full((1, 8, 8, 3), torch.nan), "NaN|finite|infinite"),
        ("Video", "video", torch.zeros(0, 8, 8, 3), "at least one image"),
        ("Video", "video", torch.full((2, 8, 8, 3), torch.inf), "NaN|finite|infinite"),
        ("Audio", "audio", {"waveform": torch.zeros(1, 1, 0), "sample_rate": 16000}, "no samples"),
        ("Audio", "audio", {"waveform": torch.full((1, 1, 900), torch.nan), "sample_rate": 16000}, "NaN|finite|infinite"),
        ("Audio", "audio", None, "no audio"),
    ],
)
def test_media_that_are_no_prompts(session, kind, slot, value, words):
    with pytest.raises(ValueError, match=words):
        prompt(session, kind, slot, value)


def prompt(session, kind: str, slot: str, value: Any) -> torch.Tensor:
    session.run(shown(base_graph("text"), ["load", 1]))
    with torch.inference_mode():
        return session.classes[f"CoDiEncode{kind}"].execute(session.value("load", 1), **{slot: value}).result[0][0][0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_numbers_that_are_none(session, value):
    """The front end cannot send them, JSON from elsewhere can: the host refuses them, or the sampler says what became of them."""
    for widget in ("cfg", "alignment", "alignment_guidance"):
        graph = shown(sampled("image", "audio", seed=71, **{widget: value}), ["sample", 0])
        with pytest.raises(Failed, match="bigger than max|infinite or NaN|finite"):
            session.run(graph)
    session.run(shown(sampled("text", seed=72), ["sample", 0]))

"""Converted folders in the host: found, shown, loaded part by part, placed and freed."""

from __future__ import annotations

import gc
import importlib
import shutil
import weakref

import published
import pytest
import torch
from codi.codi_models.components import COMPONENTS
from codi.codi_models.conversion.convert import convert
from codi.codi_models.conversion.layout import ENCODERS_FILE, published_file
from codi.codi_models.model import CoDi
from host.graph import decoded, node, outputs, sampled, shown
from host.session import Failed
from host.tiny import create_tiny, tiny_config

SOUND = ("clip", "audio_denoiser", "audio_autoencoder", "vocoder")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("published"), tiny_config())


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A place of extra_model_paths.yaml."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def places(session, base, elsewhere, files, tmp_path_factory):
    """Converted folders: sound only in models/codi, all of it in a place of extra_model_paths.yaml, with vocabularies that fit."""
    import folder_paths
    from utils.extra_config import load_extra_path_config

    before = list(folder_paths.get_folder_paths("codi"))
    vocabularies = create_vocabularies(tmp_path_factory.mktemp("vocabularies"))
    sound, whole = base / "models" / "codi" / "converted sound", elsewhere / "converted"
    convert([files[ENCODERS_FILE], files[published_file("audio_denoiser")]], sound, config=tiny_config(), components=SOUND)
    convert(list(files.values()), whole, dtype="bf16", config=tiny_config())
    for folder in (sound, whole):
        for file in vocabularies:
            shutil.copy(file, folder)
    (elsewhere / "paths.yaml").write_text(f"mine:\n    base_path: {elsewhere}\n    codi: .\n")
    load_extra_path_config(str(elsewhere / "paths.yaml"))
    yield {"sound": sound, "whole": whole}
    shutil.rmtree(sound)
    folder_paths.folder_names_and_paths["codi"][0][:] = before
    session.forget()


def create_vocabularies(folder):
    create_tiny(folder)
    return [path for path in folder.iterdir() if path.suffix in (".txt", ".gz") or path.name.endswith(("vocab.json", "merges.txt"))]


def module(session, name: str):
    return importlib.import_module(f"{session.pack.__name__}.nodes.host.{name}")


def told(session, name: str, kind: str = "CoDiLoad", **inputs) -> str:
    session.forget()
    graph = {"load": node(kind, name=name, **inputs)}
    shown_ui = session.run(shown(graph, ["load", 0]))
    return shown_ui["load"]["text"][0]


def test_both_places_are_searched(session, places):
    folders = module(session, "folders")
    assert {"converted sound", "converted", "tiny"} <= set(folders.model_names())
    assert folders.model_folder("converted") == places["whole"]


def test_the_node_shows_what_each_part_costs(session, places):
    text = told(session, "converted")
    lines = dict(line.split(": ", 1) for line in text.splitlines())
    size = places["whole"].joinpath("vision_denoiser.safetensors").stat().st_size
    assert f"file {size / 1e6:.1f} MB bf16" in lines["vision_denoiser"] and "fp32 on cpu" in lines["clip"]
    loaded = sum(p.numel() * 4 for p in CoDi.from_pretrained(places["whole"], device="cpu").clip.parameters())
    assert f"{loaded / 1e6:.1f} MB fp32" in lines["clip"]
    text = told(session, "converted sound", "CoDiLoadJoint", dtype="fp16", **outputs("audio"))
    lines = dict(line.split(": ", 1) for line in text.splitlines())
    assert set(COMPONENTS) < set(lines) and "fp16 on cpu" in lines["audio_denoiser"]
    assert "missing" in lines["vision_denoiser"] and published_file("vision_denoiser") in lines["vision_denoiser"]


def test_sound_alone_works(session, places):
    result = session.run(decoded(sampled("audio", model="converted sound", composed=("audio",)), "audio"))
    wave = session.value("audio")["waveform"]
    assert wave.shape[-1] > 1000 and bool(torch.isfinite(wave).all()) and result


def test_parts_that_were_not_converted_fail_where_they_are_needed(session, places):
    graph = {"load": node("CoDiLoadJoint", name="converted sound", dtype="auto", **outputs("image", "audio"))}
    with pytest.raises(Failed) as failure:
        session.run(shown(graph, ["load", 0]))
    said = str(failure.value)
    assert "vision_denoiser.safetensors is missing" in said and f"convert {published_file('vision_denoiser')}" in said
    graph = {"load": node("CoDiLoad", name="converted sound"), "silence": node("EmptyAudio", duration=0.5, sample_rate=16000, channels=1)}
    graph["encode"] = node("CoDiEncodeAudio", codi=["load", 0], audio=["silence", 0])
    with pytest.raises(Failed) as failure:
        session.run(shown(graph, ["encode", 0]))
    assert failure.value.node == "CoDiEncodeAudio" and f"convert {ENCODERS_FILE} --out {places['sound']}" in str(failure.value)


def test_unconverted_files_are_pointed_out(session, base, files):
    shutil.copy(files[ENCODERS_FILE], base / "models" / "codi")
    try:
        with pytest.raises(Exception, match=f"can be converted: .*convert .*{ENCODERS_FILE} --out"):
            module(session, "folders").model_folder("codi")
    finally:
        (base / "models" / "codi" / ENCODERS_FILE).unlink()


def test_every_component_is_built_from_its_file(session, places):
    handle, denoiser = module(session, "handle"), module(session, "denoiser")
    codi, headless = handle.open_handle("converted"), CoDi.from_pretrained(places["whole"], device="cpu")
    for name in COMPONENTS:
        if name in denoiser.DENOISERS:
            network = denoiser.denoiser_model(codi, name).model.diffusion_model
        else:
            network = codi.model.component(name)
        state = headless.component(name).state_dict()
        assert all(torch.equal(value.float(), state[key].float()) for key, value in network.state_dict().items()), name


def on_a_gpu(monkeypatch, session, dtype: torch.dtype, picture: torch.dtype) -> None:
    """The host's choices as on a GPU, while everything stays on the CPU."""
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "text_encoder_dtype", lambda _: dtype)
    monkeypatch.setattr(mm, "vae_dtype", lambda _, allowed: picture if picture in allowed else torch.float32)
    monkeypatch.setattr(mm, "is_device_cpu", lambda _: False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_encoders_and_autoencoders_follow_the_hosts_choice_of_dtype(session, places, monkeypatch, dtype):
    handle, vae = module(session, "handle"), module(session, "vae")
    exact = handle.CoDiHandle("converted")
    latent = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sound = torch.randn(1, 8, 16, 8, generator=torch.Generator().manual_seed(1)) / 2
    prompts = importlib.import_module(f"{session.pack.__name__}.codi_models.conditioning")
    given = [
        prompts.Prompt("text", "a red circle"),
        prompts.Prompt("image", torch.rand(3, 64, 64)),
        prompts.Prompt("video", torch.rand(8, 3, 64, 64)),
        prompts.Prompt("audio", (torch.randn(8000) / 5, 16000)),
    ]

    def everything(codi):
        return {
            **{p.kind: prompts.encode_prompt(codi.model, p) for p in given},
            "pixels": vae.ImageVAE(codi).decode(latent),
            "latent": vae.ImageVAE(codi).encode(torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(2))),
            "wave": vae.AudioVAE(codi).decode(sound),
        }

    expected = everything(exact)
    on_a_gpu(monkeypatch, session, dtype, torch.bfloat16)
    half = handle.CoDiHandle("converted")
    got = everything(half)
    kinds = {name: next(half.model.component(name).parameters()).dtype for name in ("clip", "clap", "image_autoencoder", "vocoder")}
    assert kinds == {"clip": dtype, "clap": dtype, "image_autoencoder": torch.bfloat16, "vocoder": torch.float32}
    for name, value in expected.items():
        assert got[name].dtype == torch.float32 and got[name].shape == value.shape
        error = float((got[name] - value).norm() / value.norm())
        assert error < 0.1, (name, error)
    texts = half.model.text_autoencoder.generate(torch.zeros(1, 64, dtype=dtype), temperature=0)
    assert texts and half.model.precision("text_autoencoder") == dtype


def test_weights_of_the_right_dtype_stay_in_the_file(session, places, monkeypatch):
    """Nothing is copied on load where file and device agree; one tensor at a time otherwise."""
    handle = module(session, "handle")
    on_a_gpu(monkeypatch, session, torch.bfloat16, torch.bfloat16)
    moved = []
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: (moved.append(self.numel()), real(self, *a, **k))[1])
    read = handle.CoDiHandle("converted").model._read("clip")
    monkeypatch.undo()
    mapped = [p for p in read.parameters() if p.untyped_storage().nbytes() != p.nbytes or not p.untyped_storage().resizable()]
    assert len(mapped) == len(list(read.parameters()))


def test_eight_bits(session, places, files, base, monkeypatch):
    """Matrices of the denoisers stay in eight bits where the host chooses so; everything else, raw parameters too, keeps its digits."""
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "unet_dtype", lambda weight_dtype=None, **_: weight_dtype)
    folder = base / "models" / "codi" / "eight"
    convert(list(files.values()), folder, dtype="fp8", config=tiny_config())
    try:
        handle, denoiser = module(session, "handle"), module(session, "denoiser")
        for name in denoiser.DENOISERS:
            eight = denoiser.denoiser_model(handle.open_handle("eight"), name).model
            exact = denoiser.denoiser_model(handle.open_handle("converted"), name, "fp32").model
            kinds = {key: p.dtype for key, p in eight.diffusion_model.named_parameters()}
            assert set(kinds.values()) == {torch.float8_e4m3fn, torch.float16}
            assert all(kinds[key] == torch.float16 for key in kinds if key.endswith(("pos_embeds", ".g", ".bias")))
            saved = CoDi.from_pretrained(folder, device="cpu").component(name).state_dict()
            assert all(torch.equal(value.float(), saved[key]) for key, value in eight.diffusion_model.state_dict().items())
            shape = {"vision_denoiser": (2, 4, 3, 8, 8), "audio_denoiser": (2, 8, 16, 8), "text_denoiser": (2, 64, 1)}[name]
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            prompt = torch.randn(2, 1, 128, generator=torch.Generator().manual_seed(1))
            given = (x, torch.tensor([0.5, 2.0]), None, prompt)
            got, expected = (model.apply_model(*given, transformer_options={}).float() for model in (eight, exact))
            error = float((got - expected).norm() / (x - expected).norm())
            assert 0 < error < 0.15, (name, error)
        assert "fp8" in told(session, "eight")
    finally:
        session.forget()
        shutil.rmtree(folder)


def test_decoding_many_frames_is_bounded(session, places, monkeypatch):
    """A long clip is decoded a few frames at a time, with the same result."""
    handle, vae = module(session, "handle"), module(session, "vae")
    decoding = importlib.import_module(f"{session.pack.__name__}.codi_models.latents")
    codi = handle.CoDiHandle("converted")
    latent = torch.randn(1, 4, 7, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = vae.ImageVAE(codi).decode(latent)
    seen = []
    autoencoder = codi.model.image_autoencoder
    real = autoencoder.decode
    monkeypatch.setattr(decoding, "PIXELS_AT_ONCE", 2 * 64 * 64)
    monkeypatch.setattr(autoencoder, "decode", lambda z: (seen.append(len(z)), real(z))[1])
    assert torch.allclose(vae.ImageVAE(codi).decode(latent), whole, atol=1e-5) and seen == [2, 2, 2, 1]


def test_everything_is_freed_when_nothing_uses_it(session, places):
    import comfy.model_management as mm

    handle = module(session, "handle")
    session.run(decoded(sampled("audio", model="converted sound", composed=("audio",)), "audio"))
    alive = [weakref.ref(h) for h in handle._opened.values() if h.name == "converted sound"]
    networks = [weakref.ref(p.model) for ref in alive for p in ref().model.patchers.values()]
    assert alive and networks
    mm.unload_all_models()
    session.run(shown({"load": node("CoDiLoad", name="tiny")}, ["load", 0]))
    session.forget()
    gc.collect()
    assert not any(ref() for ref in [*alive, *networks])

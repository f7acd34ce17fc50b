"""Some outputs kept, the rest generated to fit them."""

from __future__ import annotations

import pytest
import torch
from host.graph import base_graph, node, sampled, shown
from host.session import Failed


def parts(latent: dict) -> list[torch.Tensor]:
    samples = latent["samples"]
    return list(samples.unbind()) if samples.is_nested else [samples]


def keeping(*names: str, keep: dict, frames: int = 8, **changes) -> dict:
    graph = sampled(*names, frames=frames, **changes)
    graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
    more = {k: keep.pop(k) for k in ("last_frames", "last_seconds", "mask") if k in keep}
    links = {m: ["scene", slot] for m, slot in keep.items()}
    graph["keep"] = node("CoDiKeep", codi=["load", 1], latent=["empty", 0], **links, **more)
    graph["sample"]["inputs"]["latent"] = ["keep", 0]
    return graph


SLOTS = {"image": 0, "audio": 1, "video": 2, "text": 3}


@pytest.mark.parametrize("sampler", ["euler", "ddim", "uni_pc", "euler_ancestral"])
@pytest.mark.parametrize("kept", ["video", "audio", "image", "text"])
def test_kept_outputs_come_back_bit_for_bit(session, kept, sampler):
    names = ("video", "image", "text", "audio")
    if sampler != "euler" and kept != "audio":
        names = tuple(n for n in names if n in (kept, "text", "image"))
    session.run(shown(keeping(*names, keep={kept: SLOTS[kept]}, sampler_name=sampler), ["sample", 0]))
    before, after = parts(session.value("keep")), parts(session.value("sample"))
    for name, a, b in zip(names, before, after, strict=True):
        if name == kept and kept == "audio":
            assert torch.equal(a, b) and a.any()
        elif name == kept:
            assert torch.equal(a, b) and a.std() > 0
        else:
            assert not torch.equal(a, b) and torch.isfinite(b).all()


def watched(session, graph: dict) -> tuple[list[tuple[int, float, torch.Tensor]], set[int]]:
    """What environment encoders were given in a run, (channels, timestep, latents), and the channels of the networks that ran."""
    unet = session.pack.codi_models.denoisers.unet.UNet
    seen, ran = [], set()
    environment, forward = unet.environment_embedding, unet.forward

    def listen(self, x, timesteps):
        seen.append((x.shape[1], float(timesteps[0]), x.clone()))
        return environment(self, x, timesteps)

    def run(self, x, *args, **kw):
        ran.add(x.shape[1])
        return forward(self, x, *args, **kw)

    unet.environment_embedding, unet.forward = listen, run
    try:
        session.forget()
        session.run(shown(graph, ["sample", 0]))
    finally:
        unet.environment_embedding, unet.forward = environment, forward
    return seen, ran


def test_others_hear_the_kept_part_clean_and_its_own_network_rests(session):
    seen, ran = watched(session, keeping("image", "audio", keep={"audio": 1}, steps=4))
    clean = parts(session.value("keep"))[1] * 2.0  # the tiny model's scale of sound
    heard = [(t, x) for channels, t, x in seen if channels == 8]
    assert ran == {4} and heard and all(t == 0 and torch.allclose(x, clean) for t, x in heard)


def test_a_part_that_is_kept_in_places_is_heard_as_it_is_sampled(session):
    seen, ran = watched(session, keeping("image", "audio", keep={"audio": 1, "last_seconds": 0.1}, steps=4))
    assert ran == {4, 8} and len({t for channels, t, _ in seen if channels == 8}) == 4


def test_in_turn_each_hears_the_finished_ones_clean(session, base):
    graph = sampled("video", "image", "audio", frames=2, steps=2, order="in turn")
    graph["deaf"] = node("CoDiJointSampler", **{**graph["sample"]["inputs"], "wiring": "off"})
    seen, ran = watched(session, graph)
    assert ran == {4, 8} and {t for _, t, _ in seen} == {0.0}
    assert {(channels, x.ndim) for channels, _, x in seen} == {(4, 5), (8, 4)}  # the picture comes last and is not heard
    video, image, audio = parts(session.value("sample"))
    config = session.pack.codi_models.config.CoDiConfig.load(base / "models" / "codi" / "tiny" / "config.json")
    for channels, part, scale in ((4, video, config.image_autoencoder.scale), (8, audio, config.audio_autoencoder.scale)):
        assert all(torch.allclose(x, part * scale, atol=1e-4) for c, _, x in seen if c == channels)
    session.run(shown(graph, ["deaf", 0]))
    deaf = parts(session.value("deaf"))
    assert torch.equal(deaf[2], audio) and not torch.allclose(deaf[0], video, atol=1e-4)  # the sound comes first and hears nobody
    assert torch.isfinite(image).all() and torch.isfinite(audio).all()


def test_what_is_kept_comes_before_all_turns(session):
    graph = keeping("image", "audio", "text", keep={"audio": 1}, steps=2, order="in turn")
    session.run(shown(graph, ["sample", 0]))
    before, after = parts(session.value("keep")), parts(session.value("sample"))
    assert torch.equal(before[2], after[2]) and all(torch.isfinite(p).all() and p.any() for p in after)


def test_a_clip_goes_on_from_its_last_frames(session):
    session.run(shown(keeping("video", "audio", keep={"video": 2, "last_frames": 3}), ["sample", 0]))
    before, after = parts(session.value("keep"))[0], parts(session.value("sample"))[0]
    assert torch.equal(before[:, :, :3], after[:, :, :3]) and before[:, :, :3].std() > 0
    assert not before[:, :, 3:].any() and after[:, :, 3:].std() > 0.01
    whole = parts(keep_whole(session))[0]
    assert torch.allclose(before[:, :, :3], whole[:, :, -3:], atol=1e-5)


def keep_whole(session) -> dict:
    session.run(shown(keeping("video", "audio", keep={"video": 2}), ["keep", 0]))
    return session.value("keep")


@pytest.mark.parametrize("sampler", ["euler", "uni_pc"])
def test_a_sound_goes_on_from_its_last_seconds(session, sampler):
    graph = keeping("audio", "image", keep={"last_seconds": 0.4}, sampler_name=sampler)
    graph["empty"]["inputs"]["seconds"] = 1.28
    graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
    graph["keep"]["inputs"]["audio"] = ["scene", 1]
    session.run(shown(graph, ["sample", 0]))
    before, after = parts(session.value("keep"))[1], parts(session.value("sample"))[1]
    kept = 5  # latent steps of 0.08 s
    assert torch.equal(before[:, :, :kept], after[:, :, :kept]) and before[:, :, :kept].std() > 0
    assert not before[:, :, kept:].any() and after[:, :, kept:].std() > 0.01
    vae, wave = session.pack.nodes.host.vae.AudioVAE(session.value("load", 1)), session.value("scene", 1)["waveform"]
    end = vae.encode(wave[:, :, -3 * 2560 :].movedim(1, -1))  # the shortest length of the network that holds it
    assert torch.allclose(before[:, :, :kept], end[:, :, -kept:], atol=1e-5)


@pytest.mark.parametrize(("seconds", "steps"), [(0.001, 1), (0.64, 8), (1.28, 16), (50.0, 16)])
def test_any_length_of_the_end_of_a_sound(session, seconds, steps):
    session.run(shown(base_graph("audio"), ["load", 1]))
    codi, encode = session.value("load", 1), session.pack.nodes.host.media.encode_part
    wave = torch.cat([torch.zeros(1, 2, 48000), torch.rand(1, 2, 61440, generator=torch.Generator().manual_seed(0)) - 0.5], dim=-1)
    with torch.inference_mode():
        z = encode(codi, "audio", {"waveform": wave, "sample_rate": 48000}, (1, 8, 16, 8), last=seconds)
        short = encode(codi, "audio", {"waveform": wave[:, :, -3000:], "sample_rate": 48000}, (1, 8, 16, 8), last=seconds)
        silent = encode(codi, "audio", {"waveform": wave[:, :, :40000], "sample_rate": 48000}, (1, 8, 16, 8), last=seconds)
    assert z.shape == (1, 8, steps, 8) and short.shape == (1, 8, 1, 8)
    assert not torch.allclose(z[:, :, -1:], silent[:, :, -1:], atol=1e-3)


def test_a_variation_of_one_output(session):
    graph = sampled("image", "audio", denoise=0.5, steps=4)
    graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
    graph["media"] = node("CoDiMediaToLatent", codi=["load", 1], width=64, height=64, image=["scene", 0], audio=["scene", 1])
    graph["mask"] = node("CoDiMask", codi=["load", 1], latent=["media", 0], video=False, image=True, text=False, audio=False)
    graph["sample"]["inputs"]["latent"] = ["mask", 0]
    session.run(shown(graph, ["sample", 0]))
    (image, sound), (new, same) = parts(session.value("media")), parts(session.value("sample"))
    assert image.shape == (1, 4, 8, 8) and sound.shape == (1, 8, 16, 8)
    assert torch.equal(sound, same) and not torch.allclose(image, new, atol=1e-2)


def test_masks_in_space_and_time(session):
    graph = sampled("video", "audio", frames=4)
    graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
    graph["media"] = node("CoDiMediaToLatent", codi=["load", 1], width=64, height=64, video=["scene", 2], audio=["scene", 1])
    graph["white"] = node("SolidMask", value=1.0, width=32, height=64)
    graph["black"] = node("SolidMask", value=0.0, width=64, height=64)
    graph["half"] = node("MaskComposite", destination=["black", 0], source=["white", 0], x=32, y=0, operation="add")
    switches = {"video": True, "image": False, "text": False, "audio": True}
    graph["mask"] = node("CoDiMask", codi=["load", 1], latent=["media", 0], mask=["half", 0], start=0.5, end=1.0, **switches)
    graph["sample"]["inputs"]["latent"] = ["mask", 0]
    session.run(shown(graph, ["sample", 0]))
    (clip, sound), (new_clip, new_sound) = parts(session.value("media")), parts(session.value("sample"))
    same = clip == new_clip
    assert same[..., :4].all() and same[:, :, :4].all()
    assert not same[:, :, 4:, :, 4:].any(dim=1).all()
    assert torch.equal(sound[:, :, :8], new_sound[:, :, :8]) and not torch.equal(sound[:, :, 8:], new_sound[:, :, 8:])


def test_what_is_refused(session):
    cases = [
        (keeping("image", "audio", keep={}), "nothing was given"),
        (keeping("audio", keep={"image": 0}), "holds only audio"),
    ]
    graph = keeping("image", "audio", keep={"image": 0}, batch_size=2)
    graph["three"] = node("RepeatImageBatch", image=["scene", 0], amount=3)
    graph["keep"]["inputs"]["image"] = ["three", 0]
    cases.append((graph, "3 images do not go"))
    graph = keeping("image", "text", keep={})
    graph["keep"]["inputs"]["text"] = "a red star " * 100
    cases.append((graph, "one latent holds 62 at most"))
    for graph, words in cases:
        with pytest.raises(Failed, match=words) as failure:
            session.run(shown(graph, ["keep", 0]))
        assert failure.value.node == "CoDiKeep"
    graph = base_graph("image")
    graph["mask"] = node("CoDiMask", codi=["load", 1], latent=["empty", 0], video=False, image=False, text=False, audio=False)
    with pytest.raises(Failed, match="nothing is left to generate"):
        session.run(shown(graph, ["mask", 0]))


def passes(session, sampler: str, model: str, how: str, cut: int = 3) -> tuple[list[list[torch.Tensor]], dict]:
    """Latents after a whole run and after each of two passes; and what was kept: a sound whole, places of a picture."""
    graph = keeping("image", "audio", keep={"image": 0, "audio": 1, "mask": ["right", 0]}, model=model)
    graph["black"], graph["white"] = (node("SolidMask", value=v, width=64, height=64) for v in (0.0, 1.0))
    graph["half"] = node("SolidMask", value=1.0, width=32, height=64)
    graph["right"] = node("MaskComposite", destination=["black", 0], source=["half", 0], x=32, y=0, operation="add")
    links = {"model": ["load", 0], "positive": ["yes", 0], "negative": ["no", 0]}
    del graph["sample"]
    if how == "KSamplerAdvanced":
        start = {**links, "noise_seed": 5, "steps": 6, "cfg": 2.0, "sampler_name": sampler, "scheduler": "normal"}
        for name, latent, adds, first, last in (("whole", "keep", 1, 0, 6), ("first", "keep", 1, 0, cut), ("sample", "first", 0, cut, 6)):
            flags = {"add_noise": ("disable", "enable")[adds], "return_with_leftover_noise": "enable" if last < 6 else "disable"}
            graph[name] = node(how, **start, **flags, latent_image=[latent, 0], start_at_step=first, end_at_step=last)
    else:
        graph["sigmas"] = node("BasicScheduler", model=["load", 0], scheduler="normal", steps=6, denoise=1.0)
        graph["split"] = node("SplitSigmas", sigmas=["sigmas", 0], step=cut)
        for name, latent, adds, sigmas in (
            ("whole", "keep", 1, ["sigmas", 0]),
            ("first", "keep", 1, ["split", 0]),
            ("sample", "first", 0, ["split", 1]),
        ):
            graph[name] = node("SamplerCustom", **links, add_noise=bool(adds), noise_seed=5, cfg=2.0, sampler=["by", 0], sigmas=sigmas,
                               latent_image=[latent, 0])  # fmt: skip
        graph["by"] = node("KSamplerSelect", sampler_name=sampler)
    session.run({**shown(graph, ["sample", 0]), "also": node("PreviewAny", source=["whole", 0])})
    return [parts(session.value(name)) for name in ("whole", "first", "sample")], session.value("keep")


@pytest.mark.parametrize("model", ["tiny", "tiny-shifted"])
@pytest.mark.parametrize("how", ["KSamplerAdvanced", "SplitSigmas"])
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "uni_pc", "euler_ancestral"])
def test_two_passes_keep_what_one_keeps(session, sampler, how, model):
    (whole, first, second), kept = passes(session, sampler, model, how)
    (image, sound), (mask, silent) = parts(kept), kept["noise_mask"].unbind()
    assert not silent.any() and 0 < mask.mean() < 1
    for made in (whole, first, second):
        assert torch.equal(made[1], sound) and sound.any()
        torch.testing.assert_close(made[0] * (1 - mask), image * (1 - mask), rtol=1e-5, atol=1e-5)
        assert torch.isfinite(made[0]).all() and (made[0] * mask).std() > 0
    if sampler in ("euler", "ddim"):  # of which two passes are one
        torch.testing.assert_close(second[0], whole[0], rtol=1e-3, atol=1e-3)

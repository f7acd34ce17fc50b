"""Any mix of prompts to any set of outputs, headless."""

import dataclasses
import itertools
import math

import pytest
import torch
from codi.codi_models import media
from codi.codi_models.conditioning import PROMPT_KINDS, Prompt, encode_prompt, unconditional
from codi.codi_models.config import CoDiConfig, DiffusionConfig
from codi.codi_models.diffusion import NoiseSchedule, initial_noise
from codi.codi_models.encoders.shared_space import SharedSpace
from codi.codi_models.errors import CoDiError
from codi.codi_models.latents import decode_audio, encode_media
from codi.codi_models.modalities import MODALITIES
from codi.codi_models.pipeline import CoDiPipeline
from codi.codi_models.settings import Settings, latent_shapes
from small import small_config


def prompt(kind):
    return Prompt(kind, {
        "text": "a red circle bounces twice",
        "image": torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)),
        "audio": (torch.rand(20480, generator=torch.Generator().manual_seed(2)) - 0.5, 16000),
        "video": torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(3)),
    }[kind])  # fmt: skip


def subsets(names):
    return [chosen for size in range(1, len(names) + 1) for chosen in itertools.combinations(names, size)]


def spectrum(wave):
    return torch.stft(wave, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs()


def same(a, b, rtol, atol, spectra=0.0):
    """spectra: sounds may differ in the norm of their spectra by so much of it instead; random weights give noise of full scale, and
    finding its phases enlarges rounding without bounds."""
    for name in MODALITIES:
        x, y = getattr(a, name), getattr(b, name)
        if name == "audio" and spectra and x is not None:
            assert (spectrum(x) - spectrum(y)).norm() <= spectra * spectrum(y).norm()
        elif isinstance(x, torch.Tensor):
            torch.testing.assert_close(x, y, rtol=rtol, atol=atol)
        else:
            assert x == y, name


@pytest.mark.parametrize("outputs", subsets(MODALITIES), ids="+".join)
def test_every_set_of_outputs(pipe, outputs):
    (sample,) = pipe("a red circle", outputs, steps=1)
    shapes = {"image": (3, 64, 64), "video": (8, 3, 64, 64), "audio": (20480,)}
    for name in MODALITIES:
        value = getattr(sample, name)
        if name not in outputs:
            assert value is None
        elif name == "text":
            assert isinstance(value, str)
        else:
            low = -1 if name == "audio" else 0
            assert value.shape == shapes[name] and value.dtype == torch.float32 and value.min() >= low and value.max() <= 1
    assert (sample.sample_rate, sample.frame_rate) == (16000, 6.25)


@pytest.mark.parametrize("kinds", subsets(PROMPT_KINDS), ids="+".join)
def test_every_mix_of_prompts_takes_part(pipe, kinds):
    cond, uncond = pipe.condition([prompt(kind) for kind in kinds])
    parts = torch.stack([encode_prompt(pipe.model, prompt(kind)) for kind in kinds])
    torch.testing.assert_close(cond, parts.mean(dim=0))
    assert uncond.shape == cond.shape == (1, 1, 128)
    torch.testing.assert_close(parts.norm(dim=-1), torch.ones(len(kinds), 1, 1))


def test_only_what_a_run_needs_is_loaded(folder):
    pipe = CoDiPipeline.from_pretrained(folder, device="cpu")
    pipe("a red circle", ["image"], steps=1)
    assert set(pipe.model.loaded) == {"clip", "vision_denoiser", "image_autoencoder"}
    pipe([prompt("audio")], ["text"], steps=1)
    assert set(pipe.model.loaded) == {
        "clip", "vision_denoiser", "image_autoencoder", "clap", "text_denoiser", "text_autoencoder",
    }  # fmt: skip
    assert {"load", "encode", "denoise", "decode text"} <= set(pipe.seconds)


def test_one_seed_reproduces_everything_and_another_does_not(pipe):
    first, again, other = (pipe("a blue star", MODALITIES, steps=2, seed=seed)[0] for seed in (5, 5, 6))
    same(first, again, rtol=0, atol=0)
    assert not torch.equal(first.image, other.image) and not torch.equal(first.audio, other.audio)


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_samples_do_not_depend_on_their_batch(pipe, sampler):
    outputs = ("image", "audio", "text")
    together = pipe("a blue square", outputs, steps=3, seed=10, count=3, batch_size=3, sampler=sampler)
    apart = pipe("a blue square", outputs, steps=3, seed=10, count=3, batch_size=2, sampler=sampler)
    alone = pipe("a blue square", outputs, steps=3, seed=12, sampler=sampler)
    assert [s.seed for s in together] == [10, 11, 12]
    for a, b in zip(together, apart, strict=True):
        same(a, b, rtol=0, atol=2e-3, spectra=0.02)
    same(together[2], alone[0], rtol=0, atol=2e-3, spectra=0.02)
    assert (together[0].image - together[1].image).abs().max() > 0.01
    first, second = spectrum(together[0].audio), spectrum(together[1].audio)
    assert (first - second).norm() > 0.3 * first.norm()


def test_another_output_changes_nothing_unless_outputs_attend_to_each_other(pipe):
    alone = pipe("a blue star", ["image"], steps=2, seed=3)[0]
    off = pipe("a blue star", ["image", "audio"], steps=2, seed=3, wiring="off")[0]
    zero = pipe("a blue star", ["image", "audio"], steps=2, seed=3, wiring="cross", alignment=0)[0]
    cross = pipe("a blue star", ["image", "audio"], steps=2, seed=3, wiring="cross")[0]
    torch.testing.assert_close(alone.image, off.image, rtol=0, atol=1e-4)
    torch.testing.assert_close(zero.image, off.image, rtol=0, atol=1e-4)
    assert (cross.image - off.image).abs().max() > 0.01


def test_guidance(pipe):
    nothing = pipe([], ["image"], steps=2, seed=1)[0]
    torch.testing.assert_close(pipe([], ["image"], steps=2, seed=1, cfg=9)[0].image, nothing.image, rtol=0, atol=0)
    zero = pipe("a red circle", ["image"], steps=2, seed=1, cfg=0)[0]
    torch.testing.assert_close(zero.image, nothing.image, rtol=0, atol=1e-4)
    weak, strong = (pipe("a red circle", ["image"], steps=2, seed=1, cfg=cfg)[0].image for cfg in (1, 4))
    assert (weak - nothing.image).abs().max() > 1e-3 and (strong - weak).abs().max() > 1e-3


def test_guidance_is_from_the_empty_text_where_the_modality_gap_is_closed(pipe, monkeypatch):
    prompts = [Prompt("image", torch.rand(3, 8, 8), 0.3), Prompt("audio", (torch.rand(100), 16000), 0.7)]
    apart = unconditional(pipe.model, prompts)
    assert [(p.kind, p.weight) for p in apart] == [("image", 0.3), ("audio", 0.7)]
    assert apart[0].value.unique().tolist() == [0.5] and apart[1].value[0].abs().max() == 0
    monkeypatch.setattr(pipe.model, "space", SharedSpace({"text": torch.zeros(128)}))
    assert unconditional(pipe.model, prompts) == [Prompt("text", "")]


def test_weights(pipe):
    a, b = Prompt("text", "a red circle", 2.0), Prompt("text", "a blue star", 0.0)
    torch.testing.assert_close(pipe.condition([a, b])[0], pipe.condition([a])[0])
    pulled = pipe.condition([a, Prompt("text", "a blue star", -1.0)])[0]
    expected = 2 * encode_prompt(pipe.model, a) - encode_prompt(pipe.model, b)
    torch.testing.assert_close(pulled, expected)
    for weights in ((0.0, 0.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(CoDiError, match="weights"):
            pipe([Prompt("text", "a", weights[0]), Prompt("text", "b", weights[1])], ["image"])


@pytest.mark.parametrize("unusual", [
    Prompt("text", ""), Prompt("text", "bouncing " * 10_000), Prompt("text", "ひとつの赤い丸 🔴"), Prompt("image", torch.zeros(3, 7, 400)),
    Prompt("audio", (torch.zeros(16000), 16000)), Prompt("audio", (torch.ones(1), 44100)), Prompt("audio", (torch.rand(300_000), 48000)),
    Prompt("video", torch.rand(1, 3, 20, 30)), Prompt("video", torch.rand(50, 3, 8, 8)),
], ids=["empty", "10000 words", "unicode", "wide", "silence", "one sample", "long sound", "one frame", "many frames"])  # fmt: skip
def test_unusual_prompts_work(pipe, unusual):
    embedding = encode_prompt(pipe.model, unusual)
    assert embedding.shape == (1, 1, 128) and torch.allclose(embedding.norm(), torch.ones(()), atol=1e-4)


def test_prompts_from_files(pipe, tmp_path):
    clip = torch.rand(8, 3, 64, 64)
    media.write_png(tmp_path / "a.png", clip[0])
    picture = encode_prompt(pipe.model, Prompt("image", str(tmp_path / "a.png")).read(pipe.model.config))
    torch.testing.assert_close(picture, encode_prompt(pipe.model, Prompt("image", clip[0])), atol=0.02, rtol=0)
    media.write_wav(tmp_path / "a.wav", torch.rand(20480) - 0.5, 16000)
    assert encode_prompt(pipe.model, Prompt("audio", tmp_path / "a.wav").read(pipe.model.config)).isfinite().all()


@pytest.mark.parametrize("wrong", [
    Prompt("image", torch.zeros(8, 3, 64, 64)), Prompt("video", torch.zeros(3, 64, 64)), Prompt("audio", torch.zeros(100)),
    Prompt("audio", (torch.zeros(0), 16000)), Prompt("image", torch.full((3, 8, 8), float("nan"))),
])  # fmt: skip
def test_tensors_of_the_wrong_kind(pipe, wrong):
    with pytest.raises(CoDiError):
        encode_prompt(pipe.model, wrong)


@pytest.mark.parametrize("outputs, settings, message", [
    ([], {}, "no output"),
    (["smell"], {}, "unknown output 'smell'"),
    (["image"], {"size": 100}, "size 100 must be a multiple of 16.*96"),
    (["image"], {"size": 0}, "size 0"),
    (["video"], {"frames": 31}, "frames 31 must be between 1 and 30"),
    (["image"], {"steps": 0}, "0 steps: a run takes 1 to 1000"),
    (["image"], {"cfg": float("nan")}, "cfg of image is nan"),
    (["image"], {"alignment": float("inf")}, "alignment inf"),
    (["image"], {"alignment_guidance": float("nan")}, "alignment guidance nan"),
    (["image"], {"schedule": "image, smell"}, "unknown output 'smell' in schedule"),
    (["image"], {"scheduler": "magic"}, "magic.*sgm_uniform"),
    (["image"], {"count": 0}, "count 0"),
    (["image"], {"seed": -1}, "seed -1"),
    (["image"], {"wiring": "crossed"}, "cross, self, off"),
    (["image"], {"sampler": "magic"}, "magic.*ddim"),
    (["image"], {"mix": "cubic"}, "linear"),
    (["image"], {"batch_size": 0}, "batch size 0"),
])  # fmt: skip
def test_requests_that_cannot_be_met_are_refused_before_anything_is_loaded(folder, outputs, settings, message):
    pipe = CoDiPipeline.from_pretrained(folder, device="cpu")
    with pytest.raises(CoDiError, match=message):
        pipe("a red circle", outputs, **settings)
    assert not pipe.model.loaded


def test_sizes_and_defaults():
    official = Settings.resolve(CoDiConfig.official(), ("audio", "text", "image", "video"))
    assert official.outputs == tuple(MODALITIES) and dict(official.cfg) == dict.fromkeys(MODALITIES, 7.5)
    assert (official.steps, official.sampler, official.scheduler) == (50, "ddim", "ddim_uniform")
    assert latent_shapes(CoDiConfig.official(), official) == {
        "video": (4, 8, 32, 32), "image": (4, 64, 64), "text": (768,), "audio": (8, 256, 16),
    }  # fmt: skip
    mini = Settings.resolve(small_config(), "video", frames=5, size=96)
    assert latent_shapes(small_config(), mini) == {"video": (4, 5, 12, 12)}


def test_other_sizes_come_out_as_asked(pipe):
    (sample,) = pipe("a red circle", ["image", "video"], steps=1, size=48, frames=3)
    assert sample.image.shape == (3, 48, 48) and sample.video.shape == (3, 3, 48, 48)


def test_progress_reaches_its_end_step_by_step(pipe):
    seen = []
    pipe("a red circle", ["text"], steps=4, count=3, batch_size=2, callback=lambda done, steps: seen.append((done, steps)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1)) and seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_stays_close(folder, pipe, dtype):
    prompts = [prompt(kind) for kind in PROMPT_KINDS]
    full = pipe(prompts, ["image", "audio"], steps=1)[0]
    half = CoDiPipeline.from_pretrained(folder, device="cpu", dtype=dtype)(prompts, ["image", "audio"], steps=1)[0]
    assert half.image.dtype == half.audio.dtype == torch.float32
    assert (half.image - full.image).abs().mean() < 0.01
    # Phases are found by iteration and may differ: energy by frequency is compared.
    spectra = [torch.stft(one.audio, 512, window=torch.hann_window(512), return_complex=True).abs().mean(-1) for one in (half, full)]
    assert (spectra[0] - spectra[1]).norm() < 0.1 * spectra[1].norm()


def test_given_latents_stay_and_the_others_are_generated_to_fit(pipe):
    config, usual = pipe.model.config, {"steps": 2, "count": 2, "sampler": "ddim", "given": ["audio"]}
    cond, _ = pipe.condition([])
    cross = Settings.resolve(config, ("image", "audio"), wiring="cross", alignment_guidance=5, **usual)
    shapes = latent_shapes(config, cross)
    one, other = (torch.randn(2, *shapes["audio"], generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))

    def run(settings, **given):
        return pipe.generate(cond, None, settings, [4, 5], given=given)[0]

    first, again, second = run(cross, audio=one), run(cross, audio=one), run(cross, audio=other)
    off = run(Settings.resolve(config, ("image", "audio"), wiring="off", **usual), audio=one)
    alone = run(Settings.resolve(config, ("image",), **{**usual, "given": []}))
    sound = decode_audio(pipe.model, one)
    for i in range(2):
        torch.testing.assert_close(first[i].audio, sound[i], rtol=0, atol=1e-5)
        assert torch.equal(first[i].image, again[i].image) and (first[i].image - second[i].image).abs().max() > 1e-3
        torch.testing.assert_close(off[i].image, alone[i].image, rtol=0, atol=1e-4)
    for given, message in (
        ({"image": torch.zeros(2, *shapes["image"]), "audio": one}, "of image cannot be given"),
        ({"audio": one[:1]}, "cannot be given"),
        ({}, "audio is missing"),
    ):
        with pytest.raises(CoDiError, match=message):
            run(cross, **given)


def test_later_stages_attend_to_finished_outputs_and_not_the_other_way_round(pipe):
    usual = {"steps": 2, "seed": 3, "cfg": 2.0, "alignment_guidance": 3.0}
    run = lambda outputs, **more: pipe("a blue star", outputs, **usual, **more)[0]  # noqa: E731
    alone = {output: run([output]) for output in ("audio", "image")}
    first, turned = (run(["audio", "image"], schedule=schedule) for schedule in ("audio, image", "image, audio"))
    torch.testing.assert_close(first.audio, alone["audio"].audio, rtol=0, atol=2e-3)
    torch.testing.assert_close(turned.image, alone["image"].image, rtol=0, atol=1e-4)
    assert (first.image - alone["image"].image).abs().max() > 1e-3 and (turned.image - first.image).abs().max() > 1e-3
    given = pipe("a blue star", ["image"], given={"audio": (first.audio, 16000)}, **usual)[0]  # decoded and encoded again: nearly the same
    together = run(["audio", "image"], schedule="together")
    assert (together.image - first.image).abs().max() > 1e-3 and given.image.shape == first.image.shape
    off = run(["audio", "image"], schedule="audio, image", wiring="off")
    torch.testing.assert_close(off.image, alone["image"].image, rtol=0, atol=1e-4)


def test_a_later_stage_attends_to_the_finished_latents_as_to_given_ones(pipe):
    """Their environment embeddings are those of latents without noise, at timestep 0."""
    config, (cond, uncond) = pipe.model.config, pipe.condition([Prompt("text", "a blue star")])
    usual = {"steps": 3, "cfg": 2.0, "alignment_guidance": 3.0}
    staged = Settings.resolve(config, ("image", "text", "audio"), schedule="audio+text, image", **usual)
    noise = initial_noise(latent_shapes(config, staged), [7, 8])
    made, ran = pipe.denoise(cond, uncond, staged, noise)
    assert ran == 6
    given = Settings.resolve(config, ("image",), given=("audio", "text"), **usual)
    again, ran = pipe.denoise(cond, uncond, given, noise, given={m: made[m] for m in ("audio", "text")})
    assert ran == 3
    for output, latent in made.items():
        torch.testing.assert_close(again[output], latent, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_run_with_shifted_noise_levels_is_single_runs_at_their_own(pipe, monkeypatch, prediction):
    """With the alignment off: x = s x0 + sigma n at sigma is s times the run of the modality alone at sigma / s."""
    shifts = {"image": -1.0, "audio": 1.4}
    settings = {"steps": 3, "cfg": 2.5, "wiring": "off", "schedule": "together", "scheduler": "karras"}
    cond, uncond = pipe.condition([Prompt("text", "a blue star")])
    timestep = NoiseSchedule.timestep  # which is rounded without a shift; here it is not, anywhere
    monkeypatch.setattr(NoiseSchedule, "timestep", lambda self, sigma, scale=1.0: timestep(self, 7 * sigma, 7 * scale))
    together_config = dataclasses.replace(pipe.model.config, diffusion=DiffusionConfig(prediction=prediction, shifts=shifts))
    single_config = dataclasses.replace(pipe.model.config, diffusion=DiffusionConfig(prediction=prediction))
    both = Settings.resolve(together_config, tuple(shifts), **settings)
    noise = initial_noise(latent_shapes(together_config, both), [7])
    monkeypatch.setattr(pipe.model, "config", together_config)
    together, _ = pipe.denoise(cond, uncond, both, noise)
    monkeypatch.setattr(pipe.model, "config", single_config)
    unshifted, _ = pipe.denoise(cond, uncond, both, noise)
    levels, _ = both.sigmas(single_config)
    for output, shift in shifts.items():
        own = [sigma / math.exp(shift / 2) for sigma in levels]
        monkeypatch.setattr(Settings, "sigmas", lambda *_, own=own: (own, True))
        alone, _ = pipe.denoise(cond, uncond, Settings.resolve(single_config, (output,), **settings), {output: noise[output]})
        assert (together[output] - alone[output]).norm() < 1e-3 * alone[output].norm()
        assert (together[output] - unshifted[output]).norm() > 0.05 * unshifted[output].norm()


def test_media_become_the_latents_that_decode_to_them(pipe):
    config = pipe.model.config
    shapes = latent_shapes(config, Settings.resolve(config, MODALITIES))
    clip = torch.rand(3, 3, 50, 90)
    sounds = [Prompt("audio", (torch.rand(30000) - 0.5, 22050)), Prompt("audio", (torch.rand(10), 48000))]
    for prompt in (Prompt("text", "a red circle"), Prompt("image", clip[0]), Prompt("video", clip), *sounds):
        latent = encode_media(pipe.model, prompt)
        assert latent.shape == shapes[prompt.kind] and latent.isfinite().all()
    still = clip[:1, :, :, :50].expand(8, -1, -1, -1)
    frames, picture = encode_media(pipe.model, Prompt("video", still)), encode_media(pipe.model, Prompt("image", still[0]))
    torch.testing.assert_close(frames[:, 3], picture, rtol=0, atol=1e-3)

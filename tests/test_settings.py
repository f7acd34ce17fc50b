"""What a run is asked for: defaults of the model, stages, and names of version 0.3."""

from __future__ import annotations

import dataclasses
import inspect
import itertools

import pytest
from codi.codi_models import version_0_3
from codi.codi_models.alignment import Alignment
from codi.codi_models.config import CoDiConfig, DiffusionConfig, SamplingConfig
from codi.codi_models.diffusion import NoiseSchedule, run_sigmas
from codi.codi_models.errors import CoDiError
from codi.codi_models.guidance import Guidance
from codi.codi_models.modalities import MODALITIES, Size
from codi.codi_models.settings import OVERRIDES, Settings, image_unit, latent_shapes, own_size, parse_each, snr_scales, unusual_sizes
from codi.codi_models.stages import SCHEDULES, SEQUENTIAL, TOGETHER, parse_schedule
from small import small_config

CONFIG = small_config()


def test_every_default_is_the_models() -> None:
    unusual = SamplingConfig(
        image_size=48, video_size=32, frames=5, frame_rate=3.0, sampler="euler", scheduler="karras", steps=13, cfg=2.25, cfg_rescale=0.25,
        wiring="self", alignment=0.75, alignment_guidance=1.5, alignment_combine="sum", schedule="image, audio+text",
    )  # fmt: skip
    for other in dataclasses.fields(SamplingConfig):
        assert getattr(unusual, other.name) != getattr(CONFIG.sampling, other.name), "a default that differs"
    one = Settings.resolve(dataclasses.replace(CONFIG, sampling=unusual), list(MODALITIES))
    assert (one.image_size, one.video_size, one.frames, one.sampler, one.scheduler, one.steps) == (48, 32, 5, "euler", "karras", 13)
    assert dict(one.cfg) == dict.fromkeys(MODALITIES, 2.25) and one.alignment == Alignment("self", 0.75, 1.5, combine="sum")
    assert one.stages == (("image",), ("text", "audio"), ("video",)) or one.stages == (("image",), ("audio", "text"), ("video",))
    assert (one.seed, one.count, one.cfg_rescale, one.mix, one.given, one.strength) == (0, 1, 0.25, "linear", (), ())


OFFICIAL = CoDiConfig.official()
NEAR = [
    ("image", Size(512, 512), 0), ("image", Size(256, 256), 0), ("image", Size(768, 512), 0), ("image", Size(128, 512), 1),
    ("image", Size(1024, 1024), 2), ("video", Size(256, 256, 8), 0), ("video", Size(512, 512, 8), 2), ("video", Size(256, 256, 30), 1),
    ("video", Size(256, 256, 2), 1), ("audio", Size(mel_frames=1024), 0), ("audio", Size(mel_frames=512), 0),
    ("audio", Size(mel_frames=96), 1), ("text", Size(), 0),
]  # fmt: skip


@pytest.mark.parametrize(("output", "size", "count"), NEAR, ids=str)
def test_sizes_far_from_the_models_own_are_named_with_it(output, size, count) -> None:
    lines = unusual_sizes(OFFICIAL, {output: size})
    assert len(lines) == count and all(line.startswith(f"{output}: ") and "codi was made for" in line for line in lines)
    assert unusual_sizes(OFFICIAL, {m: own_size(OFFICIAL, m) for m in MODALITIES}) == []


def test_every_setting_of_a_run_replaces_its_default() -> None:
    given = {
        "steps": 3, "cfg": "image=4, text=2", "cfg_rescale": 0.5, "sampler": "euler", "scheduler": "normal", "wiring": "self",
        "alignment": 0.5, "alignment_guidance": 2.0, "alignment_directions": "image<text=0.25", "alignment_start": 0.125,
        "alignment_end": 0.75, "alignment_combine": "sum", "schedule": "text, image", "strength": "text=0.5", "mix": "spherical",
        "frames": 4, "size": 32,
    }  # fmt: skip
    assert set(given) == set(OVERRIDES) <= set(inspect.signature(Settings.resolve).parameters)
    usual = Settings.resolve(CONFIG, ["image", "text"], given=["text"]).to_dict()
    told = Settings.resolve(CONFIG, ["image", "text"], given=["text"], **given).to_dict()
    assert told["cfg"] == {"image": 4.0, "text": 2.0} and told["strength"] == {"text": 0.5}
    assert told["alignment_directions"] == "image<text=0.25" and told["image_size"] == told["video_size"] == 32
    for name in set(OVERRIDES) - {"cfg", "strength", "alignment_directions", "size"}:
        assert told[name] == given[name] and usual.get(name) != given[name], name
    again = Settings.resolve(CONFIG, told["outputs"], given=told["given"], batch_size=told["batch_size"], size=32,
                             **{name: told[name] for name in set(OVERRIDES) & set(told)})  # fmt: skip
    assert again.to_dict() == told


def test_what_is_told_of_a_run_leaves_out_what_was_not_set() -> None:
    told = Settings.resolve(CONFIG, ["video"]).to_dict()
    assert told["cfg"] == CONFIG.sampling.cfg and told["outputs"] == ["video"]
    assert not {"given", "strength", "alignment_directions", "alignment_start", "alignment_end"} & set(told)


def test_guidance_of_every_output() -> None:
    one = Settings.resolve(CONFIG, ["image", "text"], cfg="2, image=5", cfg_rescale=0.5, alignment_guidance=4)
    assert one.guidance(prompted=True) == {"image": Guidance(5, 4, 0.5), "text": Guidance(2, 4, 0.5)}
    assert one.guidance(prompted=False) == {"image": Guidance(1, 4, 0.5), "text": Guidance(1, 4, 0.5)}
    assert parse_each("cfg", "2, image=5") == (2.0, {"image": 5.0})


def test_a_run_starts_from_pure_noise_where_its_schedule_does() -> None:
    schedule = NoiseSchedule(DiffusionConfig())
    for scheduler, pure in (("sgm_uniform", True), ("karras", True), ("ddim_uniform", False), ("ddim_published", True)):
        sigmas, unit_start = Settings.resolve(CONFIG, ["image"], scheduler=scheduler, steps=7).sigmas(CONFIG)
        assert unit_start == pure and sigmas == run_sigmas(schedule, scheduler, 7)


def test_sizes() -> None:
    assert image_unit(CONFIG) == 16 and image_unit(CoDiConfig.official()) == 64
    shapes = latent_shapes(CONFIG, Settings.resolve(CONFIG, list(MODALITIES), size=48, frames=3))
    assert shapes == {"video": (4, 3, 6, 6), "image": (4, 6, 6), "text": (64,), "audio": (8, 16, 8)}
    for name, shape in shapes.items():
        assert [m for m in MODALITIES if MODALITIES[m].is_latent(shape, CONFIG)] == [name]
    shifted = dataclasses.replace(CONFIG, diffusion=DiffusionConfig(shifts={"audio": 2.0, "image": -1.0}))
    assert snr_scales(shifted) == pytest.approx({"video": 1.0, "image": 0.60653066, "text": 1.0, "audio": 2.71828183})


def test_settings_that_are_equal_are_one_group() -> None:
    ask = dict(alignment_directions="image<text=0.5", cfg="image=4")
    one, same = (Settings.resolve(CONFIG, ["image", "text"], **ask) for _ in range(2))
    other = Settings.resolve(CONFIG, ["image", "text"], **{**ask, "alignment_directions": "image<text=0.25"})
    assert one == same and hash(one) == hash(same) and one != other and len({one, same, other}) == 2


@pytest.mark.parametrize(("text", "outputs", "stages"), [
    ("together", ("image", "audio"), [{"image", "audio"}]),
    ("sequential", ("image", "audio", "text", "video"), [{"text"}, {"audio"}, {"video"}, {"image"}]),
    ("sequential", ("video", "audio"), [{"audio"}, {"video"}]),
    ("video, audio+text", ("video", "audio", "text"), [{"video"}, {"audio", "text"}]),
    (" video ,audio + text ", ("audio", "image"), [{"audio"}, {"image"}]),  # those it does not name come last
    ("video", ("text", "image", "audio"), [{"text", "image", "audio"}]),
    ("", ("text", "image"), [{"text", "image"}]),
])  # fmt: skip
def test_stages(text: str, outputs: tuple[str, ...], stages: list[set[str]]) -> None:
    assert [set(stage) for stage in parse_schedule(text, outputs)] == stages


def test_every_named_schedule_makes_every_output_once() -> None:
    for name, size in itertools.product(SCHEDULES, range(1, 5)):
        for outputs in itertools.combinations(MODALITIES, size):
            stages = parse_schedule(name, outputs)
            assert sorted(m for stage in stages for m in stage) == sorted(outputs)
            assert len(stages) == (1 if name == TOGETHER else size)
    assert set(SCHEDULES) == {TOGETHER, SEQUENTIAL}


@pytest.mark.parametrize(("text", "words"), [
    ("image, smell", "'smell'.*together or sequential"), ("image+text, image", "image twice"), ("audio audio", "'audio audio'"),
])  # fmt: skip
def test_schedules_that_are_none(text: str, words: str) -> None:
    with pytest.raises(CoDiError, match=words):
        parse_schedule(text, ("image",))
    with pytest.raises(CoDiError, match=words):
        Settings.resolve(CONFIG, ["text"], schedule=text)


def test_given_outputs_are_made_by_no_stage_unless_a_part_of_them_is_generated() -> None:
    one = Settings.resolve(CONFIG, ["image"], given=["audio", "text"], strength="text=0.5", schedule="audio, text, image")
    assert one.outputs == ("image", "text", "audio") and one.given == ("text", "audio") and one.unchanged == ("audio",)
    assert one.stages == (("text",), ("image",))
    assert Settings.resolve(CONFIG, ["image"], given=["audio", "text"], strength=0.25).strength == (("text", 0.25), ("audio", 0.25))


def test_settings_of_version_0_3() -> None:
    old = {"order": "in turn", "denoise": 0.5, "alignment_pairs": "image<text=0", "composition": "facets", "cfg": 3.0}
    assert version_0_3.settings(old) == {"schedule": "sequential", "strength": 0.5, "alignment_directions": "image<text=0", "cfg": 3.0}
    assert version_0_3.settings({"order": "(text), video, image"}) == {"schedule": "text, video, image"}
    for sampler, expected in (
        ("ddpm", ("euler_ancestral", "sgm_uniform")), ("ddim_trailing", ("ddim", "sgm_uniform")), ("unipc", ("dpmpp_2m", "sgm_uniform")),
        ("dpmpp_2m_karras", ("dpmpp_2m", "karras")),
    ):  # fmt: skip
        for given in ({"sampler": sampler}, {"sampler": sampler, "scheduler": None}):
            made = version_0_3.settings(given)
            assert (made["sampler"], made["scheduler"]) == expected
            one = Settings.resolve(CONFIG, ["image"], **made)
            assert (one.sampler, one.scheduler) == expected
    assert version_0_3.settings({"sampler": "unipc", "scheduler": "normal"})["scheduler"] == "normal"
    new = {"schedule": "video, audio", "sampler": "euler", "scheduler": None, "steps": 3}
    assert version_0_3.settings(new) == new
    assert version_0_3.settings({"sampler": ["ddpm"], "order": 3}) == {"sampler": ["ddpm"], "schedule": 3}, "told by who reads them"


def test_values_of_other_types_are_named() -> None:
    wrong = {"steps": ("3", 2.5, [3], True), "cfg_rescale": ("x", {}), "wiring": (3, int), "alignment": ([], "1"), "frames": ({}, "8"),
             "alignment_directions": (3, [1], {"image": 1.0}, {("image", "text"): "x"}), "schedule": (3, {}), "size": ("64",),
             "cfg": ([1], {"image": "x"}), "mix": (3,), "seed": ("1", 0.5), "count": ([], 2.5), "batch_size": ("x",)}  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(CoDiError, match=name):
                Settings.resolve(CONFIG, ["image", "text"], **{name: value})
    for outputs in (3, None, [3], [[]], {"image": 1, "smell": 2}, ""):
        with pytest.raises(CoDiError, match="outputs?"):
            Settings.resolve(CONFIG, outputs)  # type: ignore[arg-type]
    with pytest.raises(CoDiError) as error:
        Settings.resolve(CONFIG, ["image"], schedule="x" * 100_000)
    assert len(str(error.value)) < 2000

"""Facets of the shared space: read, put together anew, and asked for apart; sounds between the pitches that they are learnt from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from codi.codi_models.bounce_world import bounce, gliding, judge, render
from codi.codi_models.config import CoDiConfig
from codi.codi_models.denoisers.faceted import FacetedContext
from codi.codi_models.errors import CoDiError
from codi.codi_models.facets import FACETS_FILE, Composition, Facets
from codi.codi_models.joint import JointDenoiser
from codi.codi_models.model import SHIPPED, CoDi
from codi.codi_models.pipeline import CoDiPipeline
from codi.codi_models.prompts import Prompt, encode_prompt, prompted
from codi.codi_models.settings import Settings

WORDS = {"shape": bounce.SHAPES, "colour": bounce.COLOURS, "beats": ("once", "twice", "three times")}


@pytest.fixture(scope="module")
def pipe() -> CoDiPipeline:
    return CoDiPipeline.from_pretrained("codi-mini", device="cpu")


@pytest.fixture(scope="module")
def facets(pipe: CoDiPipeline) -> Facets:
    assert pipe.model.facets is not None
    return pipe.model.facets


def point(pipe: CoDiPipeline, text: str) -> torch.Tensor:
    return encode_prompt(pipe.model, Prompt("text", text))


@pytest.mark.parametrize(("text", "said"), [
    ("a red circle bounces twice", (0, 0, 1)), ("the star is green and bounces once", (3, 2, 0)), ("something blue", (-1, 4, -1)),
    ("a triangle", (2, -1, -1)), ("something bounces three times", (-1, -1, 2)), ("magenta square, once", (1, 5, 0)), ("", (-1, -1, -1)),
])  # fmt: skip
def test_facets_read_what_a_caption_says(pipe: CoDiPipeline, facets: Facets, text: str, said: tuple[int, ...]) -> None:
    odds = facets.odds(point(pipe, text))
    assert set(odds) == set(bounce.ATTRIBUTES)
    for name, value in zip(bounce.ATTRIBUTES, said, strict=True):
        share = odds[name]
        torch.testing.assert_close(share.sum(), torch.tensor(1.0))
        assert share[0, 0, value] > 0.9  # the last one is that nothing is said


def test_facets_read_media_as_they_read_captions(pipe: CoDiPipeline, facets: Facets) -> None:
    scenes = bounce.every_scene("exclude")[torch.arange(0, 54, 5)]
    nuisance = bounce.sample_nuisance(len(scenes), generator=torch.Generator().manual_seed(4))
    waves = render.render_audio(scenes, nuisance)
    sounds = torch.cat([encode_prompt(pipe.model, Prompt("audio", (wave, bounce.SAMPLE_RATE))) for wave in waves])
    pictures = torch.cat([encode_prompt(pipe.model, Prompt("image", one)) for one in render.render_image(scenes, nuisance)])
    for kind, points in (("audio", sounds), ("image", pictures)):
        odds = facets.odds(points)
        for name in bounce.ATTRIBUTES:
            expected = getattr(scenes, name) if name in bounce.SEEN_IN[kind] else torch.full((len(scenes),), odds[name].shape[-1] - 1)
            assert (odds[name][:, 0].argmax(1) == expected).float().mean() > 0.9, (kind, name)


def test_clarified_prompts_of_all_kinds_meet_and_nothing_stays_nothing(pipe: CoDiPipeline, facets: Facets) -> None:
    scenes = bounce.every_scene("exclude")[torch.arange(3)]
    wave = render.render_audio(scenes, bounce.sample_nuisance(3, generator=torch.Generator().manual_seed(1)))[0]
    sound = Prompt("audio", (wave, bounce.SAMPLE_RATE))
    caption = f"a {bounce.COLOURS[int(scenes.colour[0])]} {bounce.SHAPES[int(scenes.shape[0])]} bounces once"
    raw = [encode_prompt(pipe.model, sound)[0, 0], point(pipe, caption)[0, 0]]
    clear = [prompted(pipe.model, encode_prompt(pipe.model, p))[0, 0] for p in (sound, Prompt("text", caption))]
    assert clear[0] @ clear[1] > 0.99 > raw[0] @ raw[1]
    assert all(abs(float(p.norm()) - 1) < 1e-5 for p in clear)
    torch.testing.assert_close(prompted(pipe.model, point(pipe, "")), point(pipe, ""), atol=2e-3, rtol=0)
    assert torch.equal(prompted(pipe.model, point(pipe, caption), "plain"), point(pipe, caption))


def test_a_prompt_that_is_silent_on_something_takes_nothing_away_from_one_that_says_it(pipe: CoDiPipeline, facets: Facets) -> None:
    """A picture shows no beats: mixed half and half with a caption or a sound, the mixture has theirs."""
    scenes = bounce.every_scene("exclude")[torch.arange(0, 54, 3)]
    nuisance = bounce.sample_nuisance(len(scenes), generator=torch.Generator().manual_seed(8))
    pictures = [Prompt("image", one) for one in render.render_image(scenes, nuisance)]
    sounds = [Prompt("audio", (wave, bounce.SAMPLE_RATE)) for wave in render.render_audio(scenes, nuisance)]
    captions = [Prompt("text", text) for text in bounce.captions(scenes, generator=torch.Generator().manual_seed(8), full=True)]
    for others in (sounds, captions):
        mixed = torch.cat([pipe.condition(pair)[0] for pair in zip(pictures, others, strict=True)])  # (n, 1, D)
        torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(len(scenes), 1))
        for name, odds in facets.odds(mixed).items():
            assert (odds[:, 0].argmax(dim=1) == getattr(scenes, name)).float().mean() > 0.9, name
        plain = torch.cat([pipe.condition(pair, composition="plain")[0] for pair in zip(pictures, others, strict=True)])
        raw = [torch.cat([encode_prompt(pipe.model, p) for p in prompts]) for prompts in (pictures, others)]
        torch.testing.assert_close(plain, (raw[0] + raw[1]) / 2)


def test_silence_has_no_voice(pipe: CoDiPipeline, facets: Facets) -> None:
    """One of three prompts that contradict each other says the beats, and one of two or three prompts says anything."""
    rest = torch.arange(0, 54, 2)
    scenes, others = bounce.every_scene("exclude")[rest], bounce.every_scene("exclude")[(rest + 22) % 54]
    nuisance = bounce.sample_nuisance(len(scenes), generator=torch.Generator().manual_seed(9))
    sounds = [Prompt("audio", (wave, bounce.SAMPLE_RATE)) for wave in render.render_audio(scenes, nuisance)]
    pictures = [Prompt("image", one) for one in render.render_image(others, nuisance)]
    colour = Prompt("text", "something cyan")
    mixed = torch.cat([pipe.condition([colour, *pair])[0] for pair in zip(pictures, sounds, strict=True)])
    assert (facets.odds(mixed)["beats"][:, 0].argmax(dim=1) == scenes.beats).float().mean() > 0.9
    nothing = Prompt("text", "")
    for weight in (1, 2):  # of the empty text, beside 1 of the sound
        mixed = torch.cat([pipe.condition([one, replace(nothing, weight=weight)])[0] for one in sounds])
        for name, odds in facets.odds(mixed).items():
            assert (odds[:, 0].argmax(dim=1) == getattr(scenes, name)).float().mean() > 0.9, name
    shapes = facets.odds(torch.cat([pipe.condition([one, nothing, nothing])[0] for one in pictures]))
    assert (shapes["beats"][:, 0, -1] > 0.9).all()  # and what nothing says, is not made up


def test_a_negative_weight_takes_a_facet_away_and_leaves_the_others(pipe: CoDiPipeline, facets: Facets) -> None:
    scenes = bounce.every_scene("exclude")[torch.arange(0, 54, 5)]
    found = []
    for shape, colour, beats in zip(scenes.shape.tolist(), scenes.colour.tolist(), scenes.beats.tolist(), strict=True):
        words = f"a {bounce.COLOURS[colour]} {bounce.SHAPES[shape]} bounces {WORDS['beats'][beats]}"
        found.append(pipe.condition([Prompt("text", words), Prompt("text", f"something {bounce.COLOURS[colour]}", -0.75)])[0])
    odds = facets.odds(torch.cat(found))
    assert (odds["colour"][:, 0, -1] > 0.9).all()
    for name in ("shape", "beats"):
        assert torch.equal(odds[name][:, 0].argmax(dim=1), getattr(scenes, name))


def test_composed_noise_is_the_sum_of_what_the_facets_say(pipe: CoDiPipeline, facets: Facets) -> None:
    net, generator = pipe.model.vision_denoiser, torch.Generator().manual_seed(2)
    texts = ["a red triangle", "", "something cyan"]
    context = prompted(pipe.model, torch.cat([point(pipe, text) for text in texts]))
    found = Composition(facets, ("shape", "colour"), 500)(context)
    assert found.told.tolist() == [0, 2] and found.untold.tolist() == [1] and found.facets == 2
    x = torch.randn(3, 4, 8, 8, generator=generator)
    environment = torch.randn(3, 1, 128, generator=generator)
    alone = {text: torch.cat([point(pipe, text)] * 3) for text in ("", "a triangle", "something red", "something cyan")}
    for extra in ({}, {"environment": environment, "alignment": torch.tensor([1.0, 0.5, 2.0])}):
        late = torch.full((3,), 400)
        with torch.no_grad():
            made = net(x, late, net.fold_context(found), **extra)
            torch.testing.assert_close(net(x, late, found, **extra), made, atol=1e-5, rtol=1e-4)
            said = {text: net(x, late, c, **extra) for text, c in alone.items()}
            early = torch.full((3,), 500)
            torch.testing.assert_close(net(x, early, found, **extra), net(x, early, context, **extra), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(made[1], net(x, late, context, **extra)[1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made[0], (said["a triangle"] + said["something red"] - said[""])[0], atol=0.05, rtol=0)
        torch.testing.assert_close(made[2], said["something cyan"][2], atol=0.05, rtol=0)
        assert (made[0] - said["something red"][0]).abs().max() > 0.1


@pytest.mark.parametrize(("text", "whole", "pictures"), [
    ("a red circle bounces twice", 0, 0), ("something blue", 1, 1), ("a green star", 1, 0), ("something bounces once", 1, 1), ("", 1, 1),
])  # fmt: skip
def test_guidance_reaches_what_the_prompt_leaves_open(pipe: CoDiPipeline, facets: Facets, text: str, whole: int, pictures: int) -> None:
    prompt, empty = prompted(pipe.model, point(pipe, text)), point(pipe, "")
    said = {name: float(share) for name, share in facets.left_open(prompt).items()}
    assert said == {name: float(all(word not in text for word in words)) for name, words in WORDS.items()}
    both = facets.left_open(torch.cat([prompt, empty], dim=1))  # a prompt of two tokens, of which one says nothing
    assert all(share.tolist() == [1] for share in both.values())
    joint = JointDenoiser({}, composition=pipe.model.composition("facets"), emphasis={"image": 2, "video": 3, "audio": 0.5})
    found = {m: share.tolist() for m, share in joint.reach(torch.cat([prompt, empty]), 3.0).items()}
    image, audio = (2, 0.5) if text else (1, 1)  # where the prompt says nothing, there is nothing to hold its own beside
    video = 3 if text and pictures else 1  # nor in what clips show beside beats
    assert found == {"video": [video * whole, 1], "image": [image * pictures, 1], "text": [whole, 1], "audio": [audio * whole, 1]}
    for guidance in (0.5, 1.0):  # weaker coupling is for all alike
        assert set(map(float, joint.reach(prompt, guidance).values())) == {1.0}
    assert set(map(float, JointDenoiser({}).reach(prompt, 3.0).values())) == {1.0}
    assert float(JointDenoiser({}, emphasis={"image": 2}).reach(prompt, 3.0)["image"]) == 2


def test_outputs_are_guided_to_agree_on_what_the_prompt_leaves_open(pipe: CoDiPipeline) -> None:
    def run(prompt: str, guidance: float, composition: str = "facets") -> torch.Tensor:
        settings = {"steps": 3, "seed": 5, "order": "together", "alignment_guidance": guidance, "composition": composition}
        return pipe(prompt, ["image", "audio"], **settings)[0].image

    told = "a red circle bounces twice"
    assert torch.equal(run(told, 4.0), run(told, 1.0))
    assert not torch.equal(run(told, 0.5), run(told, 1.0))  # weaker coupling stays weaker
    for prompt, composition in (("something red", "facets"), (told, "plain")):
        assert (run(prompt, 4.0, composition) - run(prompt, 1.0, composition)).abs().max() > 0.02


def test_emphasis_is_a_number_for_all_outputs_or_for_some(tmp_path: Path) -> None:
    def emphasis(text: str) -> dict[str, float]:
        config = CoDiConfig.mini()
        sampling = replace(config.sampling, alignment_emphasis=text)
        return CoDi(tmp_path, replace(config, sampling=sampling), device=torch.device("cpu"), dtype=torch.float32).emphasis

    assert emphasis("") == {} and emphasis("image=2, audio=0") == {"image": 2.0, "audio": 0.0}
    assert emphasis("0.5, image=2") == {"video": 0.5, "image": 2.0, "text": 0.5, "audio": 0.5}
    for text, message in (("image=much", "no number"), ("smell=1", "unknown output 'smell'")):
        with pytest.raises(CoDiError, match=f"alignment_emphasis.*{message}"):
            emphasis(text)


def test_composition_takes_prompts_of_every_frame_apart(pipe: CoDiPipeline, facets: Facets) -> None:
    rows = torch.cat([prompted(pipe.model, point(pipe, text)) for text in ("a red star", "a blue star", "")])
    frames = rows[None].expand(2, -1, -1, -1)  # (B, F, n, D)
    found = Composition(facets, ("shape", "colour"), 500)(frames)
    assert isinstance(found, FacetedContext) and found.told.tolist() == [0, 1] and found.apart.shape == (6, 3, 1, 128)
    with torch.no_grad():
        assert pipe.model.vision_denoiser(torch.zeros(2, 4, 3, 8, 8), torch.tensor([9, 9]), found).isfinite().all()


def test_settings_of_composition(pipe: CoDiPipeline, tmp_path: Path) -> None:
    config = pipe.model.config
    assert Settings.settled(config, ["image"]).composition == "facets"
    assert Settings.settled(CoDiConfig.mini(), ["image"]).composition == "plain"  # until facets are fitted
    assert Settings.settled(CoDiConfig.official(), ["image"]).composition == "plain"
    assert Settings.settled(config, ["image", "text"]).scales == {"image": 3.75, "text": 2.0}
    assert Settings.settled(config, ["image", "text"], cfg=4).scales == {"image": 4.0, "text": 4.0}
    assert Settings.settled(config, ["image", "text"], cfg="image=5").scales == {"image": 5.0, "text": 2.0}
    assert Settings.settled(config, ["image", "video"], order="in turn").scales["text"] == 2.0  # of a caption that is only heard
    with pytest.raises(CoDiError, match="unknown composition 'parts': give one of plain, facets"):
        Settings.settled(config, ["image"], composition="parts")
    plain, apart = (pipe("a red star", ["image"], seed=3, composition=kind)[0].image for kind in ("plain", "facets"))
    assert (plain - apart).abs().max() > 0.02
    torch.testing.assert_close(pipe([], ["image"], seed=3, composition="plain")[0].image, pipe([], ["image"], seed=3)[0].image)


def test_facets_file_is_checked(facets: Facets, tmp_path: Path) -> None:
    assert Facets.load(tmp_path / "none.safetensors") is None
    path = tmp_path / FACETS_FILE
    facets.save(path)
    again = Facets.load(path)
    assert again is not None and again.sharpness == facets.sharpness and torch.equal(again.base, facets.base)
    assert all(
        torch.equal(getattr(again.facets[n], k), getattr(f, k)) for n, f in facets.facets.items() for k in ("reader", "values", "parts")
    )
    Facets({}, facets.base, 1.0).save(path)
    with pytest.raises(CoDiError, match="holds no facets"):
        Facets.load(path)
    Facets(facets.facets, facets.base[:64], 1.0).save(path)
    with pytest.raises(CoDiError, match="do not fit embeddings 64 wide"):
        Facets.load(path)


def test_a_model_without_its_facets_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "codi-mini", folder)
    (folder / FACETS_FILE).unlink()
    model = CoDi.from_pretrained(folder, device="cpu")
    with pytest.raises(CoDiError, match=f"needs {FACETS_FILE}.*use the composition 'plain'"):
        prompted(model, torch.zeros(1, 1, 128))
    assert prompted(model, torch.zeros(1, 1, 128), "plain").shape == (1, 1, 128) and model.composition("plain") is None
    text = (folder / "config.json").read_text().replace('"shape, colour"', '"shape, smell"')
    (folder / "config.json").write_text(text)
    shutil.copy(SHIPPED / "codi-mini" / FACETS_FILE, folder)
    with pytest.raises(CoDiError, match="has no facet 'smell'"):
        CoDi.from_pretrained(folder, device="cpu").composition("facets")


def test_sounds_between_those_of_the_world_are_none_that_is_held_out() -> None:
    generator = torch.Generator().manual_seed(6)
    drawn = gliding.draw(96, generator)
    waves = drawn.render(bounce.sample_nuisance(len(drawn), generator=generator))
    read = judge.judge_audio(waves, bounce.SAMPLE_RATE)
    held_out = {(bounce.SHAPES.index(s), bounce.COLOURS.index(c)) for s, c in bounce.HELD_OUT}
    shown = torch.tensor([pair in held_out for pair in zip(read["shape"].tolist(), read["colour"].tolist(), strict=True)])
    assert torch.equal(gliding.held_out(waves), shown) and 2 <= shown.sum() <= 48
    kept, waves = gliding.sounds(96, torch.Generator().manual_seed(6))
    assert len(kept) == len(waves) < 96 and not gliding.held_out(waves).any()
    assert torch.equal(read["beats"], drawn.beats) and (read["colour"] == -1).sum() > 10  # a pitch between two is none
    for share in drawn.odds().values():
        torch.testing.assert_close(share.sum(dim=1), torch.ones(96))
    near = (drawn.shape_share < 0.1) & (drawn.colour_share < 0.05)
    assert torch.equal(read["colour"][near], drawn.colour[near]) and torch.equal(read["shape"][near], drawn.shape[near])
    high = drawn.colour_share > 0.95
    assert torch.equal(read["colour"][high], drawn.colour[high] + 1)

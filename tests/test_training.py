"""Training from a recipe: every kind of run on a tiny model, resumed, repeated, and what each leaves alone."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from codi.codi_models.bounce_world.dataset import BounceWorld
from codi.codi_models.checkpoints import read_weights
from codi.codi_models.config import DiffusionConfig
from codi.codi_models.denoisers.alignment import ALIGNMENT_PREFIXES, CONNECTOR_PREFIXES, ENVIRONMENT_PREFIXES
from codi.codi_models.errors import CoDiError
from codi.codi_models.model import CoDi
from codi.codi_models.pipeline import CoDiPipeline
from codi.codi_models.training.alignment import LatentAlignment, pairs_of
from codi.codi_models.training.autoencoding import Autoencoding
from codi.codi_models.training.bridging import Bridging
from codi.codi_models.training.denoising import Denoising, Noising
from codi.codi_models.training.encoded import Encoded, draw_prompts, encode_dataset, jittered
from codi.codi_models.training.recipe import Recipe
from codi.codi_models.training.run import train_recipe
from codi.codi_models.training.workspace import Workspace
from host.tiny import tiny_config
from random_model import apart

RUNS: list[dict[str, Any]] = [
    {"name": "image_autoencoder", "kind": "autoencoder", "component": "image_autoencoder", "batch": 2, "detail": 4.0},
    {"name": "audio_autoencoder", "kind": "autoencoder", "component": "audio_autoencoder", "batch": 2, "bf16": True},
    {"name": "vocoder", "kind": "vocoder", "batch": 2},
    {"name": "text_autoencoder", "kind": "autoencoder", "component": "text_autoencoder", "batch": 4, "prompts": 0.5},
    {"name": "bridging", "kind": "bridging", "batch": {"image": 4, "audio": 4, "video": 4}},
    {"name": "vision_denoiser", "kind": "denoiser", "modalities": ["image", "video"], "batch": {"image": 4, "video": 2}, "variants": 2},
    {"name": "audio_denoiser", "kind": "denoiser", "modalities": ["audio"], "batch": {"audio": 4}, "variants": 2, "optimizer": "muon"},
    {"name": "text_denoiser", "kind": "denoiser", "modalities": ["text"], "batch": {"text": 4}, "variants": 2},
    {
        "name": "environment",
        "kind": "environment",
        "batch": {"image": 4, "video": 2, "audio": 4, "text": 4},
        "variants": 2,
        "generated": 0.5,
    },
    {"name": "alignment", "kind": "alignment", "batch": {"image": 3, "text": 4, "audio": 3, "video": 2}, "variants": 2},
]


@pytest.fixture(scope="module")
def accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def recipe_file(folder: Path, runs: list[dict[str, Any]] = RUNS, steps: int = 3) -> Path:
    config = tiny_config()
    big = dict(clip=dataclasses.replace(config.clip, vocab_size=1536), diffusion=DiffusionConfig(schedule="cosine", prediction="v"))
    config = dataclasses.replace(
        config, **big, text_autoencoder=dataclasses.replace(config.text_autoencoder, encoder_vocab=640, decoder_vocab=1024)
    )
    path = folder / "recipe.json"
    shifts = {"text": -1.0, "image": -2.0, "audio": -4.0, "video": -4.0}
    networks = dataclasses.asdict(config) | {"diffusion": {"schedule": "cosine", "prediction": "v", "shifts": shifts}}
    data = {"networks": networks, "runs": [{"steps": steps, **run} for run in runs]}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def few(recipe: Recipe) -> BounceWorld:
    return BounceWorld(recipe.networks, items=24)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, accelerator: Any) -> Path:
    """A model trained by the whole tiny recipe."""
    folder = tmp_path_factory.mktemp("recipe")
    recipe = Recipe.load(recipe_file(folder))
    assert train_recipe(recipe, few(recipe), folder / "model", folder / "runs", accelerator=accelerator, say=lambda _: None)
    return folder


def test_a_recipe_makes_a_model_that_generates(trained: Path) -> None:
    (sample,) = CoDiPipeline.from_pretrained(trained / "model", device="cpu")("a red ball", ("image", "video", "audio", "text"), steps=2)
    assert sample.image is not None and sample.image.shape == (3, 64, 64) and sample.video is not None and sample.video.shape[0] == 8
    assert sample.audio is not None and len(sample.audio) == 20480 and isinstance(sample.text, str)
    assert {path.name for path in (trained / "runs").iterdir()} == {run["name"] for run in RUNS} | {"cache"}


def test_the_log_shows_what_is_made(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def tags(run: str) -> dict[str, Any]:
        log = EventAccumulator(str(trained / "runs" / run))
        log.Reload()
        return log.Tags()

    assert tags("image_autoencoder")["images"] == ["reconstruction"] and "loss" in tags("image_autoencoder")["scalars"]
    assert set(tags("vision_denoiser")["images"]) == {"image", "video"}
    assert tags("text_denoiser")["tensors"] == ["text/text_summary"]
    assert {"audio+video/audio", "audio+video/video", "image+text/image"} <= set(tags("alignment")["images"])


def test_latent_alignment_trains_environment_encoders_and_connectors_alone(trained: Path, tmp_path: Path, accelerator: Any) -> None:
    """Denoisers leave them as they are drawn; after both runs of latent alignment every connector has moved."""
    runs = [run for run in RUNS if run["name"] in ("environment", "alignment")]
    recipe = Recipe.load(recipe_file(tmp_path, runs))
    weights = trained / "model"
    shutil.copytree(weights, tmp_path / "model")
    assert train_recipe(recipe, few(recipe), tmp_path / "model", tmp_path / "runs", accelerator=accelerator, say=lambda _: None)
    for path in weights.glob("*.safetensors"):
        before, after = read_weights(path)[0], read_weights(tmp_path / "model" / path.name)[0]
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert all(key.startswith(ALIGNMENT_PREFIXES) for key in changed)
        assert bool(changed) == path.stem.endswith("denoiser")


@pytest.mark.parametrize("kind", ["image", "audio", "text"])
def test_a_decoder_that_trains_alone_leaves_the_latents_as_they_are(trained: Path, tmp_path: Path, accelerator: Any, kind: str) -> None:
    """And the factor of their variance, bit for bit."""
    shutil.copytree(trained / "model", tmp_path / "model")
    component = f"{kind}_autoencoder"
    runs = [{"name": "decoder", "kind": "autoencoder", "component": component, "batch": 2, "freeze_encoder": True, "optimizer": "muon"}]
    recipe = Recipe.load(recipe_file(tmp_path, runs))
    before = Workspace(tmp_path / "model", torch.device("cpu"))
    scale, old = getattr(before.config, component).scale, before.trained(component)
    assert train_recipe(recipe, few(recipe), tmp_path / "model", tmp_path / "runs", accelerator=accelerator, say=lambda _: None)
    after = Workspace(tmp_path / "model", torch.device("cpu"))
    assert getattr(after.config, component).scale == scale
    batch = Autoencoding(after, few(recipe), Autoencoding.Options(component=component, batch=2)).batch(2, torch.Generator().manual_seed(0))
    given = batch[0] if kind == "text" else batch
    latents, as_before = after.trained(component).moments(given), old.moments(given)
    assert all(torch.equal(a, b) for a, b in zip(latents, as_before, strict=True))
    weights, first = (read_weights(folder / "model" / f"{component}.safetensors")[0] for folder in (tmp_path, trained))
    assert any(not torch.equal(value, first[key]) for key, value in weights.items())


def test_videos_that_train_the_encoder_of_images_too_move_their_mean(trained: Path, tmp_path: Path, accelerator: Any) -> None:
    """After bridging by videos alone, images' mean is where the encoder now puts them, and that of audio is as it was."""
    shutil.copytree(trained / "model", tmp_path / "model")
    runs = [{"name": "more", "kind": "bridging", "batch": {"video": 4}, "freeze_text": True, "learning_rate": 0.01}]
    recipe = Recipe.load(recipe_file(tmp_path, runs, steps=8))
    before = Workspace(tmp_path / "model", torch.device("cpu")).space.means
    assert train_recipe(recipe, few(recipe), tmp_path / "model", tmp_path / "runs", accelerator=accelerator, say=lambda _: None)
    space = Workspace(tmp_path / "model", torch.device("cpu"))
    assert torch.equal(space.space.means["audio"], before["audio"]) and torch.equal(space.space.means["text"], before["text"])
    with torch.no_grad():
        images, texts, _ = Bridging(space, few(recipe), Bridging.Options(batch={"image": 4})).pairs(
            "image", 256, torch.Generator().manual_seed(1)
        )
    centred = [(images.mean(0) - means["image"] - texts.mean(0) + means["text"]).norm() for means in (before, space.space.means)]
    assert centred[1] < 0.2 * centred[0]


def test_outputs_of_a_pair_cannot_be_told_by_their_noise_level_alone(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings that show nothing but the noise level, which both outputs of a row share, do not lower the contrastive loss."""
    space = Workspace(trained / "model", torch.device("cpu"))
    options = LatentAlignment.Options(batch=16, pairs=(("image", "text"),), variants=2)
    data = BounceWorld(space.config, items=24)
    aligning = LatentAlignment(space, LatentAlignment.encode(space, data, options, trained / "runs" / "cache", lambda *_: None), options)
    for net in aligning.nets.values():

        def level(x: torch.Tensor, timesteps: torch.Tensor, size: int = net.config.connector_dim) -> torch.Tensor:
            return torch.nn.functional.one_hot(timesteps.argsort().argsort(), size).float()[:, None]

        monkeypatch.setattr(net, "environment_embedding", level)
    _, logs = aligning(0, torch.Generator().manual_seed(0))
    assert logs["contrastive"] > 1


def test_beside_a_finished_output_only_the_other_is_predicted(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source has no noise, its environment encoder and the target's connectors learn, and the target attends to nothing else."""
    space = Workspace(trained / "model", torch.device("cpu"))
    options = LatentAlignment.Options(batch=4, pairs=(("text", "audio"),), variants=2, finished=1.0)
    data = BounceWorld(space.config, items=24)
    aligning = LatentAlignment(space, LatentAlignment.encode(space, data, options, trained / "runs" / "cache", lambda *_: None), options)
    seen: list[torch.Tensor] = []
    for net in aligning.nets.values():
        encode = net.environment_embedding
        monkeypatch.setattr(net, "environment_embedding", lambda x, t, encode=encode: (seen.append(t), encode(x, t))[1])
    targets = set()
    for step in range(8):
        aligning.zero_grad()
        seen.clear()
        loss, logs = aligning(step, torch.Generator().manual_seed(step))
        loss.backward()
        (target,) = (kind for kind in ("text", "audio") if next(iter(logs)).startswith(f"{kind} beside"))
        assert len(logs) == 1 and len(seen) == 1 and not seen[0].any()
        for kind in ("text", "audio"):
            moved = [n for n, p in aligning.net(kind).named_parameters() if p.grad is not None and p.grad.any()]
            assert moved and all(n.startswith(CONNECTOR_PREFIXES if kind == target else ENVIRONMENT_PREFIXES) for n in moved)
        targets.add(target)
    assert targets == {"text", "audio"}


@pytest.mark.parametrize("finished", [0.0, 1.0])
def test_further_draws_of_the_noise_teach_to_weigh_sources(trained: Path, monkeypatch: pytest.MonkeyPatch, finished: float) -> None:
    """An output attends to one, two or three embeddings of the other, and only among several do queries and keys learn. Further ones know
    no more than the level of the outputs lets them."""
    space = Workspace(trained / "model", torch.device("cpu"))
    options = LatentAlignment.Options(batch=4, pairs=(("text", "audio"),), variants=2, finished=finished, sources=3)
    data = BounceWorld(space.config, items=24)
    aligning = LatentAlignment(space, LatentAlignment.encode(space, data, options, trained / "runs" / "cache", lambda *_: None), options)
    attended: list[torch.Tensor] = []
    for net in aligning.nets.values():

        def forward(*args: Any, own: Any = net.forward, environment: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
            attended.extend([] if environment is None else [environment])
            return own(*args, environment=environment, **kwargs)

        monkeypatch.setattr(net, "forward", forward)
    noisy, levels = aligning.noisy, []
    monkeypatch.setattr(aligning, "noisy", lambda kind, rows, level, generator: levels.append(level) or noisy(kind, rows, level, generator))
    counts = set()
    for step in range(12):
        aligning.zero_grad()
        attended.clear()
        levels.clear()
        aligning(step, torch.Generator().manual_seed(step))[0].backward()
        (count,) = {tokens.shape[1] for tokens in attended}
        keys = [p.grad for net in aligning.nets.values() for name, p in net.named_parameters() if name.endswith("attn2.to_k.weight")]
        assert any(bool(grad.any()) for grad in keys if grad is not None) == (count > 1)
        assert count == 1 or not torch.equal(attended[0][:, 0], attended[0][:, 1])
        outputs, further = (levels[1:2], levels[2:]) if finished else (levels[:2], levels[2:-1])  # the last is of the contrastive loss
        assert all(torch.equal(level, outputs[0]) for level in outputs) and len(further) == (count - 1) * len(outputs)
        assert all(bool((outputs[0] < level).all() and (level < 1).all()) for level in further)
        counts.add(count)
    assert counts == {1, 2, 3}


def test_options_that_cannot_be_used_are_told(trained: Path) -> None:
    space = Workspace(trained / "model", torch.device("cpu"))
    data = BounceWorld(space.config, items=24)
    for cls, options, said in (
        (LatentAlignment, {"batch": {"image": 2, "text": 2}, "pairs": (("image", "text"), ("text", "audio"))}, "no number for audio"),
        (LatentAlignment, {"batch": 2, "sources": 4}, "sources 4 must be 1 to 3"),
        (Denoising, {"batch": {"text": 2}, "modalities": ("audio",)}, "no number for audio"),
        (Denoising, {"batch": {"text": 2}, "modalities": ("text",), "level_power": 0.0}, "level_power 0.0 must be above 0"),
    ):
        chosen = cls.Options(**options, variants=2)
        with pytest.raises(CoDiError, match=said):
            cls(space, cls.encode(space, data, chosen, trained / "runs" / "cache", lambda *_: None), chosen)


def test_the_same_recipe_and_seed_give_the_same_weights(tmp_path: Path, accelerator: Any) -> None:
    """Unbroken, and paused after every step; another seed gives others."""
    runs = [RUNS[3], {**RUNS[4], "batch": {"image": 4}}]

    def weights(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        (tmp_path / name).mkdir()
        recipe = Recipe.load(recipe_file(tmp_path / name, [{**run, **changes} for run in runs]))
        pause = 1e-9 if name == "paused" else None
        for _ in range(20):
            if train_recipe(recipe, few(recipe), tmp_path / name / "model", tmp_path / name / "runs", accelerator=accelerator,
                            say=lambda _: None, pause_after=pause, samples_every=0):  # fmt: skip
                break
        found = {}
        for component in ("text_autoencoder", "clip"):
            found |= {f"{component}.{k}": v for k, v in read_weights(tmp_path / name / "model" / f"{component}.safetensors")[0].items()}
        return found

    first, second, other = weights("unbroken"), weights("paused"), weights("other", seed=1)
    assert 100 * apart(first, second) < apart(first, other)


def test_encodings_are_made_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load(trained / "recipe.json")
    space, data = Workspace(trained / "model", torch.device("cpu")), few(recipe)
    again = encode_dataset(space, data, tuple(data.has), ("image", "text"), trained / "runs" / "cache", variants=2)
    assert again.embeddings["text"].shape == (24, 2, 128) and again.latents["image"].shape == (24, 4, 8, 8)
    monkeypatch.setattr(BounceWorld, "media", lambda *_: pytest.fail("read again"))
    kept = encode_dataset(space, few(recipe), tuple(data.has), ("image", "text"), trained / "runs" / "cache", variants=2)
    assert torch.equal(again.latents["image"], kept.latents["image"]) and torch.equal(again.embeddings["text"], kept.embeddings["text"])


def test_all_modalities_have_the_noise_that_a_sampler_gives_them() -> None:
    config = dataclasses.replace(tiny_config(), diffusion=DiffusionConfig(schedule="cosine", prediction="v", shifts={"audio": -4.0}))
    noising, generator = Noising(config), torch.Generator().manual_seed(0)
    level = noising.levels(1000, generator)
    assert torch.allclose(level.sort().values, (torch.arange(1000) + 0.5) / 1000, atol=6e-4)
    clean = torch.randn(1000, 50, generator=generator)
    for modality, shift in (("image", 0.0), ("audio", -4.0)):
        noisy = noising(modality, clean, level, generator)
        assert torch.allclose(noisy.sigma, noising.schedule.sigma(level * 999) / torch.tensor(shift / 2).exp())
        assert noisy.x.std().item() == pytest.approx(1, abs=0.01)
        signal = (noisy.x * clean).mean(1)
        assert (
            torch.allclose(signal, (1 + noisy.sigma**2).rsqrt(), atol=0.6) and noisy.timesteps.min() >= 0 and noisy.timesteps.max() <= 999
        )


def encoded(**has: list[bool]) -> Encoded:
    """Two-dimensional embeddings that tell the modality: text (1, 0), image (0, 1), audio (-1, 0)."""
    points = {"text": (1.0, 0.0), "image": (0.0, 1.0), "audio": (-1.0, 0.0)}
    count = len(next(iter(has.values())))
    embeddings = {kind: torch.tensor(points[kind]).expand(count, 2) for kind in has}
    return Encoded(embeddings, {}, {kind: torch.tensor(there) for kind, there in has.items()}, torch.tensor([0.0, -1.0]))


def test_prompts_are_drawn_from_what_an_item_has() -> None:
    data = encoded(text=[True, False, False], image=[True, True, False], audio=[True, True, True])
    rows, generator = torch.arange(3).repeat(4000), torch.Generator().manual_seed(0)
    drawn = draw_prompts(data, rows, {"text": 3, "image": 1}, generator, empty=0.4, spread=0.0)[:, 0].round().reshape(4000, 3, 2)

    def part(item: int, point: tuple[float, float]) -> float:
        return (drawn[:, item] == torch.tensor(point)).all(1).float().mean().item()

    assert part(0, (1, 0)) == pytest.approx(0.45, abs=0.03) and part(0, (0, 1)) == pytest.approx(0.15, abs=0.02) and part(0, (-1, 0)) == 0
    assert part(1, (0, 1)) == pytest.approx(0.6, abs=0.03) and part(2, (-1, 0)) == pytest.approx(0.6, abs=0.03)
    assert all(part(item, (0, -1)) == pytest.approx(0.4, abs=0.03) for item in range(3))
    near = jittered(torch.nn.functional.normalize(torch.randn(100, 128, generator=generator), dim=1), generator, 0.15)
    assert torch.allclose(near.norm(dim=1), torch.ones(100), atol=1e-5)


def test_prompts_are_interpolated_as_the_mixer_does() -> None:
    data, rows = encoded(text=[True], image=[True]), torch.zeros(8000, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    drawn = draw_prompts(data, rows, {"text": 1, "image": 1}, generator, empty=0.0, spread=0.0, mixed=0.6)[:, 0]
    assert torch.allclose(drawn.sum(1), torch.ones(8000), atol=1e-5)  # on the line from (1, 0) to (0, 1): not at unit length
    between = drawn[(drawn[:, 0] > 1e-4) & (drawn[:, 1] > 1e-4)]
    assert len(between) / 8000 == pytest.approx(0.3, abs=0.02)  # half of the mixed drew the same modality twice
    assert between.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert between[:, 0].std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_pairs_are_those_of_the_paper_where_the_data_have_them() -> None:
    every = torch.ones(2, dtype=torch.bool)
    assert pairs_of(dict.fromkeys(("text", "image", "audio", "video"), every)) == (("image", "text"), ("text", "audio"), ("audio", "video"))
    assert pairs_of({"image": every, "audio": every}) == (("image", "audio"),)
    with pytest.raises(CoDiError, match="no two of image, video"):
        pairs_of({"image": every, "video": every})


def test_users_words_are_whole_words_of_the_tokenizers(trained: Path) -> None:
    from codi.codi_models.bounce_world import words

    model = CoDi.from_pretrained(trained / "model", device="cpu")
    for text in [w for table in (*words.SHAPE_WORDS.values(), *words.COLOUR_WORDS.values()) for w in table]:
        for word in text.replace("-", " ").split():
            assert len(model.clip_tokenizer.encode(word)) == 1, word
            assert "##" not in "".join(model.text_tokenizers._bert.encode(word).tokens), word
    rng = random.Random(3)
    said = {words.users_words(rng, 0, 0, 2, whole=1.0) for _ in range(300)}
    assert len(said) > 290
    known = {w for name in ("circle", *words.SHAPE_WORDS["circle"]) for w in [name]}
    assert all(any(name in text for name in known) for text in said)

"""The training loop resumes exactly, and each stage trains what it says and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from codi.codi_models.config import CoDiConfig
from codi.codi_models.errors import CoDiError
from codi.codi_models.training.bridging import contrastive
from codi.codi_models.training.denoising import conditions, jittered, timesteps
from codi.codi_models.training.loop import Objective, Schedule, train
from codi.codi_models.training.pools import Pool, make_pool
from codi.codi_models.training.workspace import Workspace
from torch import Tensor, nn

CPU = torch.device("cpu")


class Line(Objective):
    """Fit y = 3 x + 1; the batch comes from the step's generator alone."""

    learning_rate = 0.05

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)

    def forward(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.randn(64, 1, generator=generator)
        return F.mse_loss(self.layer(x), 3 * x + 1), {}


@pytest.fixture(scope="module")
def accelerator() -> object:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def test_loop_learns(tmp_path: Path, accelerator: object) -> None:
    line = Line()
    assert train(line, Schedule(steps=400, warmup=1), accelerator=accelerator, run=tmp_path)  # type: ignore[arg-type]
    assert line.layer.weight.item() == pytest.approx(3, abs=0.1)
    assert line.layer.bias.item() == pytest.approx(1, abs=0.1)


def test_a_paused_run_ends_as_an_unbroken_one(tmp_path: Path, accelerator: object) -> None:
    unbroken, paused = Line(), Line()
    train(unbroken, Schedule(steps=12), accelerator=accelerator, run=tmp_path / "a")  # type: ignore[arg-type]
    for _ in range(40):
        if train(paused, Schedule(steps=12, pause_after=1e-9), accelerator=accelerator, run=tmp_path / "b"):  # type: ignore[arg-type]
            break
    assert torch.equal(unbroken.layer.weight, paused.layer.weight)


def test_state_of_another_network_is_refused(tmp_path: Path, accelerator: object) -> None:
    train(Line(), Schedule(steps=3, pause_after=1e-9), accelerator=accelerator, run=tmp_path)  # type: ignore[arg-type]
    other = Line()
    other.more = nn.Linear(2, 2)
    with pytest.raises(CoDiError, match="another configuration"):
        train(other, Schedule(steps=3), accelerator=accelerator, run=tmp_path)  # type: ignore[arg-type]


def test_equal_captions_are_no_negatives() -> None:
    a = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    ids = torch.tensor([0, 1, 2, 2])
    same = a.clone()
    same[3] = same[2]
    apart = contrastive(same, same, 50.0)
    shared = contrastive(same, same, 50.0, ids)
    assert shared < apart + 1e-6
    assert contrastive(same, same.flip(0), 50.0, ids) > shared  # wrong pairs cost more


def test_timesteps_cover_all_noise_levels() -> None:
    t = timesteps(100, torch.Generator().manual_seed(0)).sort().values
    assert torch.equal(t // 10, torch.arange(100))


def test_conditions_keep_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    empty, one, two = torch.zeros(4), torch.ones(20000, 4), torch.full((20000, 4), 2.0)
    context = conditions([(0.6, one), (0.3, two)], empty, generator)
    assert context.shape == (20000, 1, 4)
    shares = [float((context[:, 0, 0] == value).float().mean()) for value in (0, 1, 2)]
    assert shares == pytest.approx([0.1, 0.6, 0.3], abs=0.02)


def test_jitter_stays_near_and_on_the_sphere() -> None:
    x = F.normalize(torch.randn(256, 128, generator=torch.Generator().manual_seed(1)), dim=-1)
    y = jittered(x, torch.Generator().manual_seed(2))
    assert torch.allclose(y.norm(dim=-1), torch.ones(256), atol=1e-5)
    cosine = (x * y).sum(-1)
    assert 0.7 < float(cosine.min()) < float(cosine.max()) <= 1.0 + 1e-6


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which every component exists, untrained."""
    from codi.codi_models.components import COMPONENTS
    from codi.codi_models.parity.recipe import fill
    from codi.codi_models.training.autoencoding import CaptionReconstruction
    from codi.codi_models.training.bridging import BridgingAlignment

    torch.manual_seed(0)
    space = Workspace(tmp_path_factory.mktemp("model"), CoDiConfig.mini(), CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BridgingAlignment, "means_of", 8)
        BridgingAlignment(space).write()
    CaptionReconstruction(space).write()
    for name in COMPONENTS:
        if not space.has(name):  # a fresh denoiser predicts zero and sends no gradient back
            space.save(name, fill(space.network(name), "training test"))
    return space


def test_earlier_stages_are_required(tmp_path: Path) -> None:
    with pytest.raises(CoDiError, match="run the earlier training stages first"):
        Workspace(tmp_path, CoDiConfig.mini(), CPU).trained("clip")


def test_scale_of_latents_is_written(space: Workspace) -> None:
    assert space.config.text_autoencoder.scale != 1.0


def test_pool_rows_belong_to_their_scene(space: Workspace) -> None:
    pool = make_pool("image", space, 2, seed=0)
    ids = torch.tensor([0, 5, 53, 5])
    _, embeddings = pool.draw(ids, torch.Generator().manual_seed(0))
    for scene, embedding in zip(ids.tolist(), embeddings, strict=True):
        assert any(torch.equal(embedding, row) for row in pool.embeddings[2 * scene : 2 * scene + 2])


def test_denoiser_stage_leaves_connectors_alone(space: Workspace) -> None:
    from codi.codi_models.training.denoising import AudioDenoising

    stage = AudioDenoising.__new__(AudioDenoising)
    AudioDenoising.copies, kept = 1, AudioDenoising.copies
    try:
        stage.__init__(space)  # type: ignore[misc]
    finally:
        AudioDenoising.copies = kept
    loss, _ = stage(0, torch.Generator().manual_seed(0))
    loss.backward()
    touched = {name for name, p in stage.net.named_parameters() if p.grad is not None}
    assert touched and not any("connecter" in name for name in touched)


def test_a_pool_without_neighbours_holds_the_worlds_scenes_alone(space: Workspace) -> None:
    generator = torch.Generator().manual_seed(0)
    pool = make_pool("image", space, 2, seed=0, foreign=False)
    assert len(pool.latents) == 2 * 54 and pool.copies[54:].sum() == 0
    assert pool.draw(torch.arange(54), generator)[0].shape == pool.latents[:54].shape


@pytest.mark.parametrize("stage", ["WorldPrompting", "SoundPrompting", "CaptionPrompting"])
def test_the_last_runs_of_the_denoisers_meet_the_world_alone(
    space: Workspace, pools: dict[str, Pool], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from codi.codi_models.bounce_world import neighbours
    from codi.codi_models.training import denoising

    monkeypatch.setattr(denoising, "make_pool", lambda kind, *_, **__: pools[kind])
    made = getattr(denoising, stage)(space)
    drawn = []
    monkeypatch.setattr(neighbours, "draw_ids", lambda *given, draw=neighbours.draw_ids: drawn.append(draw(*given)) or drawn[-1])
    for step in range(4):
        made.draw(step, torch.Generator().manual_seed(step))
    ids = torch.cat(drawn)
    assert not neighbours.foreign(made.scenes[ids]).any() and len(ids.unique()) > 20
    monkeypatch.setattr(made, "near", 0.5)
    assert neighbours.foreign(made.scenes[made.scene_ids(200, torch.Generator().manual_seed(0))]).any()


def test_sounds_between_those_of_the_world_are_mixed_in_with_prompts_between(
    space: Workspace, pools: dict[str, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    from codi.codi_models.training import denoising

    monkeypatch.setattr(denoising, "make_pool", lambda kind, *_, **__: pools[kind])
    monkeypatch.setattr(denoising.SoundGliding, "between_copies", 24)
    made = denoising.SoundGliding(space)
    latents, context = made.draw(0, torch.Generator().manual_seed(0))
    assert len(latents) == len(context) == made.batch and context.shape[1:] == (1, 128)
    torch.testing.assert_close(context.norm(dim=-1), torch.ones(made.batch, 1), atol=1e-4, rtol=0)
    rows = [(made.gliding.latents == one).flatten(1).all(dim=1).nonzero()[:, 0] for one in latents]
    between = [i for i, found in enumerate(rows) if len(found)]
    assert len(between) == int(made.between * made.batch)
    for i in between:
        assert torch.equal(context[i, 0], made.gliding.prompts[rows[i][0]])
    monkeypatch.setattr(made, "as_read", 0.0)
    ids = torch.arange(54)
    own, generator = pools["audio"].draw(ids, torch.Generator().manual_seed(1))[1], torch.Generator().manual_seed(2)
    told = made.prompted(ids, own, generator)
    empty = (told[:, 0] == made.text.empty).all(dim=1)
    assert 0 < empty.sum() < 20


@pytest.fixture(scope="module")
def pools(space: Workspace) -> dict[str, Pool]:
    """One sample of each scene in each kind."""
    return {kind: make_pool(kind, space, 1, seed=21) for kind in ("image", "audio", "video")}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, pools: dict[str, Pool]) -> None:
    """One copy of each scene and batches of two in both parts of latent alignment."""
    from codi.codi_models.training import alignment, environment

    monkeypatch.setattr(environment, "make_pool", lambda kind, *_, **__: pools[kind])
    monkeypatch.setattr(environment.EnvironmentEncoding, "copies", {"image": 1, "audio": 1, "video": 1})
    for part in (environment.EnvironmentEncoding, alignment.LatentAlignment):
        monkeypatch.setattr(part, "batches", {"image": 2, "text": 2, "audio": 2, "video": 2})


def moved(stage: Objective, steps: int) -> set[str]:
    """Names of the parameters that some of the first steps pull at."""
    for step in range(steps):
        loss, _ = stage(step, torch.Generator().manual_seed(step))
        loss.backward()
    return {name for name, p in stage.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}


DENOISERS = ("vision_denoiser", "audio_denoiser", "text_denoiser")


def test_environment_stage_trains_environment_encoders_only(space: Workspace, few: None) -> None:
    from codi.codi_models.training.environment import EnvironmentEncoding

    stage = EnvironmentEncoding(space)
    trained = moved(stage, len(stage.kinds))
    assert {name.split(".")[1] for name in trained} == set(DENOISERS) and all(".connecters_out." in name for name in trained)


def test_environment_stage_makes_latents_say_what_they_show(space: Workspace, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from codi.codi_models.training import environment

    monkeypatch.setattr(environment.CaptionEnvironment, "batches", {"text": 64})
    stage = environment.CaptionEnvironment(space)
    assert {name.split(".")[1] for name in moved(stage, 1)} == {"text_denoiser"}
    optimiser = torch.optim.Adam(stage.trainable(), lr=2e-3)
    pulls = []
    for step in range(60):
        optimiser.zero_grad()
        loss, logs = stage(step, torch.Generator().manual_seed(step))
        loss.backward()
        optimiser.step()
        pulls.append(float(logs["text/pull"].detach()))
    assert sum(pulls[-10:]) < 8 * pulls[0]


def test_half_of_the_captions_are_nearly_clean(space: Workspace, few: None) -> None:
    from codi.codi_models.training.environment import CaptionEnvironment, EnvironmentEncoding

    stage, generator = CaptionEnvironment(space), torch.Generator().manual_seed(0)
    cleaner, usual = stage.levels(2000, generator), EnvironmentEncoding.levels(stage, 2000, generator)
    assert cleaner.max() > 900 and cleaner.min() < 10
    assert float((cleaner < stage.clean).float().mean()) > 0.5 > 0.35 > float((usual < stage.clean).float().mean())


def test_alignment_stage_trains_connectors_only(space: Workspace, few: None) -> None:
    from codi.codi_models.training import alignment

    assert set(map(frozenset, alignment.PAIRS)) == {frozenset(p) for p in (("image", "text"), ("text", "audio"), ("audio", "video"))}
    trained = moved(alignment.LatentAlignment(space), len(alignment.PAIRS))
    assert {name.split(".")[1] for name in trained} == set(DENOISERS) and all("connecters_in." in name for name in trained)


@pytest.mark.parametrize(
    ("stage", "network"),
    [
        ("VisionListening", "vision_denoiser"),
        ("PictureListening", "vision_denoiser"),
        ("ClipListening", "vision_denoiser"),
        ("AudioListening", "audio_denoiser"),
        ("TextListening", "text_denoiser"),
    ],
)
def test_a_listening_stage_trains_connectors_of_its_network_and_writes_that_alone(
    space: Workspace, few: None, monkeypatch: pytest.MonkeyPatch, stage: str, network: str
) -> None:
    from codi.codi_models.training import alignment, listening

    made = getattr(listening, stage)
    monkeypatch.setattr(made, "batches", dict.fromkeys(made.batches, 2))
    assert {frozenset(pair) for pair in made.directions} <= {frozenset(pair) for pair in alignment.PAIRS}
    listener = made(space)
    trained = moved(listener, len(made.directions))
    assert trained and all(name.startswith(f"nets.{network}.") and "connecters_in." in name for name in trained)
    written = []
    monkeypatch.setattr(space, "save", lambda name, _: written.append(name))
    listener.write()
    assert written == [network]


@pytest.mark.parametrize(
    ("stage", "towers"),
    [("VisionBridging", ("clip.vision_model.", "clip.visual_projection.")), ("SoundBridging", ("clap.",)), ("SoundGliding", ("clap.",))],
)
def test_one_tower_is_pulled_towards_text_which_stays(space: Workspace, monkeypatch: pytest.MonkeyPatch, stage: str, towers: tuple) -> None:
    from codi.codi_models.training import bridging

    monkeypatch.setattr(bridging.SoundGliding, "pool", 12)
    monkeypatch.setattr(bridging.SoundGliding, "between", 3)
    made = getattr(bridging, stage)(space)
    monkeypatch.setattr(made, "batches", dict.fromkeys(made.batches, 3))
    trained = moved(made, 1)
    assert trained and all(name.startswith(towers) for name in trained)
    assert {id(p) for p in made.trainable()} == {id(p) for name, p in made.named_parameters() if name.startswith(towers)}

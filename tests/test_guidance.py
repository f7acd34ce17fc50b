"""Guidance: what a sampler gets equals the formula, of predictions made one by one, and takes as few rows of the UNets as it can."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import pytest
import torch
from codi.codi_models.alignment import Alignment
from codi.codi_models.config import DiffusionConfig
from codi.codi_models.denoisers.layers import FoldedContext
from codi.codi_models.denoisers.unet import UNet
from codi.codi_models.diffusion import NoiseSchedule
from codi.codi_models.guidance import Guidance, GuidedDenoiser, alignment_term, rescaled
from codi.codi_models.joint import JointDenoiser
from codi.codi_models.modalities import MODALITIES
from tiny_joint import latents, prompt, tiny_joint
from torch import Tensor

SIGMA = 1.7
COND, UNCOND = prompt(1, seed=1), prompt(1, seed=2)


@pytest.fixture(scope="module")
def joint() -> JointDenoiser:
    return tiny_joint()


def guided(
    joint: JointDenoiser, guidance: Mapping[str, Guidance], alignment: Alignment | None = None, *, schedule: NoiseSchedule | None = None,
    scales: Mapping[str, float] | None = None, given: Mapping[str, Tensor] | None = None, batch: int = 2,
) -> GuidedDenoiser:  # fmt: skip
    cond, uncond = (part[:1].expand(batch, -1, -1) for part in (COND, UNCOND))
    return GuidedDenoiser(
        joint, schedule or NoiseSchedule(DiffusionConfig()), cond, uncond, guidance, alignment or Alignment(),
        scales=scales or dict.fromkeys(MODALITIES, 1.0), given=given,
    )  # fmt: skip


def by_formula(
    joint: JointDenoiser, x: dict[str, Tensor], cfg: float, g: float, schedule: NoiseSchedule, scales: Mapping[str, float],
    wiring: str = "cross", given: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """Expected s x0 of every output; and the noise of the prediction with the prompt alone."""
    seen = {m: part / (SIGMA**2 + scales[m] ** 2) ** 0.5 for m, part in x.items()}
    times = {m: schedule.timestep(SIGMA, scales[m]).expand(2) for m in x}
    cond, uncond = (part[:1].expand(2, -1, -1) for part in (COND, UNCOND))
    u = joint(seen, times, uncond, alignment=Alignment(wiring), given=given)
    c = joint(seen, times, cond, alignment=Alignment(wiring), given=given)
    c_off = joint(seen, times, cond, alignment=Alignment("off"))
    mixed = {m: u[m] + cfg * (c[m] - u[m]) + (g - 1) * (c[m] - c_off[m]) for m in x}
    clean = [{m: schedule.denoised(part[m], x[m], SIGMA, scales[m]) for m in x} for part in (mixed, c)]
    return clean[0], {m: x[m] - clean[1][m] for m in x}


def near(made: Tensor, expected: Tensor) -> None:
    assert (made - expected).abs().max() <= 1e-4 * expected.abs().max()


SCALES = {"video": 0.5, "image": 1.0, "text": 2.0, "audio": 1.3}


@pytest.mark.parametrize("outputs", [("image",), ("text",), ("video", "audio"), ("video", "image", "text", "audio")], ids="+".join)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_it_is_the_formula(joint: JointDenoiser, outputs: tuple[str, ...], prediction: str) -> None:
    schedule = NoiseSchedule(DiffusionConfig(prediction=prediction))
    x = {m: part * 2 for m, part in latents(*outputs).items()}
    results = []
    for cfg, g in itertools.product((0.0, 1.0, 4.0), (0.0, 1.0, 3.0)):
        one = guided(joint, {m: Guidance(cfg, g) for m in outputs}, Alignment(guidance=g), schedule=schedule, scales=SCALES)
        made = one(x, SIGMA)
        expected, _ = by_formula(joint, x, cfg, g if len(outputs) > 1 else 1.0, schedule, SCALES)
        for m in outputs:
            near(made[m], expected[m])
        results.append(made[outputs[0]])
    differ = [(a - b).abs().max() > 1e-3 for a, b in itertools.combinations(results, 2)]
    assert all(differ) if len(outputs) > 1 else sum(differ) == 27  # of one output, g changes nothing


def test_every_output_has_its_own_guidance(joint: JointDenoiser) -> None:
    outputs, schedule = ("video", "image", "text", "audio"), NoiseSchedule(DiffusionConfig())
    x, ones = latents(*outputs), dict.fromkeys(outputs, 1.0)
    own = {"video": Guidance(4, 3), "image": Guidance(1, 3), "text": Guidance(2, 1), "audio": Guidance(0, 0)}
    made = guided(joint, own)(x, SIGMA)
    for m, one in own.items():
        expected, _ = by_formula(joint, x, one.cfg, one.alignment, schedule, ones)
        near(made[m], expected[m])


@pytest.mark.parametrize("wiring", ["cross", "self"])
def test_targets_alone_attend_to_what_all_attend_to(joint: JointDenoiser, wiring: str) -> None:
    x = latents("image", "audio")
    denoise = guided(joint, {m: Guidance(4, 3) for m in x}, Alignment(wiring))
    whole, one = denoise(x, SIGMA), denoise(x, SIGMA, ["image"])
    assert one.keys() == {"image"}
    near(one["image"], whole["image"])
    assert denoise(x, SIGMA, []) == {}


def test_finished_outputs_are_sources(joint: JointDenoiser) -> None:
    x, schedule = latents("image"), NoiseSchedule(DiffusionConfig())
    given = joint.environment_embeddings(latents("text"), torch.zeros(2))
    made = guided(joint, {"image": Guidance(4, 3)}, given=given)(x, SIGMA)["image"]
    expected, _ = by_formula(joint, x, 4, 3, schedule, {"image": 1.0}, given=given)
    near(made, expected["image"])
    assert (made - guided(joint, {"image": Guidance(4, 3)})(x, SIGMA)["image"]).abs().max() > 1e-3


def test_rescaling_is_last(joint: JointDenoiser) -> None:
    x, schedule = latents("image", "audio"), NoiseSchedule(DiffusionConfig())
    expected, conditional = by_formula(joint, x, 4, 3, schedule, dict.fromkeys(x, 1.0))
    for share in (0.5, 1.0):
        made = guided(joint, {m: Guidance(4, 3, share) for m in x})(x, SIGMA)
        for m in x:
            noise = x[m] - expected[m]
            ratio = (conditional[m].flatten(1).std(dim=1) / noise.flatten(1).std(dim=1)).view(-1, *[1] * (noise.ndim - 1))
            near(made[m], x[m] - (share * ratio + 1 - share) * noise)


def test_rescaling_brings_the_spread_back() -> None:
    plain, strong = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8) * torch.tensor([5.0, 0.2]).view(2, 1, 1, 1)
    done = rescaled(strong, plain, 1.0)
    torch.testing.assert_close(done.flatten(1).std(dim=1), plain.flatten(1).std(dim=1))
    torch.testing.assert_close(rescaled(strong, plain, 0.5), (done + strong) / 2)
    assert torch.equal(rescaled(strong, plain, 0.0), strong)
    assert not rescaled(torch.zeros(1, 4), torch.randn(1, 4), 1.0).any()


def test_weights_sum_to_one_and_the_alignments_term_is_its_part() -> None:
    for cfg, g in itertools.product((0.0, 1.0, 2.5, 4.0), (0.0, 1.0, 3.0)):
        weights = Guidance(cfg, g).weights
        assert sum(weights.values()) == pytest.approx(1) and 0 not in weights.values()
        u, c, c_off = torch.randn(3, 2, 5)
        mixed = Guidance(cfg, g).combine(torch.zeros(2, 5), {"u": u, "c": c, "c_off": c_off})
        torch.testing.assert_close(mixed, u + cfg * (c - u) + alignment_term(c, c_off, g), rtol=1e-4, atol=1e-5)


class Rows:
    """Rows that went through UNets, and through environment encoders, by shape of the latent."""

    def __init__(self) -> None:
        self.unets: list[tuple[int, ...]] = []
        self.environments: list[tuple[int, ...]] = []
        self.folds = 0


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rows]:
    found, forward, environment, fold = Rows(), UNet.forward, UNet.environment_embedding, UNet.fold_context

    def counted(self, x, *args, **more):
        found.unets.append(tuple(x.shape))
        return forward(self, x, *args, **more)

    def encoded(self, x, timesteps):
        found.environments.append(tuple(x.shape))
        return environment(self, x, timesteps)

    def folded(self, context):
        found.folds += not isinstance(context, FoldedContext)
        return fold(self, context)

    monkeypatch.setattr(UNet, "forward", counted)
    monkeypatch.setattr(UNet, "environment_embedding", encoded)
    monkeypatch.setattr(UNet, "fold_context", folded)
    yield found


OUTPUTS = ("video", "image", "text", "audio")


@pytest.mark.parametrize(("cfg", "g", "blocks"), [
    (1, 1, 1), (0, 1, 1), (4, 1, 2), (1, 3, 2), (1, 0, 1), (4, 3, 3), (4, 0, 3), (0, 0, 3), (2, -1, 2),
])  # fmt: skip
def test_no_row_is_computed_in_vain(joint: JointDenoiser, rows: Rows, cfg: float, g: float, blocks: int) -> None:
    x = latents(*OUTPUTS, batch=4)
    guided(joint, dict.fromkeys(OUTPUTS, Guidance(cfg, g)), batch=4)(x, SIGMA)
    assert sum(shape[0] for shape in rows.unets) == 4 * blocks * len(OUTPUTS)
    encoded = [] if (cfg, g) == (1, 0) else [tuple(x[m].shape) for m in OUTPUTS]  # nothing attends to anything in c_off
    assert sorted(rows.environments) == sorted(encoded)


def test_a_batch_of_four_to_four_outputs_takes_48_rows(joint: JointDenoiser, rows: Rows) -> None:
    denoise = guided(joint, dict.fromkeys(OUTPUTS, Guidance(4, 3)), batch=4)
    x = latents(*OUTPUTS, batch=4)
    for step in (1, 2):
        denoise(x, SIGMA)
        assert sum(shape[0] for shape in rows.unets) == 48 * step and len(rows.unets) == 8 * step
        assert len(rows.environments) == 4 * step and all(shape[0] == 4 for shape in rows.environments)
        assert rows.folds == 8, "prompts are folded once for the whole run"


def test_rows_where_outputs_or_steps_differ(joint: JointDenoiser, rows: Rows) -> None:
    x = latents("image", "audio")
    both = {"image": Guidance(4, 3), "audio": Guidance(1, 1)}
    cases = [
        (both, Alignment(), None, 6 + 2, 2),
        (both, Alignment(end=0.01), None, 4 + 2, 0),  # outside of its range
        (both, Alignment("off"), None, 4 + 2, 0),
        (both, Alignment(directions={("image", "audio"): 0.0}), None, 4 + 2, 1),
        (both, Alignment(), ["image"], 6, 1),
        (both, Alignment(), ["audio"], 2, 1),
    ]
    for guidance, alignment, targets, count, encoded in cases:
        rows.unets.clear(), rows.environments.clear()
        guided(joint, guidance, alignment)(x, SIGMA, targets)
        assert (sum(shape[0] for shape in rows.unets), len(rows.environments)) == (count, encoded)

"""The joint UNet class: single outputs, joint steps and DDIM runs (README of the parity data, sections 3 and 4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..alignment import Alignment
from ..components import COMPONENTS
from ..conditioning import mix
from ..config import DiffusionConfig
from ..denoisers.unet import UNet
from ..diffusion import BETA_END, BETA_START, PUBLISHED, TIMESTEPS, NoiseSchedule, ddim_timesteps, run_sigmas, sample
from ..errors import CoDiError
from ..guidance import Guidance, GuidedDenoiser
from ..joint import JointDenoiser
from ..modalities import MODALITIES
from .check import Check
from .fixture import Fixture
from .keys import check_keys, listed, unlisted_keys
from .networks import PARTS, Networks, unet_layouts
from .schedules import ddim_alphas
from .watch import Watch

PART_OF = {name: COMPONENTS[row.denoiser].published_prefix.split(".")[-2] for name, row in MODALITIES.items()}
DEFAULT_WEIGHTS = {"audio": 1.0, "text": 1.0, "image": 1.0}
"""Weights of the official forward where the call gives none; a video condition then fails there."""

FULL = "model.diffusion_model."
"""What stands before the UNets' names in the full checkpoint."""

DDIM_TOLERANCE = 5e-4
SCHEDULE_TOLERANCE = 1e-6


def check_unets(check: Check, networks: Networks) -> None:
    """Run whatever the fixture's inputs ask for."""
    check_layout(check)
    names = check.fixture.tensors
    if any(name.startswith("in/xT_") for name in names):
        check.tolerance = DDIM_TOLERANCE
        _ddim(check, networks)
    elif "xtype" in check.fixture.info:
        _joint(check, networks)
    else:
        _single(check, networks)


def check_layout(check: Check) -> None:
    """Keys of the UNets that the json lists, and the number of all of them."""
    info = check.fixture.info
    ours = unet_layouts(check.fixture.setting("config"))
    published = listed(info)
    if published is not None:
        parts = {key.removeprefix(_stem(info)).partition(".")[0] for key in published}
        check_keys(check, {key: shape for key, shape in ours.items() if key.partition(".")[0] in parts}, FULL)
    if "n_keys" in info:
        check.fact("n_keys", info["n_keys"] == len(ours), f"{info['n_keys']} listed, {len(ours)} ours")
    elif published is None:
        check.fact("keys", True, f"{len(ours)} ours; {unlisted_keys(info)}")


def _stem(info: Mapping[str, Any]) -> str:
    """What stands before the UNets' names in the fixture's list of keys, and so in what its weights are drawn by."""
    published = listed(info)
    return FULL if published and all(key.startswith(FULL) for key in published) else ""


def _network(fixture: Fixture, networks: Networks, kind: str) -> UNet:
    part = PART_OF.get(kind)
    config = fixture.setting("config")
    if part is None or part not in config:
        raise CoDiError(
            f"output {kind!r}: this fixture configures {[p for p in PARTS if p in config]} and outputs are {', '.join(PART_OF)}"
        )
    return networks.unet(part, config[part], fixture.seed, _stem(fixture.info))


def _context(fixture: Fixture, suffix: str = "", label: str = "") -> Tensor:
    """The prompt: `in/context` (of an output: `in/context_<label>`), or `in/cond0<suffix>`, ... blended by the weights of their types."""
    for name in (f"in/context_{label}", "in/context"):
        if name in fixture.tensors:
            return fixture[name]
    kinds = fixture.setting("condition_types")
    weights = fixture.info.get("mix_weight") or DEFAULT_WEIGHTS
    if unknown := [kind for kind in kinds if kind not in weights]:
        raise CoDiError(f"conditions {unknown} have no weight in mix_weight {weights}")
    return mix([fixture[f"in/cond{i}{suffix}"] for i in range(len(kinds))], [weights[kind] for kind in kinds])


def _single(check: Check, networks: Networks) -> None:
    fixture = check.fixture
    for label, x in fixture.labels("in/x_"):
        net = _network(fixture, networks, label.partition("_")[0])
        timesteps, context = fixture[f"in/t_{label}" if f"in/t_{label}" in fixture.tensors else "in/t"], _context(fixture, label=label)
        mids = {name: name.removeprefix(f"mid/{label}.") for name in check.open(f"mid/{label}.")}
        with Watch(net, mids) as watch:
            noise = net(x, timesteps, context)
        check.tensor(f"out/{label}", noise)
        check.watched(watch)
        if f"alt_plain_skip/{label}" in fixture.tensors:
            with plain_skip(net):
                check.tensor(f"alt_plain_skip/{label}", net(x, timesteps, context))


@contextlib.contextmanager
def plain_skip(net: UNet) -> Iterator[None]:
    """The UNet as others are: its first output block gets the last input block's result as skip, not the middle block's."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, inputs: Any) -> None:
        kept.append(inputs[0])

    def exchange(_module: nn.Module, inputs: Any) -> Any:
        last = kept.pop()
        return (torch.cat([inputs[0][:, : -last.shape[1]], last], dim=1), *inputs[1:])

    hooks = []
    for block, hook in ((net.middle_block, keep), (net.output_blocks[0], exchange)):
        first: Any = next(block.children())
        while isinstance(first, nn.ModuleList):
            first = first[0]
        hooks.append(first.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for registered in hooks:
            registered.remove()


def _joint(check: Check, networks: Networks) -> None:
    fixture = check.fixture
    latents = {kind: fixture[f"in/x_{kind}"] for kind in fixture.setting("xtype")}
    nets = {kind: _network(fixture, networks, kind) for kind in latents}
    joint = JointDenoiser({MODALITIES[kind].denoiser: net for kind, net in nets.items()})
    timesteps, context = fixture["in/t"], _context(fixture)
    check.tensor("mid/mixed_context", context, tolerance=1e-6)
    for kind, embedding in joint.environment_embeddings(latents, timesteps).items() if len(latents) > 1 else ():
        check.tensor(f"mid/h_con_{kind}", embedding)
    root = nn.ModuleDict({PART_OF[kind]: net for kind, net in nets.items()})
    paths = {name: name.removeprefix("mid/") for name in check.open("mid/")}
    for name, path in paths.items():
        first, _, rest = path.partition(".")
        paths[name] = f"{PART_OF.get(first, first)}.{rest}"
    with Watch(root, paths) as watch:
        noise = joint(latents, timesteps, context, alignment=Alignment("self"))
    for kind in latents:
        check.tensor(f"out/{kind}", noise[kind])
    check.watched(watch)
    if check.open("paper_swap/"):
        for kind, swapped in joint(latents, timesteps, context).items():
            check.tensor(f"paper_swap/{kind}", swapped)


def _ddim(check: Check, networks: Networks) -> None:
    fixture = check.fixture
    _usual_schedule(fixture.info)
    kinds = fixture.setting("xtype")
    joint = JointDenoiser({MODALITIES[kind].denoiser: _network(fixture, networks, kind) for kind in kinds})
    steps, scale = int(fixture.setting("steps_requested")), float(fixture.setting("unconditional_guidance_scale"))
    timesteps = ddim_timesteps(steps)
    alphas, previous = ddim_alphas(timesteps)
    check.exact("mid/timesteps_ascending", torch.tensor(timesteps))
    check.tensor("mid/ddim_alphas", alphas, tolerance=SCHEDULE_TOLERANCE)
    check.tensor("mid/ddim_alphas_prev", previous, tolerance=SCHEDULE_TOLERANCE)
    without, prompt = _context(fixture, "_uncond_then_cond").chunk(2)
    schedule = NoiseSchedule(DiffusionConfig())
    guidance, scales = {kind: Guidance(scale) for kind in kinds}, dict.fromkeys(kinds, 1.0)
    predict = GuidedDenoiser(joint, schedule, prompt, without, guidance, Alignment("self"), scales=scales)
    sigmas = run_sigmas(schedule, PUBLISHED, steps)
    step = [0]

    def recorded(x: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        clean = predict(x, sigma)
        for kind in kinds:
            check.tensor(f"mid/pred_x0_step{step[0]}_{kind}", clean[kind])
        return clean

    def after(done: int, _steps: int, x: dict[str, Tensor]) -> None:
        for kind in kinds:
            check.tensor(f"mid/x_after_step{step[0]}_{kind}", schedule.network_input(x[kind], sigmas[done]))
        step[0] = done

    latents = sample(recorded, {kind: fixture[f"in/xT_{kind}"] for kind in kinds}, sigmas, callback=after)
    check.fact("steps_run", step[0] == fixture.info.get("steps_run", step[0]), f"{step[0]} steps of {steps} asked for")
    for kind in kinds:
        check.tensor(f"out/{kind}", latents[kind])


def _usual_schedule(info: Mapping[str, Any]) -> None:
    given = {"eta": 0.0, "beta_linear_start": BETA_START, "beta_linear_end": BETA_END, "timesteps": TIMESTEPS}
    for name, ours in given.items():
        if info.get(name, ours) != ours:
            raise CoDiError(f"{name} {info[name]}: the published sampler is run with {ours}, and noise drawn on the way is not recorded")

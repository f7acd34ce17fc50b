"""Half precision against float32: every network, and the joint step, on recipe weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import without_random_init
from ..config import DENOISER_OF, MODALITIES, CoDiConfig
from ..joint import JointDenoiser
from ..model import build_component
from .recipe import fill

SEED = "half"
PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
FRAMES = 4  # fewer frames make the norm over them chaotic


@dataclass(frozen=True)
class HalfError:
    """How far a result in half precision is from float32's; errors are relative to its root mean square and its largest value."""

    what: str
    precision: str
    rms: float
    largest: float
    finite: bool


Run = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""A forward pass; it gets the function that brings floating-point inputs to the precision of the network."""


def half_errors(name: str, config: CoDiConfig, *, device: Any = None) -> list[HalfError]:
    """Every forward pass of a component, in both half precisions. Raises CoDiError for an unknown component."""
    network = recipe_component(name, config, device=device)
    return _compare(network, forward_passes(name, network, config, device))


def joint_errors(config: CoDiConfig, *, device: Any = None) -> list[HalfError]:
    """One joint step of all outputs."""
    joint = JointDenoiser({name: recipe_component(name, config, device=device) for name in dict.fromkeys(DENOISER_OF.values())})
    x = {m: _latent(m, config, device) for m in MODALITIES}
    times, prompt = torch.full((1,), 501, device=device), _prompt(config, device)

    def run(cast: Callable[[Tensor], Tensor], output: str) -> Tensor:
        return joint({m: cast(part) for m, part in x.items()}, times, cast(prompt))[output]

    return _compare(joint, {m: (lambda cast, m=m: run(cast, m)) for m in MODALITIES})  # type: ignore[misc]


def recipe_component(name: str, config: CoDiConfig, *, device: Any = None) -> nn.Module:
    """A component with recipe weights, in evaluation mode without gradients."""
    with without_random_init():
        network = build_component(name, config, device=device)
    return fill(network, SEED, f"{name}.").eval().requires_grad_(False)


@torch.inference_mode()
def _compare(network: nn.Module, runs: Mapping[str, Run]) -> list[HalfError]:
    wanted = {what: run(lambda x: x).float() for what, run in runs.items()}
    weights = {key: value for key, value in network.state_dict().items()}
    errors = []
    for precision, dtype in PRECISIONS.items():
        network.to(dtype)
        for what, run in runs.items():
            got = run(lambda x: x.to(dtype)).float()  # noqa: B023
            apart = got - wanted[what]
            errors.append(
                HalfError(
                    what,
                    precision,
                    (apart.square().mean() / wanted[what].square().mean()).sqrt().item(),
                    (apart.abs().max() / wanted[what].abs().max()).item(),
                    bool(torch.isfinite(got).all()),
                )
            )
        network.to(torch.float32).load_state_dict(weights, assign=True)
    return errors


def _draw(*shape: int, device: Any = None, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _prompt(config: CoDiConfig, device: Any) -> Tensor:
    return nn.functional.normalize(_draw(1, 1, config.vision_denoiser.context_dim, device=device, seed=1), dim=-1)


def _latent(modality: str, config: CoDiConfig, device: Any) -> Tensor:
    side = 2 ** (len(config.vision_denoiser.channel_mult) - 1) * 2
    vision, audio = config.vision_denoiser.in_channels, config.audio_denoiser.in_channels
    bands = config.mel.n_mels // 2 ** (len(config.sound_autoencoder.channel_mult) - 1)
    shapes: dict[str, tuple[int, ...]] = {
        "video": (vision, FRAMES, side, side),
        "image": (vision, side, side),
        "text": (config.text_denoiser.in_channels,),
        "audio": (audio, 2 * bands, bands),
    }
    return _draw(1, *shapes[modality], device=device, seed=MODALITIES.index(modality))


def forward_passes(name: str, network: Any, config: CoDiConfig, device: Any = None) -> dict[str, Run]:
    """Name of a forward pass -> the pass, for one component."""
    if name == "clip":
        size = config.clip.image_size
        ids = torch.arange(1, 9, device=device)[None] % (config.clip.vocab_size - 1)
        ids[0, -1] = config.clip.vocab_size - 1
        return {
            "text": lambda cast: network.encode_text(ids),
            "image": lambda cast: network.encode_image(cast(_draw(1, 3, size, size, device=device))),
            "video": lambda cast: network.encode_video(cast(_draw(1, FRAMES, 3, size, size, device=device))),
        }
    if name == "clap":
        wave = (_draw(1, network.clip_samples, device=device) * 0.1).clamp(-1, 1)
        return {"sound": lambda cast: network.encode_audio(cast(wave))}
    if name == "picture_autoencoder":
        z, pixels = _latent("image", config, device), _draw(1, 3, 64, 64, device=device).clamp(-1, 1)
        return {"encode": lambda cast: network.encode(cast(pixels)), "decode": lambda cast: network.decode(cast(z))}
    if name == "sound_autoencoder":
        z, wave = _latent("audio", config, device), (_draw(1, 64 * config.mel.hop_length, device=device) * 0.1).clamp(-1, 1)
        return {
            "encode": lambda cast: network.encode(cast(wave), frames=64),
            "decode": lambda cast: network.decode(cast(z)),
        }
    if name == "vocoder":
        mel = _draw(1, 16, config.vocoder.n_mels, device=device) - 4
        if hasattr(network, "log_magnitudes"):  # phases found by iteration differ for any small change of the spectrum
            return {"spectrum": lambda cast: network.log_magnitudes(cast(mel))}
        return {"sound": lambda cast: network(cast(mel))}
    if name == "text_autoencoder":
        ids = torch.arange(1, 9, device=device)[None]
        z = _latent("text", config, device)
        return {"encode": lambda cast: network.encode(ids), "decode": lambda cast: network.logits(cast(z), ids)}
    times, prompt = torch.full((1,), 501, device=device), _prompt(config, device)
    outputs = [m for m in MODALITIES if DENOISER_OF[m] == name]
    return {m: (lambda cast, m=m: network(cast(_latent(m, config, device)), times, cast(prompt))) for m in outputs}  # type: ignore[misc]

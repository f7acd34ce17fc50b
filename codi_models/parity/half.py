"""Half precision against float32: every network, and the joint step, on recipe weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import aliases
from ..components import build_component, load_component
from ..config import CoDiConfig
from ..conversion.writer import Planned, stream_weights
from ..joint import JointDenoiser
from ..libraries import stored_state
from ..modalities import MODALITIES, denoisers_of
from .recipe import parity_weight

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


Passes = dict[str, Run]


def half_errors(name: str, config: CoDiConfig, *, device: Any = None, folder: str | Path | None = None) -> list[HalfError]:
    """Every forward pass of a component, in both half precisions; `folder` keeps its weights. Raises CoDiError for an unknown component."""
    with tempfile.TemporaryDirectory() as temporary:
        path = write_recipe(name, config, folder or temporary)

        def passes(dtype: torch.dtype) -> Passes:
            return forward_passes(name, load_component(name, config, path, dtype=dtype, device=device), config, device)

        return _compare(passes)


def joint_errors(config: CoDiConfig, *, device: Any = None, folder: str | Path | None = None) -> list[HalfError]:
    """One joint step of all outputs; `folder` as in `half_errors`."""
    x = {m: _latent(m, config, device) for m in MODALITIES}
    times, prompt = torch.full((1,), 501, device=device), _prompt(config, device)
    with tempfile.TemporaryDirectory() as temporary:
        paths = {name: write_recipe(name, config, folder or temporary) for name in denoisers_of(MODALITIES)}

        def passes(dtype: torch.dtype) -> Passes:
            nets = {name: load_component(name, config, path, dtype=dtype, device=device) for name, path in paths.items()}
            joint = JointDenoiser(nets)

            def run(cast: Callable[[Tensor], Tensor], output: str) -> Tensor:
                return joint({m: cast(part) for m, part in x.items()}, times, cast(prompt))[output]

            return {m: (lambda cast, m=m: run(cast, m)) for m in MODALITIES}  # type: ignore[misc]

        return _compare(passes)


def write_recipe(name: str, config: CoDiConfig, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """`<folder>/<name>.safetensors` with recipe weights, drawn and written one by one; left alone where it is there already."""
    path = Path(folder) / f"{name}.safetensors"
    if path.exists():
        return path
    network = build_component(name, config, device="meta")
    weights = {key: value for key, value in stored_state(network).items() if key not in aliases(network)}
    plan = [Planned(key, dtype if value.is_floating_point() else value.dtype, tuple(value.shape)) for key, value in weights.items()]

    def pieces(tensor: Planned) -> Iterator[Tensor]:
        if tensor.dtype.is_floating_point:
            yield torch.from_numpy(parity_weight(SEED, f"{name}.{tensor.name}", tensor.shape)).to(dtype).reshape(-1)
        else:  # counts of batches seen in training
            yield torch.zeros(tensor.shape, dtype=tensor.dtype).reshape(-1)

    stream_weights(path, plan, pieces, {"component": name})
    return path


def _compare(passes: Callable[[torch.dtype], Passes]) -> list[HalfError]:
    """`passes` loads a network in a precision. One is alive at a time, and float32 ones stay in the mapped file."""
    wanted = _results(passes, torch.float32)
    return [
        _error(what, precision, got, wanted[what])
        for precision, dtype in PRECISIONS.items()
        for what, got in _results(passes, dtype).items()
    ]


@torch.inference_mode()
def _results(passes: Callable[[torch.dtype], Passes], dtype: torch.dtype) -> dict[str, Tensor]:
    return {what: run(lambda x: x.to(dtype)).float() for what, run in passes(dtype).items()}


def _error(what: str, precision: str, got: Tensor, wanted: Tensor) -> HalfError:
    apart = got - wanted
    return HalfError(
        what,
        precision,
        rms=(apart.square().mean() / wanted.square().mean()).sqrt().item(),
        largest=(apart.abs().max() / wanted.abs().max()).item(),
        finite=bool(torch.isfinite(got).all()),
    )


def _draw(*shape: int, device: Any = None, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _prompt(config: CoDiConfig, device: Any) -> Tensor:
    return nn.functional.normalize(_draw(1, 1, config.vision_denoiser.context_dim, device=device, seed=1), dim=-1)


def _latent(modality: str, config: CoDiConfig, device: Any) -> Tensor:
    side = 2 ** (len(config.vision_denoiser.channel_mult) - 1) * 2
    vision, audio = config.vision_denoiser.in_channels, config.audio_denoiser.in_channels
    bands = config.mel.n_mels // 2 ** (len(config.audio_autoencoder.channel_mult) - 1)
    shapes: dict[str, tuple[int, ...]] = {
        "video": (vision, FRAMES, side, side),
        "image": (vision, side, side),
        "text": (config.text_denoiser.in_channels,),
        "audio": (audio, 2 * bands, bands),
    }
    return _draw(1, *shapes[modality], device=device, seed=list(MODALITIES).index(modality))


def forward_passes(name: str, network: Any, config: CoDiConfig, device: Any = None) -> Passes:
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
    if name == "image_autoencoder":
        z, pixels = _latent("image", config, device), _draw(1, 3, 64, 64, device=device).clamp(-1, 1)
        return {"encode": lambda cast: network.encode(cast(pixels)), "decode": lambda cast: network.decode(cast(z))}
    if name == "audio_autoencoder":
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
    outputs = [m for m in MODALITIES if MODALITIES[m].denoiser == name]
    return {m: (lambda cast, m=m: network(cast(_latent(m, config, device)), times, cast(prompt))) for m in outputs}  # type: ignore[misc]

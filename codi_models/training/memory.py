"""Memory of training: activations recomputed instead of kept, and how much a run needs, told before it starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..components import build_component
from ..config import CoDiConfig
from ..denoisers.alignment import alignment_parameters
from ..denoisers.layers import ResBlock, SpatialTransformer
from ..denoisers.temporal import TemporalModule
from ..modalities import MODALITIES, denoisers_of
from ..settings import Settings, latent_shapes
from .alignment import freeze

GIGABYTE = 1 << 30


def checkpoint_blocks(net: nn.Module) -> None:
    """Gradient checkpointing (Chen et al. 2016): of every block of a denoiser only the input is kept; the rest is computed again in the
    backward pass. Results stay the same."""
    for module in net.modules():
        if isinstance(module, (ResBlock, SpatialTransformer, TemporalModule)):
            module.forward = partial(_again, module.forward)  # type: ignore[method-assign]


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs) if torch.is_grad_enabled() else forward(*args, **kwargs)


def alignment_memory(config: CoDiConfig, pair: tuple[str, str], batch: int, *, bf16: bool, checkpointing: bool) -> dict[str, float]:
    """Bytes that one process needs for latent alignment of a pair, by part, computed on shapes alone (no weights are read or made).

    frozen: weights that stay; trained: weights, gradients, two moments of Adam and the running average of what learns, in float32;
    activations: what the forward passes keep for the backward pass. The framework's own buffers come on top."""
    settings = Settings.resolve(config, pair)
    shapes = latent_shapes(config, settings)
    nets: dict[str, Any] = {name: build_component(name, config, device="meta") for name in denoisers_of(pair)}
    for net in nets.values():
        freeze(net, alignment_parameters(net))
        if checkpointing:
            checkpoint_blocks(net)
    parameters = [p for net in nets.values() for p in net.parameters()]
    owned = {p.untyped_storage()._cdata for p in parameters}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = (tensor, storage.nbytes())  # held, so that no other storage gets its address
        return tensor

    width = config.vision_denoiser.context_dim
    context = torch.zeros(batch, 1, width, device="meta")
    t = torch.zeros(batch, dtype=torch.long, device="meta")
    latents = {kind: torch.zeros(batch, *shapes[kind], device="meta") for kind in pair}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        environment = {kind: nets[MODALITIES[kind].denoiser].environment_embedding(x, t) for kind, x in latents.items()}
        for kind, other in (pair, pair[::-1]):
            nets[MODALITIES[kind].denoiser](latents[kind], t, context, environment=environment[other])
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return {
        "frozen": float(sum(p.numel() for p in parameters if not p.requires_grad) * (2 if bf16 else 4)),
        "trained": float(trained * 4 * 5),
        "activations": sum(size for _, size in kept.values()) * (0.5 if bf16 else 1.0),
        "trained parameters": float(trained),
    }


def describe(figure: dict[str, float]) -> str:
    """One line: 12.3 GB: frozen weights 3.1, ..."""
    total = figure["frozen"] + figure["trained"] + figure["activations"]
    parts = f"frozen weights {figure['frozen'] / GIGABYTE:.2f}, trained weights with optimiser {figure['trained'] / GIGABYTE:.2f}"
    return (
        f"about {total / GIGABYTE:.2f} GiB a process: {parts}, activations {figure['activations'] / GIGABYTE:.2f} "
        f"({figure['trained parameters'] / 1e6:.1f} M parameters learn)"
    )

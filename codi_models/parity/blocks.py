"""Single layers of the UNets: ResBlock, spatial transformer, text block, timestep embedding, temporal module."""

from __future__ import annotations

import copy
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoisers.layers import ResBlock, SpatialTransformer, timestep_embedding
from ..denoisers.temporal import TemporalModule, log_distances
from ..errors import CoDiError
from .check import Check
from .networks import Networks
from .watch import Watch

NORM_GROUPS = 32
BLOCK_TOLERANCE = 1e-5
STATIC_TOLERANCE = 1e-4
HALF_TOLERANCES = {"float16": 1e-2, "bfloat16": 8e-2}  # bfloat16 keeps three bits less
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}

LAYOUT = re.compile(r"(_[a-z]+)?(_t)?_c(_h_w)?$")
"""Ending of the names of intermediates that says how their axes are ordered."""

PATHS = {"attn_norm": "temporal_attn.norm", "frameshift_conv_out": "frameshiftblock.out_layers"}
"""Intermediates of the temporal module that are not named by their paths."""


def check_blocks(check: Check, networks: Networks) -> None:
    """Whichever of the blocks the configuration has."""
    check.tolerance = BLOCK_TOLERANCE
    fixture, config = check.fixture, check.fixture.setting("config")
    blocks = nn.ModuleDict()
    if "resblock" in config:
        c = config["resblock"]
        blocks["resblock"] = ResBlock(c["channels"], c.get("out_channels") or c["channels"], c["emb_channels"], NORM_GROUPS)
    if "fcblock" in config:
        c = config["fcblock"]
        (channels, tokens, _), (out_channels, out_tokens, _) = c["channels"], c.get("out_channels") or c["channels"]
        if tokens != out_tokens:
            raise CoDiError(f"fcblock with {tokens} tokens in and {out_tokens} out: our text block keeps their number")
        blocks["fcblock"] = ResBlock(channels, out_channels, c["emb_channels"], NORM_GROUPS, tokens=tokens)
    if "spatial_transformer" in config:
        c = config["spatial_transformer"]
        size = dict(inner=c["n_heads"] * c["d_head"], depth=c.get("depth", 1))
        blocks["spatial_transformer"] = SpatialTransformer(c["in_channels"], c["context_dim"], c["n_heads"], NORM_GROUPS, **size)
    if blocks:
        blocks = networks.checked(check, lambda: blocks, f"blocks {config}")
    for name in ("resblock", "fcblock"):
        for label, x in fixture.labels(f"in/{name}_x"):
            if name in blocks:
                check.tensor(f"out/{name}{label}", blocks[name](x, F.silu(fixture["in/emb"])))
    for label, context in fixture.labels("in/context_"):
        if "spatial_transformer" in blocks:
            check.tensor(f"out/transformer_{label}", blocks["spatial_transformer"](fixture["in/transformer_x"], context))
    for name in check.open("out/timestep_embedding_dim"):
        check.tensor(name, timestep_embedding(fixture["in/timesteps"], int(name.removeprefix("out/timestep_embedding_dim"))))


def check_temporal(check: Check, networks: Networks) -> None:
    """The temporal module of the UNet: every clip, in float32 and in the half precisions that were recorded."""
    check.tolerance = BLOCK_TOLERANCE
    fixture, config = check.fixture, check.fixture.setting("config")
    heads, head_dim = config.get("heads", 8), config.get("dim_head")
    module = networks.checked(
        check, lambda: TemporalModule(config["dim"], NORM_GROUPS, heads=heads, head_dim=head_dim), f"temporal {config}"
    )

    def run(network: nn.Module, x: Tensor) -> Tensor:  # (B, C, F, H, W) -> the same
        frames = x.shape[2]
        y = network(x.transpose(1, 2).flatten(0, 1), frames, log_distances(frames, x))
        return y.unflatten(0, (-1, frames)).transpose(1, 2)

    paths = {name: LAYOUT.sub("", name.removeprefix("mid/")) for name in check.open("mid/")}
    for label, x in fixture.labels("in/x"):
        static = STATIC_TOLERANCE if "static" in label else None
        with Watch(module, {name: PATHS.get(path, path) for name, path in paths.items()} if not label else {}) as watch:
            check.tensor(f"out/y{label}", run(module, x), tolerance=static)
        check.watched(watch)
        for precision, dtype in HALF.items():
            name = f"out/y{label}_{precision}_weights_and_input"
            if name in fixture.tensors:
                check.tensor(name, run(copy.deepcopy(module).to(dtype), x.to(dtype)), tolerance=HALF_TOLERANCES[precision])

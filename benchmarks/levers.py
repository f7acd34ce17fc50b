"""What each speed lever of a denoiser brings, each alone against the same step: folded prompts, fused attention, layout, compile, half.

python benchmarks/levers.py [--config official|mini] [--output image|video|audio|text] [--levers folded,attention,...] [--threads N]

Every row compares the path that the pack runs (prompt branches folded, fused attention, float32, eager) with one thing changed:
attention to the prompt as to many tokens, attention written out as einsums with a softmax in memory, and so on."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import measure
from measure import compare, machine, table

import torch  # isort: skip
from torch import Tensor  # isort: skip

from codi_models.config import DENOISER_OF, CoDiConfig  # isort: skip
from codi_models.checkpoints import without_random_init  # isort: skip
from codi_models.denoisers.layers import CrossAttention, ResBlock, SpatialTransformer  # isort: skip
from codi_models.model import build_component  # isort: skip
from codi_models.parity.recipe import fill  # isort: skip

TOLERANCE = {"float32": 1e-4, "float16": 0.2, "bfloat16": 0.3}
LEVERS = ("folded", "attention", "both", "channels_last", "batch", "compile", "regions", "bfloat16", "float16")


def einsum_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention as two einsums and a softmax between them, all scores in memory."""
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))  # (B, N, heads, dim)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(dim=-1), v).flatten(2)


@contextlib.contextmanager
def written_out(net: torch.nn.Module) -> Iterator[None]:
    """Inside, a network attends with `einsum_attention`."""
    layers: list[Any] = [m for m in net.modules() if isinstance(m, CrossAttention)]
    usual = [layer.attention for layer in layers]
    for layer in layers:
        layer.attention = einsum_attention
    try:
        yield
    finally:
        for layer, attention in zip(layers, usual, strict=True):
            layer.attention = attention


def compile_regions(net: torch.nn.Module) -> Callable[[Callable[[], Tensor]], Callable[[], Tensor]]:
    """Compile ResBlocks and transformers in place, one by one: blocks of equal shapes share their code, so that it takes minutes where
    compiling the network whole does not end. Returns what makes a call run without."""
    torch._dynamo.config.recompile_limit = 64  # one a combination of widths and sizes
    for module in net.modules():
        if isinstance(module, ResBlock | SpatialTransformer):
            module.compile(dynamic=False)

    def eager(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.compiler.set_stance("force_eager"):
                return call()

        return run

    return eager


def latent(output: str, config: CoDiConfig, size: int, frames: int, batch: int) -> Tensor:
    """Noise of one output: 256 pixels or the size asked for, 10 s of sound."""
    vision, audio = config.vision_denoiser.in_channels, config.audio_denoiser.in_channels
    side = size // 2 ** (len(config.picture_autoencoder.channel_mult) - 1)
    down = 2 ** (len(config.sound_autoencoder.channel_mult) - 1)
    shapes: dict[str, tuple[int, ...]] = {
        "image": (vision, side, side), "video": (vision, frames, side, side), "text": (config.text_denoiser.in_channels,),
        "audio": (audio, config.mel.frames // down, config.mel.n_mels // down),
    }  # fmt: skip
    return torch.randn(batch, *shapes[output], generator=torch.Generator().manual_seed(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=("official", "mini"), default="official")
    parser.add_argument("--output", choices=tuple(DENOISER_OF), default="image")
    parser.add_argument("--levers", default=",".join(LEVERS), help=f"some of {', '.join(LEVERS)}")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread instead of time on the clock")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.threads or args.cpu_time:
        torch.set_num_threads(1 if args.cpu_time else args.threads)
    if args.cpu_time:
        measure.clock = time.process_time
    torch.set_grad_enabled(False)
    config, device = getattr(CoDiConfig, args.config)(), torch.device(args.device)
    with without_random_init():
        net: Any = build_component(DENOISER_OF[args.output], config, device=device)
    fill(net, "benchmark").eval().requires_grad_(False)
    x = latent(args.output, config, args.size, args.frames, 2).to(device)
    t = torch.full((2,), 501, device=device)
    prompt = torch.nn.functional.normalize(torch.randn(2, 1, config.vision_denoiser.context_dim, device=device), dim=-1)
    folded, many = net.fold_context(prompt), prompt.expand(-1, 2, -1)  # two equal tokens take the general path to the same numbers

    def usual() -> Tensor:
        return net(x, t, folded)

    def general(attention: bool, path: bool) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with written_out(net) if attention else contextlib.nullcontext():
                return net(x, t, many if path else folded)

        return run

    def pair(slow: Callable[[], Any], fast: Callable[[], Any], what: str, precision: str = "float32") -> None:
        rows.append(compare(what, {"without": slow, "with": fast}, args.repeats, device, TOLERANCE[precision]))
        print("  ".join(rows[-1]), file=sys.stderr)

    rows: list[list[str]] = []
    levers = args.levers.split(",")
    if "folded" in levers:
        pair(general(False, True), usual, "prompt branches folded, against attending to the prompt")
    if "attention" in levers:
        pair(general(True, False), usual, "fused attention, against einsum")
    if "both" in levers:
        pair(general(True, True), usual, "both, against the general einsum path")
    if "batch" in levers:
        halves = [(x[i : i + 1], t[:1], net.fold_context(prompt[i : i + 1])) for i in (0, 1)]
        pair(lambda: torch.cat([net(*half) for half in halves]), usual, "guidance's halves in one batch, against one by one")
    if "compile" in levers:
        compiled = torch.compile(net)
        pair(usual, lambda: compiled(x, t, folded), "torch.compile, against eager")
    for precision in ("bfloat16", "float16"):
        if precision in levers:
            dtype = getattr(torch, precision)
            half = build_component(DENOISER_OF[args.output], config, device=device, dtype=dtype)
            half.load_state_dict(net.state_dict())
            half.eval().requires_grad_(False)
            short = half.fold_context(prompt.to(dtype))  # type: ignore[operator]
            pair(usual, lambda: half(x.to(dtype), t, short), f"{precision}, against float32", precision)  # noqa: B023
            del half
    if "channels_last" in levers and args.output != "text":
        reference = [usual()]  # converts the weights in place, so that it is measured last
        plain = compare("plain weights", {"a": usual, "b": usual}, args.repeats, device, TOLERANCE["float32"])
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        assert torch.allclose(usual(), reference[0], rtol=1e-3, atol=1e-3)
        last = compare("weights", {"a": usual, "b": usual}, args.repeats, device, TOLERANCE["float32"])
        rows.append(["convolution weights channels last, against plain", plain[2], last[2], f"{float(plain[2]) / float(last[2]):.2f}", ""])
    if "regions" in levers:  # blocks stay compiled, so that this is measured after all others
        begin = time.perf_counter()
        eager = compile_regions(net)
        usual()
        took = time.perf_counter() - begin
        pair(eager(usual), usual, f"torch.compile of each block ({took:.0f} s to compile), against eager")
    print(f"{config.name}, {DENOISER_OF[args.output]}, {args.output} {tuple(x.shape)}, {machine(device)}\n")
    print(table(["lever", "without, s", "with, s", "times as fast", "difference"], rows))


if __name__ == "__main__":
    main()

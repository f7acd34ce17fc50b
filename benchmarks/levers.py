"""What each speed lever of a denoiser brings, each alone against the same step: folded prompts, fused attention, batches, compile, half.

python benchmarks/levers.py [--config official|mini] [--output image|video|audio|text] [--levers folded,attention,...] [--threads N]

Every row compares the path that the pack runs (prompt branches folded, fused attention, float32, eager) with one thing changed:
attention to the prompt as to many tokens, attention written out as einsums with a softmax in memory, and so on. `window` and
`environment` are joint steps of --output and its neighbour; `eight_bits` needs a ComfyUI (COMFYUI_PATH), `graph` and `streams` need CUDA.
The last column says how far results differ."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import measure
from measure import CONFIGS, compare, config_of, machine, table

import torch  # isort: skip
from torch import Tensor  # isort: skip

from codi_models.alignment import Alignment  # isort: skip
from codi_models.config import CoDiConfig  # isort: skip
from codi_models.modalities import MODALITIES, Size  # isort: skip
from codi_models.checkpoints import without_random_init  # isort: skip
from codi_models.denoisers import convolution  # isort: skip
from codi_models.denoisers.layers import CrossAttention, ResBlock, SpatialTransformer  # isort: skip
from codi_models.joint import JointDenoiser  # isort: skip
from codi_models.components import build_component  # isort: skip
from codi_models.parity.recipe import fill  # isort: skip

TOLERANCE = {"float32": 1e-4, "float16": 0.2, "bfloat16": 0.3}
LEVERS = ("folded", "attention", "both", "unconditional", "batch", "seeds", "convolution", "window", "environment",
          "graph", "streams", "compile", "regions", "bfloat16", "float16", "eight_bits", "channels_last")  # fmt: skip
NEEDS_CUDA = ("graph", "streams")


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
    shape = MODALITIES[output].latent_shape(config, Size(size, size, frames, config.mel.frames))
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def by_torch(net: torch.nn.Module) -> Iterator[None]:
    """Inside, 3x3 convolutions of the 2-D path are torch's own, whatever their size."""
    layers: list[Any] = [m for m in net.modules() if getattr(getattr(m, "_conv_forward", None), "func", None) is convolution._convolve]
    usual = [layer._conv_forward for layer in layers]
    for layer in layers:
        del layer._conv_forward
    try:
        yield
    finally:
        for layer, forward in zip(layers, usual, strict=True):
            layer._conv_forward = forward


class Lagging(JointDenoiser):
    """Environment embeddings of every second call are those of the call before."""

    kept: dict[str, Tensor] | None = None

    def environment_embeddings(self, latents: Any, timesteps: Tensor) -> dict[str, Tensor]:
        self.kept, now = (super().environment_embeddings(latents, timesteps), None) if self.kept is None else (None, self.kept)
        return now or self.kept or {}


def joint_levers(net: Any, x: Tensor, config: CoDiConfig, output: str, levers: list[str], pair: Callable[..., None]) -> None:
    """Rows of a joint step: connectors left out beyond the alignment's range, environment encoders at every second step."""
    other = "audio" if output != "audio" else "image"
    with without_random_init():
        second: Any = build_component(MODALITIES[other].denoiser, config, device=x.device)
    fill(second, "benchmark").eval().requires_grad_(False)
    members = {MODALITIES[output].denoiser: net, MODALITIES[other].denoiser: second}
    both = {output: x, other: latent(other, config, 256, 8, len(x)).to(x.device)}
    joint, lagging = (cls(members, register=False) for cls in (JointDenoiser, Lagging))
    prompt = torch.nn.functional.normalize(torch.randn(len(x), 1, config.vision_denoiser.context_dim, device=x.device), dim=-1)
    folded = joint.fold_contexts(prompt, tuple(both))

    def two_steps(denoiser: JointDenoiser) -> Any:
        at = both
        for step in (501, 401):
            t = torch.full((len(x),), step, device=x.device)
            at = {m: at[m] - 0.1 * e for m, e in denoiser(at, t, folded).items()}
        return at

    if "window" in levers:
        t = torch.full((len(x),), 501, device=x.device)
        pair(
            lambda: joint(both, t, folded),
            lambda: joint(both, t, folded, alignment=Alignment("off")),
            "outside the alignment's range",
            None,
        )
    if "environment" in levers:
        pair(lambda: two_steps(joint), lambda: two_steps(lagging), "environment encoders at every second of two steps", None)


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A step as a CUDA graph: its kernels are queued at once."""
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def on_streams(steps: list[Callable[[], Tensor]]) -> list[Tensor]:
    """Independent steps, each on a CUDA stream of its own."""
    streams, results = [torch.cuda.Stream() for _ in steps], []
    for stream, step in zip(streams, steps, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results.append(step())
    for stream in streams:
        torch.cuda.current_stream().wait_stream(stream)
    return results


def eight_bit_operations() -> Any:
    """The host's operations that cast weights to the activations' type when they are used. Exits where no host is found."""
    sys.path.insert(0, str(measure.ROOT / "tests"))
    from host.setting import find_host

    if (host := find_host()) is None:
        sys.exit("error: eight_bits needs ComfyUI's operations: set COMFYUI_PATH")
    sys.path.insert(0, str(host))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    import comfy.ops

    return comfy.ops.manual_cast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="official")
    parser.add_argument("--output", choices=tuple(MODALITIES), default="image")
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
    config, device = config_of(args.config), torch.device(args.device)
    with without_random_init():
        net: Any = build_component(MODALITIES[args.output].denoiser, config, device=device)
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

    def pair(slow: Callable[[], Any], fast: Callable[[], Any], what: str, precision: str | None = "float32") -> None:
        allowed = TOLERANCE[precision] if precision else float("inf")
        rows.append(compare(what if precision else f"{what} (not exact)", {"without": slow, "with": fast}, args.repeats, device, allowed))
        print("  ".join(rows[-1]), file=sys.stderr)

    rows: list[list[str]] = []
    levers = args.levers.split(",")
    if unknown := [lever for lever in levers if lever not in LEVERS]:
        sys.exit(f"error: no lever {unknown[0]!r}; there are {', '.join(LEVERS)}")
    if device.type != "cuda" and (left := [lever for lever in levers if lever in NEEDS_CUDA]):
        print(f"left out: {', '.join(left)} needs CUDA", file=sys.stderr)
        levers = [lever for lever in levers if lever not in NEEDS_CUDA]
    if "folded" in levers:
        pair(general(False, True), usual, "prompt branches folded, against attending to the prompt")
    if "attention" in levers:
        pair(general(True, False), usual, "fused attention, against einsum")
    if "both" in levers:
        pair(general(True, True), usual, "both, against the general einsum path")
    if "batch" in levers:
        halves = [(x[i : i + 1], t[:1], net.fold_context(prompt[i : i + 1])) for i in (0, 1)]
        pair(lambda: torch.cat([net(*half) for half in halves]), usual, "guidance's halves in one batch, against one by one")
    if "unconditional" in levers:
        alone = net.fold_context(prompt[1:])
        pair(lambda: usual()[1:], lambda: net(x[1:], t[1:], alone), "pass without the prompt left out (cfg 1, or outside its range)")
    if "seeds" in levers:
        four = latent(args.output, config, args.size, args.frames, 4).to(device)
        one, every = net.fold_context(prompt[:1]), net.fold_context(prompt[:1].expand(4, -1, -1))
        pair(
            lambda: torch.cat([net(four[i : i + 1], t[:1], one) for i in range(4)]),
            lambda: net(four, t[:1].expand(4), every),
            "four seeds in one batch, against one by one",
        )
    if "convolution" in levers and args.output != "text":

        def plainly() -> Tensor:
            with by_torch(net):
                return usual()

        pair(plainly, usual, "convolutions by their size, against torch's")
    if "window" in levers or "environment" in levers:
        joint_levers(net, x, config, args.output, levers, pair)
    if "graph" in levers:
        pair(usual, captured(usual), "captured as a CUDA graph, against eager")
    if "streams" in levers:
        steps = [lambda i=i: net(x[i : i + 1], t[:1], net.fold_context(prompt[i : i + 1])) for i in (0, 1)]  # type: ignore[misc]
        pair(lambda: [step() for step in steps], lambda: on_streams(steps), "two steps on streams of their own, against one stream")
    if "eight_bits" in levers:
        with without_random_init():
            small: Any = build_component(
                MODALITIES[args.output].denoiser, config, device=device, dtype=torch.float8_e4m3fn, operations=eight_bit_operations()
            )
        small.load_state_dict(net.state_dict())
        pair(usual, lambda: small.eval()(x, t, small.fold_context(prompt)), "weights in 8 bits (e4m3), cast by the host's operations", None)
        del small
    if "compile" in levers:
        compiled = torch.compile(net)
        pair(usual, lambda: compiled(x, t, folded), "torch.compile, against eager")
    for precision in ("bfloat16", "float16"):
        if precision in levers:
            dtype = getattr(torch, precision)
            half = build_component(MODALITIES[args.output].denoiser, config, device=device, dtype=dtype)
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
    print(f"{config.name}, {MODALITIES[args.output].denoiser}, {args.output} {tuple(x.shape)}, {machine(device)}\n")
    print(table(["lever", "without, s", "with, s", "times as fast", "difference"], rows))


if __name__ == "__main__":
    main()

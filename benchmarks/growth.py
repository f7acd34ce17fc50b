"""How time and memory of one step grow with frames, picture size, batch, number of prompts and number of outputs.

python benchmarks/growth.py [--scale 5] [--published CHECKOUT] [--only frames,size,...] [--repeats 2] [--out runs/growth]

With --published the published code runs beside ours, on the same weights; their results must agree. Memory is the largest sum of the
tensors that were alive at once while the step ran, weights not counted. A second table holds every UNet against the machine's own rate: the
operations of a step, counted, over the rate of a large matrix product, measured. `--scale 5` divides all channels by about five.
Results: tables on stdout, growth.md and growth.png."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import measure
from measure import alternate, difference, machine, settle, table

import torch  # isort: skip
from torch import Tensor  # isort: skip
from torch.utils.flop_counter import FlopCounterMode  # isort: skip
from against_published import TOLERANCE, Sides, latents, one_step  # isort: skip
from memory import Peak  # isort: skip
from published import Published  # isort: skip

from codi_models.checkpoints import without_random_init  # isort: skip
from codi_models.alignment import Alignment  # isort: skip
from codi_models.config import CoDiConfig  # isort: skip
from codi_models.modalities import MODALITIES, denoisers_of  # isort: skip
from codi_models.bounce_world.evaluation import plots  # isort: skip
from codi_models.files import write_text  # isort: skip
from codi_models.joint import JointDenoiser  # isort: skip
from codi_models.components import build_component  # isort: skip
from codi_models.parity.recipe import fill  # isort: skip

Runs = Mapping[str, Callable[[], Any]]
CPU = torch.device("cpu")
AXES = ("frames", "size", "batch", "prompts", "outputs")
OUTPUTS = ("image", "audio", "text", "video")  # in the order in which the axis of outputs adds them
LABELS = {"frames": "frames of a video", "size": "pixels of an image's edge", "batch": "images a batch",
          "prompts": "prompts mixed, image", "outputs": f"outputs: {', '.join(OUTPUTS)}"}  # fmt: skip


class Ours:
    """Our denoisers alone, of the official configuration with its channels divided."""

    def __init__(self, scale: int) -> None:
        self.config, self._networks = CoDiConfig.official(), dict[str, Any]()
        for name in denoisers_of(MODALITIES):
            part: Any = getattr(self.config, name)
            width = part.model_channels if scale == 1 else max(1, round(part.model_channels / scale / 64)) * 64
            self.config = dataclasses.replace(self.config, **{name: dataclasses.replace(part, model_channels=width)})

    def need(self, outputs: tuple[str, ...]) -> JointDenoiser:
        """The joint denoiser of some outputs."""
        for name in set(denoisers_of(outputs)) - set(self._networks):
            with without_random_init():
                self._networks[name] = fill(build_component(name, self.config), "benchmark").eval().requires_grad_(False)
        return JointDenoiser({name: self._networks[name] for name in denoisers_of(outputs)}, register=False)


def runs(sides: Any, x: dict[str, Tensor], prompts: int = 1) -> Runs:
    """What is measured at one point, by side."""
    if isinstance(sides, Sides):
        return one_step(sides, x, prompts)
    joint, batch = sides.need(tuple(x)), len(next(iter(x.values())))
    contexts, t = torch.nn.functional.normalize(torch.randn(prompts, batch, 1, 768), dim=-1), torch.full((batch,), 501)
    return {"ours": lambda: joint(x, t, joint.fold_contexts(contexts.mean(dim=0), tuple(x)), alignment=Alignment("self"))}


def points(axis: str, args: argparse.Namespace) -> list[tuple[int, dict[str, Tensor], int]]:
    """Place on the axis, latents, number of prompts. What an axis does not change is one image or video at --size, without guidance."""
    asked = {"frames": args.frames, "size": args.sizes, "batch": args.batches, "prompts": args.prompts}
    found = []
    for n in map(int, asked[axis].split(",")) if axis in asked else range(1, args.outputs + 1):
        outputs = {"frames": ("video",), "outputs": OUTPUTS[:n]}.get(axis, ("image",))
        x = latents(outputs, n if axis == "size" else args.size, n if axis == "frames" else 8, n if axis == "batch" else 1)
        found.append((n, x, n if axis == "prompts" else 1))
    return found


def peak(run: Callable[[], Any]) -> int:
    """Bytes of tensors made by `run` that were alive at once."""
    with Peak() as counted:
        run()
    return counted.most


def grow(sides: Any, axis: str, args: argparse.Namespace) -> list[tuple[int, dict[str, float], dict[str, float]]]:
    """Place on the axis, seconds by side, megabytes by side."""
    found = []
    for n, x, prompts in points(axis, args):
        pair = runs(sides, x, prompts)
        results = [run() for run in pair.values()]
        if (apart := difference(results[-1], results[0])) > TOLERANCE:
            sys.exit(f"{axis} {n}: the sides differ by {apart:.1e}; times are not comparable")
        del results
        found.append((n, alternate(pair, args.repeats, CPU), {side: peak(run) / 1e6 for side, run in pair.items()}))
        print(axis, *found[-1], file=sys.stderr, flush=True)
    return found


def matrix_rate(size: int = 2048) -> float:
    """Operations a second of a large float32 matrix product, the median of five."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    taken = []
    for _ in range(6):
        begin = measure.clock()
        a @ b
        taken.append(measure.clock() - begin)
    return 2 * size**3 / statistics.median(taken[1:])


def shares(sides: Any, args: argparse.Namespace) -> list[list[str]]:
    """Rows: operations of one step of a UNet under guidance, seconds, share of the matrix rate."""
    taken, rate = [], matrix_rate()
    for output in OUTPUTS[: args.outputs]:
        run = runs(sides, latents((output,), args.size, 8, 2))["ours"]
        with FlopCounterMode(display=False) as counted:
            run()
        taken.append((output, counted.get_total_flops(), alternate({"ours": run}, args.repeats, CPU)["ours"]))
        rate = max(rate, matrix_rate())
    rows = [[o, f"{n / 1e9:.0f}", f"{s:.3f}", f"{n / s / 1e9:.0f}", f"{n / s / rate:.0%}"] for o, n, s in taken]
    return [["a 2048 x 2048 matrix product", f"{2 * 2048**3 / 1e9:.0f}", f"{2 * 2048**3 / rate:.3f}", f"{rate / 1e9:.0f}", "100%"], *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, help="checkout of microsoft/i-Code, to run beside ours")
    parser.add_argument("--scale", type=int, default=1, help="divide the channels of all networks")
    parser.add_argument("--only", default=",".join((*AXES, "rate")), help=f"some of {', '.join(AXES)}, rate")
    parser.add_argument("--frames", default="4,8,12,16", help="of clips; with two or three the norm over frames blows up rounding")
    parser.add_argument("--sizes", default="64,128,256,384")
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--prompts", default="1,2,4,8")
    parser.add_argument("--outputs", type=int, default=4, choices=range(1, 5), help=f"as many of {', '.join(OUTPUTS)}")
    parser.add_argument("--size", type=int, default=128, help="pixels where the size is not what grows")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    args = parser.parse_args()
    settle(args.threads)
    try:
        sides: Any = Sides(Published(args.published, args.scale)) if args.published else Ours(args.scale)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    chosen = args.only.split(",")
    size = "published size" if args.scale == 1 else f"channels divided by {args.scale}"
    lines = [f"{machine(CPU)}; {size}, float32, {args.size} pixels unless said otherwise\n"]
    grown = {axis: grow(sides, axis, args) for axis in AXES if axis in chosen}
    if grown:
        names = list(next(iter(grown.values()))[0][1])
        heads = ["what grows", "to", *(f"{name}, s" for name in names), *(f"{name}, MB" for name in names)]
        body = [
            [LABELS[axis], str(n), *(f"{seconds[side]:.3f}" for side in names), *(f"{used[side]:.1f}" for side in names)]
            for axis, found in grown.items()
            for n, seconds, used in found
        ]
        lines.append(table(heads, body))
        plots.save(args.out / "growth.png", lambda figure: draw(figure, grown))
    if "rate" in chosen:
        heads = ["one step under guidance", "10^9 operations", "seconds", "10^9 a second", "share of the matrix rate"]
        lines.append("\n" + table(heads, shares(sides, args)))
    print("\n".join(lines))
    write_text(args.out / "growth.md", "\n".join(lines) + "\n")


def draw(figure: Any, grown: Mapping[str, list]) -> None:
    """Time above, memory below, a column an axis, a curve a side."""
    figure.set_size_inches(3.1 * len(grown) + 0.4, 5.6)
    for row, (kind, label) in enumerate(((1, "seconds"), (2, "MB of tensors"))):
        for column, (axis, found) in enumerate(grown.items()):
            axes = figure.add_subplot(2, len(grown), row * len(grown) + column + 1)
            for k, side in enumerate(reversed(found[0][1])):
                places = [point[0] for point in found]
                axes.plot(places, [point[kind][side] for point in found], label=side, marker=".", color=plots.COLOURS[k])
            axes.set_xticks(places)
            axes.set_ylim(bottom=0)
            axes.set_xlabel(LABELS[axis], fontsize=8)
            if not column:
                axes.set_ylabel(label)
                axes.legend(fontsize=8)


if __name__ == "__main__":
    main()

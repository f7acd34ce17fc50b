"""This pack against the published code, side by side with the same recipe weights: time, load time, peak memory.

python benchmarks/against_published.py --published CHECKOUT [--scale 5] [--only unets,joint,ddim,autoencoder,load] [--steps 4] [--repeats 3]

CHECKOUT is a clone of microsoft/i-Code (or its folder i-Code-V3). `--scale 1` is the published size: 9 GB for video and sound
together, 18 GB with text; `--scale 5` divides all channels by five. Both sides' outputs must agree before they are timed."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
from measure import alternate, compare, in_a_process, machine, peak_bytes, settle, table

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip
from published import Published, quiet  # isort: skip

from codi_models.autoencoders.image import ImageAutoencoder  # isort: skip
from codi_models.checkpoints import load_weights, save_weights, without_random_init  # isort: skip
from codi_models.denoisers.unet import UNet  # isort: skip
from codi_models.alignment import Alignment  # isort: skip
from codi_models.config import DiffusionConfig  # isort: skip
from codi_models.diffusion import PUBLISHED, NoiseSchedule, alphas_cumprod, betas, run_sigmas, sample  # isort: skip
from codi_models.guidance import Guidance, GuidedDenoiser  # isort: skip
from codi_models.joint import JointDenoiser  # isort: skip
from codi_models.parity.configs import autoencoder_config  # isort: skip
from codi_models.parity.networks import build_unet  # isort: skip
from codi_models.parity.recipe import parity_weight  # isort: skip

SEED = "benchmark"
PART_OF = {"video": "unet_image", "image": "unet_image", "audio": "unet_audio", "text": "unet_text"}
DENOISERS = {"unet_image": "vision_denoiser", "unet_audio": "audio_denoiser", "unet_text": "text_denoiser"}
TOLERANCE = 1e-4
RUN_TOLERANCE = 1e-3  # a run feeds its rounding back at every step
KINDS = ("unets", "joint", "ddim", "autoencoder", "load")


def recipe(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Recipe weights of an empty network."""
    return {k: torch.from_numpy(parity_weight(SEED, prefix + k, v.shape)) for k, v in network.state_dict().items()}


class Sides:
    """Both sides' UNets, sharing the memory of their weights."""

    def __init__(self, published: Published) -> None:
        self.published, self.theirs, self.device = published, published.joint(), published.device
        self.ours: dict[str, UNet] = {}

    def need(self, outputs: tuple[str, ...]) -> JointDenoiser:
        """Weights for these outputs, in both; our joint denoiser of them."""
        for part in dict.fromkeys(PART_OF[m] for m in outputs):
            if part not in self.ours:
                net = build_unet(part, self.published.unets()[part], device="meta")
                weights = {k: v.to(self.device) for k, v in recipe(net, f"{part}.").items()}
                net.load_state_dict(weights, assign=True)
                getattr(self.theirs, part).load_state_dict(weights, assign=True)
                self.ours[part] = net.eval().requires_grad_(False)
        parts = dict.fromkeys(PART_OF[m] for m in outputs)
        return JointDenoiser({DENOISERS[part]: self.ours[part] for part in parts}, register=False)


def latents(outputs: tuple[str, ...], size: int, frames: int, batch: int) -> dict[str, Tensor]:
    """Noise of the sizes that the published inference makes: `size` pixels, `frames` frames, 10 s of sound."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"video": (4, frames, size // 8, size // 8), "image": (4, size // 8, size // 8), "text": (768,), "audio": (8, 256, 16)}
    return {m: torch.randn(batch, *shapes[m], generator=generator) for m in outputs}


def one_step(sides: Sides, x: dict[str, Tensor], prompts: int = 1) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """One evaluation of latents by either side, with a mix of several prompts; prompt branches are made anew at every step."""
    outputs = tuple(x)
    joint, batch = sides.need(outputs), len(next(iter(x.values())))
    contexts = torch.nn.functional.normalize(torch.randn(prompts, batch, 1, 768), dim=-1).to(sides.device)
    alignment, t = Alignment("self"), torch.full((batch,), 501, device=sides.device)
    x = {m: part.to(sides.device) for m, part in x.items()}

    def published() -> dict[str, Tensor]:
        parts = sides.theirs(list(x.values()), t, list(contexts), list(outputs), ["text"] * prompts)
        return dict(zip(outputs, parts, strict=True))

    return {"published": published, "ours": lambda: joint(x, t, joint.fold_contexts(contexts.mean(dim=0), outputs), alignment=alignment)}


def step(sides: Sides, outputs: tuple[str, ...], args: argparse.Namespace) -> list[str]:
    """One evaluation of some outputs with guidance's doubled batch."""
    pair = one_step(sides, latents(outputs, args.size, args.frames, 2))
    return compare(f"{' + '.join(outputs)}, one step", pair, args.repeats, sides.device, TOLERANCE)


def run(sides: Sides, outputs: tuple[str, ...], args: argparse.Namespace) -> list[str]:
    """A whole DDIM run with guidance, from the same noise."""
    joint = sides.need(outputs)
    noise = latents(outputs, args.size, args.frames, 1)
    uncond, cond = torch.nn.functional.normalize(torch.randn(2, 1, 768), dim=-1).split(1)
    sampler = sides.published.sampler(sides.theirs, alphas_cumprod(), betas().float())
    schedule = NoiseSchedule(DiffusionConfig())

    def published() -> dict[str, Tensor]:
        with quiet():
            made, _ = sampler.sample(
                steps=args.steps, shape=[list(x.shape) for x in noise.values()], xt=[x.clone() for x in noise.values()],
                condition=[torch.cat([uncond, cond])], unconditional_guidance_scale=7.5, xtype=list(outputs),
                condition_types=["text"], eta=0.0, verbose=False, mix_weight={"text": 1},
            )  # fmt: skip
        return dict(zip(outputs, made, strict=True))

    def ours() -> dict[str, Tensor]:
        guidance, scales = dict.fromkeys(outputs, Guidance(7.5)), dict.fromkeys(outputs, 1.0)
        denoise = GuidedDenoiser(joint, schedule, cond, uncond, guidance, Alignment("self"), scales=scales)
        return sample(denoise, noise, run_sigmas(schedule, PUBLISHED, args.steps))

    label = f"{' + '.join(outputs)}, DDIM run of {args.steps} steps"
    return compare(label, {"published": published, "ours": ours}, max(1, args.repeats // 2), torch.device("cpu"), RUN_TOLERANCE)


def autoencoder(published: Published, args: argparse.Namespace) -> list[list[str]]:
    """Encoding (posterior mean) and decoding of one image."""
    arguments = published.config("sd")["sd_autoencoder"]["args"]
    with torch.device("meta"):
        ours = ImageAutoencoder(autoencoder_config(arguments))
    theirs, weights = published.autoencoder(), recipe(ours, "autokl.")
    for net in (ours, theirs):
        net.load_state_dict(weights, assign=True)
        net.eval().requires_grad_(False)
    pixels = torch.rand(1, 3, args.size, args.size) * 2 - 1
    z = torch.randn(1, 4, args.size // 8, args.size // 8)
    cpu = torch.device("cpu")
    encode = {"published": lambda: theirs.encode(pixels).mode(), "ours": lambda: ours.encode(pixels)}
    decode = {"published": lambda: theirs.decode(z), "ours": lambda: ours.decode(z)}
    return [
        compare("image autoencoder, encode", encode, args.repeats, cpu, TOLERANCE),
        compare("image autoencoder, decode", decode, args.repeats, cpu, TOLERANCE),
    ]


def load_one(published: Published, side: str, part: str, file: str) -> None:
    """In a process of its own: build a UNet from its file and run one step; prints seconds to load and peak bytes."""
    config = published.unets()[part]
    published.joint()  # imports are no part of loading
    before, begin = peak_bytes(), time.perf_counter()
    if side == "published":
        from core.models.common.get_model import get_model  # type: ignore[import-not-found]
        from published import AttributeDict

        kind = "openai_unet_0dmd" if part == "unet_text" else "openai_unet_2d"
        net = get_model()(AttributeDict(type=kind, args=config))
        net.load_state_dict(torch.load(file, map_location="cpu"), strict=False)
    else:
        with without_random_init():
            net = build_unet(part, config)
        load_weights(net, file)
    print(time.perf_counter() - begin, peak_bytes() - before)


def loading(published: Published, args: argparse.Namespace, part: str) -> list[list[str]]:
    """Seconds and peak memory of building a UNet from its file: `.pth` as published, safetensors here."""
    with tempfile.TemporaryDirectory() as folder:
        net = build_unet(part, published.unets()[part], device="meta")
        weights = recipe(net, f"{part}.")
        size = sum(v.numel() * v.element_size() for v in weights.values())
        files = {"published": f"{folder}/net.pth", "ours": f"{folder}/net.safetensors"}
        torch.save(weights, files["published"])
        save_weights(weights, files["ours"])
        del weights
        found: dict[str, tuple[float, float]] = {}

        def one(side: str) -> None:
            common = ["--published", str(published.root), "--scale", str(published.scale)]
            line = in_a_process(__file__, *common, "--load-one", side, part, files[side])
            seconds, peak = map(float, line.split())
            found[side] = min(found.get(side, (seconds, peak)), (seconds, peak))

        alternate({side: (lambda side=side: one(side)) for side in files}, 1, torch.device("cpu"))  # type: ignore[misc]
        (slow, big), (fast, small) = found["published"], found["ours"]
    return [
        [f"{part}, load time, s", f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.2f}", ""],
        [
            f"{part}, memory while loading / size of the weights",
            f"{big / size:.2f}",
            f"{small / size:.2f}",
            f"{big / small:.2f}" if small else "",
            "",
        ],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="checkout of microsoft/i-Code")
    parser.add_argument("--scale", type=int, default=1, help="divide the channels of all networks")
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--outputs", default="image,video,audio,text,video+audio,image+text", help="of unets and joint")
    parser.add_argument("--size", type=int, default=256, help="pixels of images and videos")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50, help="of the DDIM run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of unets and joint")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread instead of time on the clock")
    parser.add_argument("--load-one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    settle(args.threads)
    try:
        published = Published(args.published, args.scale, torch.device(args.device))
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    if args.load_one:
        return load_one(published, *args.load_one)
    kinds = args.only.split(",")
    size = "published size" if args.scale == 1 else f"channels divided by {args.scale}"
    print(f"{machine(published.device)}; {size}, float32, {args.size} pixels, {args.frames} frames, 10 s of sound\n")
    if args.cpu_time:
        torch.set_num_threads(1)
        measure.clock = time.process_time
    rows: list[Any] = []
    sides = Sides(published)
    for outputs in (tuple(o.split("+")) for o in args.outputs.split(",")):
        if "unets" in kinds and len(outputs) == 1 or "joint" in kinds and len(outputs) > 1:
            rows.append(step(sides, outputs, args))
            print("  ".join(rows[-1]), file=sys.stderr)
    if "ddim" in kinds:
        rows.append(run(sides, ("video", "audio"), args))
    del sides
    if "autoencoder" in kinds:
        with quiet():
            rows += autoencoder(published, args)
    if "load" in kinds:
        rows += loading(published, args, "unet_audio")
        rows += loading(published, args, "unet_image")
    print(table(["what", "published, s", "ours, s", "times as fast", "difference"], rows))


if __name__ == "__main__":
    main()

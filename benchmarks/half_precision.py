"""Error of float16 and bfloat16 against float32 for every network, on recipe weights and inputs.

python benchmarks/half_precision.py [--config mini|official] [--only clip,vocoder,...] [--clip-size 56] [--device cpu|cuda]

Printed is the root-mean-square error, and the largest, each relative to the float32 result; a result that is not finite ends in an error.
Inputs are short: pictures of 128 pixels and clips of 4 frames in the denoiser, 8 tokens, 64 pixels to the picture autoencoder.
Widths and depths are the configuration's. Weights are drawn once, into a temporary file (8 GB for text_denoiser of the official
size); the float32 network is read where the file is mapped, and one in half precision is in memory at a time (4 GB)."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from measure import CONFIGS, config_of, machine, table

import torch  # isort: skip
from codi_models.components import COMPONENTS  # isort: skip
from codi_models.parity.half import half_errors, joint_errors  # isort: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="mini")
    parser.add_argument("--only", default=",".join([*COMPONENTS, "joint"]), help="components, and joint for all outputs together")
    parser.add_argument(
        "--clip-size", type=int, help="pixels of pictures and clips for clip, a multiple of its patch (default the config's)"
    )
    parser.add_argument("--folder", help="existing folder that keeps the float32 weights for another run (default a temporary one)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    config, device = config_of(args.config), torch.device(args.device)
    if args.clip_size:
        config = replace(config, clip=replace(config.clip, image_size=args.clip_size))
    print(f"{config.name}, clip {config.clip.image_size} pixels, {machine(device)}\n", flush=True)
    rows, broken = [], []
    for name in args.only.split(","):
        where: Any = dict(device=device, folder=args.folder)
        found = joint_errors(config, **where) if name == "joint" else half_errors(name, config, **where)
        for error in found:
            rows.append([f"{name}, {error.what}", error.precision, f"{error.rms:.1e}", f"{error.largest:.1e}"])
            print("  ".join(rows[-1]), file=sys.stderr)
            if not error.finite:
                broken.append(f"{name}, {error.what}, {error.precision}")
    print(table(["network", "precision", "rms error", "largest error"], rows))
    if broken:
        sys.exit(f"not finite: {'; '.join(broken)}")


if __name__ == "__main__":
    main()

"""Error of float16 and bfloat16 against float32 for every network, on recipe weights and inputs.

python benchmarks/half_precision.py [--config mini|official] [--only clip,vocoder,...] [--device cpu|cuda]

Printed is the root-mean-square error, and the largest, each relative to the float32 result; a result that is not finite ends in an error.
Networks are built one after the other; the largest of the official size takes 12 GB (text_denoiser), most take 1 GB."""

from __future__ import annotations

import argparse
import sys

from measure import machine, table

import torch  # isort: skip
from codi_models.config import CoDiConfig  # isort: skip
from codi_models.model import COMPONENTS  # isort: skip
from codi_models.parity.half import half_errors, joint_errors  # isort: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=("mini", "official"), default="mini")
    parser.add_argument("--only", default=",".join([*COMPONENTS, "joint"]), help="components, and joint for all outputs together")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    config, device = getattr(CoDiConfig, args.config)(), torch.device(args.device)
    print(f"{config.name}, {machine(device)}\n")
    rows, broken = [], []
    for name in args.only.split(","):
        found = joint_errors(config, device=device) if name == "joint" else half_errors(name, config, device=device)
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

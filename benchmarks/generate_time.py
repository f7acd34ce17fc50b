"""Seconds from one sentence to image, video, audio and text after loading, stage by stage, on this machine.

python benchmarks/generate_time.py [--model codi-mini|PATH] [--device auto|cpu|cuda] [--threads 2] [--steps S] [--count K] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from codi_models.errors import CoDiError  # noqa: E402
from codi_models.modalities import MODALITIES  # noqa: E402
from codi_models.pipeline import CoDiPipeline  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="codi-mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--count", type=int, default=1, help="samples in one batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt", default="a red circle bounces twice")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe = CoDiPipeline.from_pretrained(args.model, device=args.device)
    pipe(args.prompt, list(MODALITIES), steps=1, count=args.count)  # loads everything and warms up
    runs = []
    for seed in range(args.repeats):
        pipe(args.prompt, list(MODALITIES), seed=seed, steps=args.steps, count=args.count)
        runs.append({stage: seconds for stage, seconds in pipe.seconds.items() if stage != "load"})
    device = torch.cuda.get_device_name(pipe.model.device) if pipe.model.device.type == "cuda" else f"{args.threads} CPU threads"
    steps = args.steps or pipe.model.config.sampling.steps
    print(f"{pipe.model.config.name}, {device}, torch {torch.__version__}, {steps} steps, {args.count} sample(s), median of {args.repeats}")
    print("\n| stage | seconds |\n| --- | ---: |")
    for stage in runs[0]:
        print(f"| {stage} | {statistics.median(run[stage] for run in runs):.3f} |")
    print(f"| total | {statistics.median(sum(run.values()) for run in runs):.3f} |")


if __name__ == "__main__":
    try:
        main()
    except CoDiError as error:
        sys.exit(f"error: {error}")

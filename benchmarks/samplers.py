"""How few evaluations of the denoisers suffice: accuracy and coherence of a model by sampler and steps.

Accuracy: a full sentence to one output, all attributes. Coherence: video and audio without a prompt, denoised together."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from codi_models.bounce_world.evaluation.cells import Cell, Laboratory, Part  # noqa: E402
from codi_models.bounce_world.evaluation.sections import OUTPUTS, agree, right, share, table  # noqa: E402
from codi_models.bounce_world.world import SEEN_IN  # noqa: E402
from codi_models.pipeline import CoDiPipeline  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="codi-mini")
    parser.add_argument("--samplers", default="dpmpp_2m,euler,euler_ancestral", help="comma-separated (default: %(default)s)")
    parser.add_argument("--steps", default="4,8,15,25,50", help="comma-separated (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=72)
    parser.add_argument("--out", type=Path, default=Path("out/samplers"), help="folder of the readings (default: %(default)s)")
    options = parser.parse_args()
    pipe = CoDiPipeline.from_pretrained(options.model, dtype="fp32")
    rows = []
    for sampler in options.samplers.split(","):
        for steps in map(int, options.steps.split(",")):
            file = options.out / f"{sampler}-{steps}.json.gz"
            lab = Laboratory(pipe, file, samples=options.samples, seed=1000, overrides={"sampler": sampler, "steps": steps})
            shares = [share(right(lab.read(Cell((o,), (Part("text"),))), o, SEEN_IN[o])) for o in OUTPUTS]
            together = lab.read(Cell(("video", "audio"), settings=(("schedule", "together"),)))
            rows.append([sampler, steps, *(f"{100 * s.value:.0f}" for s in shares), str(share(agree(together, ("video", "audio"))))])
    print(table(["sampler", "steps", *OUTPUTS, "video+audio agree"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a model trained on the digits makes, read by classifiers that are trained apart, on the real data alone.

    python examples/digits/evaluate.py MODEL DATA       # DATA as build.py wrote it

Prompts are the held-back examples. First how well the classifiers read those themselves; then every prompt to every output, and how often
outputs that are made together, without a prompt, agree."""

from __future__ import annotations

import argparse
import json
import re
import sys
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codi_models.autoencoders.mel import LogMel  # noqa: E402
from codi_models.conditioning import Prompt, encode_prompt  # noqa: E402
from codi_models.config import MelConfig  # noqa: E402
from codi_models.media import read_audio, read_image  # noqa: E402
from codi_models.pipeline import CoDiPipeline  # noqa: E402
from codi_models.settings import Settings  # noqa: E402

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = ("image", "audio", "text")


def image_features(pixels: Tensor) -> Tensor:
    """(n, 3, 32, 32) -> (n, 64): the 8 x 8 grey levels that the digits were."""
    return avg_pool2d(pixels.mean(1, keepdim=True), 4).flatten(1)


def audio_features(waves: Tensor) -> Tensor:
    """(n, N) at 16 kHz -> (n, 16 * 32): log-mel from the first loud moment on, averaged in time and pitch."""
    mel = LogMel(MelConfig(frames=128, normalize=True))(waves)  # (n, 1, 128, 64)
    loud = mel.amax(3)[:, 0]
    start = (loud > loud.amax(1, keepdim=True) - 4).float().argmax(1)
    moved = torch.stack([row[0].roll(-int(s), 0)[:96] for row, s in zip(mel, start, strict=True)])  # (n, 96, 64)
    return avg_pool2d(moved[:, None], (6, 2)).flatten(1)


def read_text(texts: list[str]) -> list[int]:
    """The digit that each text names; -1 where it names none or several."""
    found = [{WORDS.index(word) for word in re.findall(r"[a-z]+", text.lower()) if word in WORDS} for text in texts]
    return [one.pop() if len(one) == 1 else -1 for one in found]


def load(folder: Path) -> dict[str, list]:
    """Media and digits of a folder."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    data = {"image": [read_image(folder / x["image"]) for x in lines], "audio": [read_audio(folder / x["audio"])[0] for x in lines]}
    return {**data, "text": [x["text"] for x in lines], "digit": read_text([x["text"] for x in lines])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    from sklearn.svm import SVC

    known, held = load(options.data), load(options.data / "test")
    features = {"image": image_features, "audio": audio_features}
    classifiers = {kind: SVC(C=10).fit(make(torch.stack(known[kind])).numpy(), known["digit"]) for kind, make in features.items()}

    def read(kind: str, values: list) -> list[int]:
        if kind == "text":
            return read_text(values)
        return classifiers[kind].predict(features[kind](torch.stack(values)).numpy()).tolist()

    def agree(a: list[int], b: list[int]) -> float:
        return sum(x == y >= 0 for x, y in zip(a, b, strict=True)) / len(a)

    held = {kind: values[: options.samples] for kind, values in held.items()}
    count = len(held["digit"])
    print("classifiers on held-back data:", {kind: round(agree(read(kind, held[kind]), held["digit"]), 3) for kind in KINDS})
    pipe = CoDiPipeline.from_pretrained(options.model)

    def make(outputs: tuple[str, ...], prompts: list[Prompt]) -> dict[str, list[int]]:
        settings = Settings.resolve(pipe.model.config, outputs, count=count)
        empty = pipe.condition([])[0]
        cond = torch.cat([encode_prompt(pipe.model, p) for p in prompts]) if prompts else empty.expand(count, -1, -1)
        samples = []
        for start in range(0, count, 25):
            rows = slice(start, min(start + 25, count))
            samples += pipe.generate(cond[rows], empty if prompts else None, settings, list(range(count)[rows]))[0]
        return {o: read(o, [getattr(sample, o) for sample in samples]) for o in outputs}

    for kind in KINDS:
        prompts = [Prompt(kind, (value, 16000) if kind == "audio" else value) for value in held[kind]]
        print(f"{kind} to", {o: round(agree(make((o,), prompts)[o], held["digit"]), 3) for o in KINDS})
    for outputs in (*combinations(KINDS, 2), KINDS):
        made = make(outputs, [])
        same = [len({made[o][i] for o in outputs}) == 1 and made[outputs[0]][i] >= 0 for i in range(count)]
        print(f"{' + '.join(outputs)} together, without a prompt: {sum(same) / count:.3f} agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())

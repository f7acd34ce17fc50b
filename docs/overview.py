"""Draws docs/images/overview.jpg: one sentence a row; picture, frames of the clip, spectrogram of the sound, caption.

Run from the pack's folder: python docs/overview.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from codi_models.pipeline import CoDiPipeline  # noqa: E402

SENTENCES = ("a red circle bounces twice", "a green square bounces three times", "the star is cyan and bounces once", "something yellow")
FRAMES = (0, 2, 4, 6)


def main() -> None:
    """Generate and draw."""
    pipe = CoDiPipeline.from_pretrained("codi-mini")
    figure, axes = plt.subplots(len(SENTENCES), 2 + len(FRAMES), figsize=(11, 1.75 * len(SENTENCES)), squeeze=False)
    for row, sentence in zip(axes, SENTENCES, strict=True):
        sample = pipe(sentence, ("image", "video", "audio", "text"), seed=3)[0]
        assert sample.image is not None and sample.video is not None and sample.audio is not None
        row[0].imshow(sample.image.permute(1, 2, 0).numpy(), interpolation="nearest")
        row[0].set_title(f'"{sentence}"', fontsize=8, loc="left")
        for axis, frame in zip(row[1:-1], FRAMES, strict=True):
            axis.imshow(sample.video[frame].permute(1, 2, 0).numpy(), interpolation="nearest")
        row[-1].specgram(
            sample.audio.numpy() + 1e-6 * np.random.default_rng(0).standard_normal(sample.audio.numel()), Fs=sample.sample_rate, vmin=-120
        )
        row[-1].set_title(str(sample.text), fontsize=8, loc="left")
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.tight_layout(pad=0.4)
    figure.savefig(ROOT / "docs" / "images" / "overview.jpg", dpi=110, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()

"""Files of one sample, as the command line names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import media
from ..files import whole_file, write_text
from ..pipeline import Sample


def write_sample(
    sample: Sample, folder: Path, stem: str, *, raw: bool, written: list[str], longer_audio: str = "cut",
    note: Callable[[str], None] = lambda _: None,
) -> None:  # fmt: skip
    """Write what the sample holds as `<stem>_<output>.<kind>`; names are added to `written` as files become whole.

    The video carries the audio where both are outputs; longer_audio and note as `media.write_mp4` takes them. `raw` adds
    `<stem>_raw.npz`: image (H, W, 3) and video (F, H, W, 3) in 0..1, audio (N,) in -1..1, float32, and sample_rate."""

    def done(name: str) -> None:
        written.append(name)

    if sample.image is not None:
        media.write_png(folder / f"{stem}_image.png", sample.image)
        done(f"{stem}_image.png")
    if sample.video is not None:
        media.write_mp4(
            folder / f"{stem}_video.mp4", sample.video, sample.frame_rate, sample.audio, sample.sample_rate, longer_audio=longer_audio,
            note=note,
        )  # fmt: skip
        done(f"{stem}_video.mp4")
    if sample.audio is not None:
        media.write_wav(folder / f"{stem}_audio.wav", sample.audio, sample.sample_rate)
        done(f"{stem}_audio.wav")
    if sample.text is not None:
        write_text(folder / f"{stem}_text.txt", sample.text + "\n")
        done(f"{stem}_text.txt")
    if raw:
        arrays: dict[str, np.ndarray] = {"sample_rate": np.array(sample.sample_rate)}
        if sample.image is not None:
            arrays["image"] = sample.image.permute(1, 2, 0).numpy()
        if sample.video is not None:
            arrays["video"] = sample.video.permute(0, 2, 3, 1).numpy()
        if sample.audio is not None:
            arrays["audio"] = sample.audio.numpy()
        with whole_file(folder / f"{stem}_raw.npz") as temporary:
            np.savez(str(temporary), **arrays)  # type: ignore[arg-type]
        done(f"{stem}_raw.npz")

"""How long a video is that carries audio of another length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import CoDiError
from .limits import Limits

LONGER_AUDIO = ("cut", "loop", "hold")
"""What becomes of audio that goes on when the video has ended: it is cut, the frames come again, or the last one stays."""
SLACK = 0.05  # seconds; what latents and codecs round off is cut without a word


def fit_lengths(
    frames: Tensor, frame_rate: float, audio: Tensor, sample_rate: int, longer_audio: str = "cut"
) -> tuple[Tensor, Tensor, str | None]:
    """Frames (F, ...) and audio (..., N) as one file holds them, and a line for the user where not all of the audio is in it.

    longer_audio: one of LONGER_AUDIO. Audio that ends before the video stays as it is. Raises CoDiError for another choice, and for a
    video of more frames than are read at once."""
    if longer_audio not in LONGER_AUDIO:
        raise CoDiError(f"longer_audio {longer_audio!r} is unknown: give one of {', '.join(LONGER_AUDIO)}")
    count, seconds, total = len(frames), len(frames) / frame_rate, audio.shape[-1] / sample_rate
    if total <= seconds + SLACK:
        return frames, audio[..., : round(seconds * sample_rate)], None
    if longer_audio == "cut":
        line = f"audio: {seconds:.2f} of {total:.2f} s are in the video; with longer_audio loop or hold all of it is"
        return frames, audio[..., : round(seconds * sample_rate)], line
    longer = math.ceil(total * frame_rate - 1e-6)
    Limits.current().check("frames", longer, "the video with this audio")
    index = torch.arange(longer)
    return frames[index % count if longer_audio == "loop" else index.clamp(max=count - 1)], audio, None

"""What is taken of a file lies at its time, whatever the file: judged by the hits of Bounce World that it shows and sounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clips import Clip, beats_at, hits, write
from codi.codi_models import media
from codi.codi_models.bounce_world.judge import judge_audio, judge_video
from codi.codi_models.bounce_world.world import DURATION
from codi.codi_models.errors import CoDiError

RATE = 6.25  # frames a second of codi-mini
NTSC = 30000 / 1001
UNEVEN = [0.0, 0.02, 0.1, 0.13, 0.3, 0.34, 0.41, 0.5, 0.52, 0.6, 0.68, 0.7, 0.85, 0.9, 0.97, 1.05, 1.1, 1.19, 1.25]
FASTER = [i / 12.5 for i in range(8)] + [0.64 + i / 50 for i in range(32)]
CLIPS = {
    **{f"{rate:.4g}.mp4": Clip(rate=rate) for rate in (6.25, 12.5, 25, NTSC, 60)},
    "25.mkv": Clip(), "25.webm": Clip(codec="libvpx-vp9", audio_codec="libopus", audio_rate=48000), "25.mov": Clip(),
    "25.avi": Clip(codec="mpeg4", audio_codec="mp3", options={"qscale": "2", "b": "2000000"}), "25.ts": Clip(),
    "uneven.mp4": Clip(times=UNEVEN), "uneven.mkv": Clip(times=UNEVEN), "faster.mp4": Clip(times=FASTER),
    "odd.mkv": Clip(size=(81, 65), codec="ffv1", pix_fmt="bgr0", audio_codec="flac", options={}), "wide.mp4": Clip(size=(96, 200)),
    "silent.mp4": Clip(audio=None), "longer_sound.mp4": Clip(audio=(0.0, 3.0)), "audio_first.mp4": Clip(audio_first=True, channels=2),
    "late_video.mp4": Clip(video_from=0.2), "late_audio.mp4": Clip(audio=(0.5, DURATION)), "late_audio.mkv": Clip(audio=(0.5, DURATION)),
    "late_audio.ts": Clip(audio=(0.5, DURATION)),
}  # fmt: skip


def judged_video(video: media.Video, number: int = 0) -> None:
    """The frames show the hits of that scene at their times, to half a frame of the model."""
    frames = video.frames
    assert frames.shape == (8, 3, 64, 64)
    read = judge_video(frames[None])
    assert int(read["beats"][0]) == beats_at(number) % 3 and int(read["shape"][0]) == 3 and int(read["colour"][0]) == 4
    times = read["times"][0]
    assert (times[: len(hits(number))] - hits(number)).abs().max() < 0.5 / RATE


def judged_audio(samples: torch.Tensor, rate: int, number: int = 0, since: float = 0.0) -> None:
    times = judge_audio(samples[None], rate)["times"][0]
    expected = hits(number)
    expected = expected[expected > since]
    assert (times[: len(expected)] - expected).abs().max() < 0.03 and times[len(expected) :].isnan().all()


def square(pixels: torch.Tensor) -> torch.Tensor:
    return media.fill(pixels[None], (64, 64))[0]


@pytest.mark.parametrize("name", CLIPS)
def test_video_and_its_audio_at_their_times(tmp_path, name):
    clip = CLIPS[name]
    path = write(tmp_path / name, clip)
    judged_video(media.read_video(path, 8, rate=RATE, fit=square))
    with open(path, "rb") as file:
        opened = media.read_video(file, 8, rate=RATE, fit=square)
    assert torch.equal(opened.frames, media.read_video(path, 8, rate=RATE, fit=square).frames)
    if clip.audio is None:
        with pytest.raises(CoDiError, match="video streams but no audio"):
            media.read_audio(path)
        return
    audio = media.read_audio(path, rate=16000, span=media.Span(0, DURATION))
    assert abs(len(audio.samples) / 16000 - DURATION) < 0.1
    judged_audio(audio.samples, 16000, since=clip.audio[0])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "ts", "avi"])
def test_a_span_of_a_long_video(tmp_path, suffix):
    codecs = {"webm": ("libvpx-vp9", "libopus"), "avi": ("mpeg4", "mp3")}.get(suffix, ("libx264", "aac"))
    options = {"qscale": "2", "b": "2000000"} if suffix == "avi" else {"g": "50"}
    seconds = 10 * DURATION
    clip = Clip(seconds, rate=25.0, audio=(0.0, seconds), codec=codecs[0], audio_codec=codecs[1], audio_rate=48000, options=options)
    path = write(tmp_path / f"long.{suffix}", clip)
    assert media.video_seconds(path) == pytest.approx(seconds, abs=0.1) and media.audio_seconds(path) == pytest.approx(seconds, abs=0.2)
    for number in (0, 3, 8):
        span = media.Span(number * DURATION, DURATION)
        judged_video(media.read_video(path, 8, rate=RATE, span=span, fit=square), number)
        judged_audio(media.read_audio(path, span=span).samples, 48000, number)
    spread = media.read_video(path, 4)
    linear = [media.read_video(path, 1, rate=1000.0, span=media.Span(t)).frames[0] for t in (0.125 * seconds, 0.375 * seconds)]
    assert len(spread.frames) == 4 and torch.equal(spread.frames[0], linear[0]) and torch.equal(spread.frames[1], linear[1])
    with pytest.raises(CoDiError, match="start 20 s lies behind its end"):
        media.read_video(path, 8, rate=RATE, span=media.Span(20))
    with pytest.raises(CoDiError, match="no audio at 20 s"):
        media.read_audio(path, span=media.Span(20))


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_follows_what_is_kept():
    """Ten seconds of 1280 x 720, of which all frames would take 3.3 GB."""
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "media_memory.py"
    done = subprocess.run([sys.executable, str(script), "--only", "720p.mp4", "--ceiling", "300"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("720p.mp4") == 2, done.stdout + done.stderr

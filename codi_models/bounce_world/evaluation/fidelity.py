"""How well media are made, apart from what they show: outlines, paths and spectra against the world's own."""

from __future__ import annotations

import torch
from torch import Tensor

from ...autoencoders.mel import LogMel
from ...config import MelConfig
from .. import judge
from ..judge_image import measure_objects
from ..render import coverage, render_audio
from ..world import IMAGE_SIZE, SAMPLE_RATE, SAMPLES, Nuisance, Scenes, frame_times, height

HEARD = 60.0  # dB below the loudest bin, beyond which spectra are not compared
_SHIFTS = torch.tensor([[0.0, 0.0, 0.0], *(sign * step for step in torch.eye(3) for sign in (-0.25, 0.25))])  # px of x, y and radius
_ROUNDS = 6


def outline_iou(pixels: Tensor) -> Tensor:
    """Images (n, 3, 64, 64) in 0..1 -> intersection over union of the object and the ideal shape that fits it best, (n,); 0 where no
    shape is read. Both are soft: the object is how far each pixel lies from the background's colour towards its own."""
    seen = measure_objects(pixels)
    colour = (seen.rgb - seen.grey[:, None])[:, :, None, None]  # (n, 3, 1, 1)
    along = ((pixels - seen.grey.view(-1, 1, 1, 1)) * colour).sum(1)
    strength = (along / colour.square().sum(1).clamp(min=1e-6)).clamp(0, 1)  # (n, 64, 64)
    centres = torch.arange(IMAGE_SIZE, device=pixels.device) + 0.5
    near = (centres[None, :, None] - seen.y[:, None, None]).abs() < 16
    strength = strength * (near & ((centres[None, None] - seen.x[:, None, None]).abs() < 16) & (centres[None, :, None] < 55.5))
    shape = seen.shape.clamp(min=0).view(-1, 1, 1)

    def overlap(where: Tensor) -> Tensor:
        x, y, radius = where.view(-1, 3, 1, 1).unbind(1)
        ideal = coverage(shape, centres.view(1, 1, -1) - x, centres.view(1, -1, 1) - y, radius)
        return torch.minimum(strength, ideal).sum((1, 2)) / torch.maximum(strength, ideal).sum((1, 2)).clamp(min=1e-6)

    where, best = torch.stack([seen.x, seen.y, seen.radius], dim=1), torch.zeros(len(pixels), device=pixels.device)
    for scale in [1.0] * _ROUNDS + [0.4] * _ROUNDS:  # coordinate by coordinate, from the judge's own fit
        found = torch.stack([overlap(where + scale * shift.to(where)) for shift in _SHIFTS])  # (7, n)
        best, pick = found.max(0)
        where = where + scale * _SHIFTS.to(where)[pick]
    return torch.where(seen.present & (seen.shape >= 0), best, 0.0)


def track_error(frames: Tensor) -> Tensor:
    """Videos (n, F, 3, 64, 64) -> root mean square distance in px of the object's path from the bounce that it is read as, (n,); NaN
    where no beats are read."""
    n, count = frames.shape[:2]
    seen = measure_objects(frames.flatten(0, 1))
    y, radius = seen.y.view(n, count), seen.radius.view(n, count).mean(1, keepdim=True)
    beats = judge.judge_video(frames)["beats"]
    ideal = 55 - radius - height(beats.clamp(min=0), frame_times(count).expand(n, -1)) * (51 - 2 * radius)
    x = seen.x.view(n, count)
    square = (y - ideal).square() + (x - x.mean(1, keepdim=True)).square()
    return torch.where(beats >= 0, square.mean(1).sqrt(), torch.nan)


def spectral_distance(wave: Tensor, sample_rate: int) -> Tensor:
    """Audio (n, N) -> mean distance in dB of its log-mel from that of the world's own sound of the same scene, loudness and tuning, over
    the bins in which either is at most 60 dB below the loudest, (n,); NaN where no scene is read."""
    read = judge.judge_audio(wave, sample_rate, nuisance=True)
    known = (read["shape"] >= 0) & (read["colour"] >= 0) & (read["beats"] >= 0)
    scenes = Scenes(*(read[name].clamp(min=0) for name in ("shape", "colour", "beats")))
    blank = torch.zeros(len(wave))
    nuisance = Nuisance(
        grey=blank, x=blank, radius=blank, time=blank, detune=read["detune"].nan_to_num(1.0), peak=read["peak"],
        noise_seed=torch.arange(len(wave)),
    )  # fmt: skip
    mel = LogMel(MelConfig(frames=128, normalize=False))
    made, ideal = (mel(w)[:, 0] * (20 / 2.302585) for w in (_at(wave, sample_rate), render_audio(scenes, nuisance)))  # dB
    loudest = torch.maximum(made.amax((1, 2)), ideal.amax((1, 2)))[:, None, None] - HEARD
    made, ideal = torch.maximum(made, loudest), torch.maximum(ideal, loudest)
    heard = (made > loudest) | (ideal > loudest)
    distance = ((made - ideal).abs() * heard).sum((1, 2)) / heard.sum((1, 2)).clamp(min=1)
    return torch.where(known, distance, torch.nan)


def _at(wave: Tensor, sample_rate: int) -> Tensor:
    from ...encoders.preprocess import resample

    wave = resample(wave.float(), sample_rate, SAMPLE_RATE)[:, :SAMPLES]
    return torch.nn.functional.pad(wave, (0, SAMPLES - wave.shape[1]))

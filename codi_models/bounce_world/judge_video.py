"""Reads beats and hit times from the path of the object in a clip of Bounce World. Nothing is learned."""

from __future__ import annotations

import torch
from torch import Tensor

from .world import BEATS, DURATION, frame_times, height

MOST_OFF_BEAT = 0.1  # seconds by which all hits of a clip may come early or late
LEAST_FRAMES = 4
LEAST_BOUNCE = 10.0  # px between floor and top
LARGEST_ERROR = 4.0  # px, root mean square, between the path of an object and the bounce it is read as


def read_bounce(y: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Path of an object over a clip, y (n, F) px downwards -> beats index (n,), -1 where it does not bounce, hit times (n, 3) in seconds.

    Each number of beats is fitted as y = a - b h(t - d), with a, b free and the delay d within 0.1 s; the best fit names the
    beats and when the hits were.
    """
    n, frames = y.shape
    device = y.device
    if frames < LEAST_FRAMES:
        return torch.full((n,), -1, device=device), torch.full((n, len(BEATS)), torch.nan, device=device)
    time = frame_times(frames, device=device)
    delays = torch.linspace(-MOST_OFF_BEAT, MOST_OFF_BEAT, 41, device=device)
    beats = torch.arange(len(BEATS), device=device).repeat_interleave(len(delays))
    up = height(beats, (time - delays.unsqueeze(1)).repeat(len(BEATS), 1))  # (3 * 41, F)
    weight = present.float()  # (n, F)
    total = weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
    y = y - (y * weight).sum(dim=1, keepdim=True) / total
    mean_up = weight @ up.T / total  # (n, 3 * 41)
    covariance = (weight * y) @ up.T / total
    variance = (weight @ up.square().T / total - mean_up.square()).clamp(min=1e-6)
    bounce = -covariance / variance  # px, b
    spread = (weight * y.square()).sum(dim=1, keepdim=True) / total
    error = (spread - covariance.square() / variance).clamp(min=0).sqrt()  # (n, 3 * 41) px
    # Eight frames of one beat fit a range of delays almost as well: between equals the clip's own time wins.
    error = torch.where(bounce > LEAST_BOUNCE, error + delays.abs().repeat(len(BEATS)), torch.inf)
    least, index = error.min(dim=1)
    delay = delays[index % len(delays)]
    read = torch.where((least < LARGEST_ERROR) & (present.sum(dim=1) >= frames / 2), index // len(delays), -1)
    count = (read + 1).unsqueeze(1)
    k = torch.arange(len(BEATS), device=device)
    hits = torch.where(k < count, (k + 0.5) * DURATION / count + delay.unsqueeze(1), torch.nan)
    return read, hits

"""Pixel pipelines in front of the networks: CLIP's image processor, pictures and clips at the working size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..encoders import preprocess
from ..errors import CoDiError
from .check import Check
from .networks import Networks

STEP = 1 / 255


def check_clip_pixels(check: Check, networks: Networks) -> None:
    """Pictures in -1..1, the made-up picture of the notes, and the constant of an all-zero one, as CLIP pixels."""
    fixture, config = check.fixture, check.fixture.setting("config")
    size = int(config["size"])
    for name, ours in (("mean", preprocess.MEAN), ("std", preprocess.STD)):
        if name in config:
            check.fact(f"config/{name}", list(config[name]) == list(ours), f"{config[name]} given, {list(ours)} ours")
    if config.get("crop", size) != size:
        raise CoDiError(f"crop {config['crop']} of size {size}: ours crops to the size itself")
    step = STEP / min(preprocess.STD)
    for label, picture in fixture.labels("in/image_minus1_1"):
        check.pixels(f"out/pixels{label}", preprocess.clip_image(picture / 2 + 0.5, size), step=step)
    for name in check.open("out/pixels_real"):
        pixels = preprocess.clip_image(waves(fixture.info) / 2 + 0.5, size)
        every = int(name.rpartition("every")[2] or 1) if "every" in name else 1
        check.pixels(name, pixels[..., ::every, ::every], step=step)
    for name in check.open("out/pixels_uncond_constant"):
        grey = preprocess.clip_image(torch.full((1, 3, 8, 8), 0.5), size)
        level = grey[0, :, 0, 0]
        check.fact(f"{name}/constant", bool((grey == level.view(1, 3, 1, 1)).all()), "a grey picture stays one colour")
        check.pixels(name, level, step=0.0)


def waves(info: Mapping[str, Any]) -> Tensor:
    """The picture of the notes: channel i is 0.9 sin(7x + i) cos(5y(i + 1)), x along the width, (1, 3, H, W) in -1..1."""
    size = re.search(r"(\d+)x(\d+) synthetic", str(info.get("notes", "")))
    width, height = (int(size[1]), int(size[2])) if size else (512, 512)
    x, y = torch.linspace(0, 1, width)[None], torch.linspace(0, 1, height)[:, None]
    return torch.stack([0.9 * torch.sin(7 * x + i) * torch.cos(5 * y * (i + 1)) for i in range(3)])[None]


def check_vision_pixels(check: Check, networks: Networks) -> None:
    """Pictures through Pillow's bicubic filter, clips through torch's with and without antialiasing, in -1..1."""
    fixture, config = check.fixture, check.fixture.setting("config")
    for label, picture in fixture.labels("in/image_uint8_h_w_c"):
        pixels = preprocess.resize_image(picture.permute(2, 0, 1)[None].float() / 255, int(config["image_size_image"]))[0] * 2 - 1
        check.pixels(f"out/image_not_flipped{label}", pixels, step=2 * STEP)
        check.pixels(f"out/image_flipped{label}", pixels.flip(-1), step=2 * STEP)
        check.pixels(f"out/image{label}", pixels, step=2 * STEP)
    for label, clip in fixture.labels("in/video_uint8_f_h_w_c"):
        frames = clip.permute(0, 3, 1, 2).float() / 255
        for antialias, name in ((True, "on"), (False, "off")):
            pixels = preprocess.resize_clip(frames, int(config["image_size_video"]), antialias=antialias) * 2 - 1
            check.pixels(f"out/video_antialias_{name}{label}", pixels.transpose(0, 1), step=2 * STEP)  # (C, F, H, W)

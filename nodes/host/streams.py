"""One picture of all streams while they are sampled: image, frames, spectrogram, and the caption so far."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import comfy.model_management as mm
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...codi_models.figures import INK, PAPER, clipped, draw_spectrogram, font, from_image, to_image
from ...codi_models.latents import decode_text
from .handle import CoDiHandle
from .playing import play
from .preview import apply, colour_map, loudness_map

WIDTH, TILE, GAP = 384, 124, 4  # pixels
_MOST_FRAMES, _MOST_PLAYED = 12, 32
_BETWEEN_CLIPS = 0.1  # seconds, as often as the host shows pictures
_SHARE = 0.1  # of the time may go into captions


class Streams:
    """Draws what a sampler has so far. The maps of the pictures and sounds are fitted before sampling starts (`prepare`)."""

    def __init__(self, codi: CoDiHandle) -> None:
        self.codi = codi
        self._caption, self._next_caption, self._next_clip = "", 0.0, 0.0

    def prepare(self, outputs: tuple[str, ...]) -> None:
        """Fit what the outputs need: loading an autoencoder is safe only while no denoiser is running."""
        if {"image", "video"} & set(outputs):
            colour_map(self.codi)
        if "audio" in outputs:
            loudness_map(self.codi)
        self._caption, self._next_caption, self._next_clip = "", 0.0, 0.0

    def draw(self, parts: Mapping[str, Tensor]) -> Tensor:
        """First item of each part, in diffusion space, with a batch axis -> picture (1, 3, H, W) in -1..1, float32 on the CPU."""
        tiles = []
        if "image" in parts:
            tiles.append(self._picture(parts["image"][0]))
        if "video" in parts:
            tiles.append(self._frames(parts["video"][0]))
            self._play(parts["video"][0])
        if "audio" in parts:
            tiles.append(self._sound(parts["audio"][0], TILE if len(tiles) else WIDTH // 2))
        rows = [_row(tiles)] if tiles else []
        if "text" in parts:
            rows.append(_line(self._text(parts["text"][:1])))
        sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), PAPER)
        top = 0
        for row in rows:
            sheet.paste(row, (0, top))
            top += row.height
        return to_image(sheet).movedim(-1, 0)[None] * 2 - 1

    def _picture(self, z: Tensor, height: int = TILE) -> Image.Image:
        """(C, h, w) -> picture of that height."""
        pixels = from_image((apply(colour_map(self.codi), z) + 1) / 2)
        return pixels.resize((max(1, round(height * pixels.width / pixels.height)), height), Image.Resampling.BILINEAR)

    def _frames(self, z: Tensor) -> Image.Image:
        """(C, F, h, w) -> frames in two rows, evenly picked where there are many."""
        picked = _picked(z.shape[1], _MOST_FRAMES)
        columns = math.ceil(len(picked) / 2)
        height = TILE if len(picked) == 1 else (TILE - GAP) // 2
        frames = [self._picture(z[:, i], height) for i in picked]
        wide = frames[0].width + GAP
        sheet = Image.new("RGB", (columns * wide - GAP, TILE), PAPER)
        for i, frame in enumerate(frames):
            sheet.paste(frame, (i % columns * wide, i // columns * (height + GAP)))
        return sheet

    def _play(self, z: Tensor) -> None:
        """(C, F, h, w) to the browser as a clip that plays."""
        if time.monotonic() < self._next_clip:
            return
        picked = _picked(z.shape[1], _MOST_PLAYED)
        rate = self.codi.config.sampling.frame_rate * len(picked) / z.shape[1]
        play([self._picture(z[:, i]) for i in picked], rate)
        self._next_clip = time.monotonic() + _BETWEEN_CLIPS

    def _sound(self, z: Tensor, width: int) -> Image.Image:
        """(C, t, m) -> coarse spectrogram."""
        return draw_spectrogram(apply(loudness_map(self.codi), z).squeeze(-1), (width, TILE))

    def _text(self, z: Tensor) -> str:
        """Caption of (1, D, 1), decoded only as often as it costs little, and not where it would push a denoiser out of memory."""
        start = time.monotonic()
        if start >= self._next_caption and self._fits():
            with torch.inference_mode():
                self._caption = decode_text(self.codi.model, z.squeeze(-1).to(self.codi.model.place("text_autoencoder")).float(), [0])[0]
            end = time.monotonic()
            self._next_caption = end + (end - start) * (1 / _SHARE - 1)
        return self._caption

    def _fits(self) -> bool:
        """Whether the text autoencoder can be loaded without unloading what is being sampled."""
        device = self.codi.model.place("text_autoencoder")
        if device.type == "cpu" or "text_autoencoder" in self.codi.model.loaded and not self._moved(device):
            return True
        return mm.get_free_memory(device) > mm.minimum_inference_memory() + 2 * self.codi.model.path("text_autoencoder").stat().st_size

    def _moved(self, device: torch.device) -> bool:
        """Whether using the text autoencoder means to move it to the device first."""
        return next(self.codi.model.loaded["text_autoencoder"].parameters()).device != device


def _picked(frames: int, most: int) -> list[int]:
    """Frames evenly picked, all where there are few."""
    count = min(frames, most)
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]


def _row(tiles: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(WIDTH, sum(t.width + GAP for t in tiles) + GAP), TILE + 2 * GAP), PAPER)
    left = GAP
    for tile in tiles:
        sheet.paste(tile, (left, GAP))
        left += tile.width + GAP
    return sheet


def _line(text: str) -> Image.Image:
    sheet = Image.new("RGB", (WIDTH, 30), PAPER)
    ImageDraw.Draw(sheet).text((8, 15), clipped(text, WIDTH - 16, 16), INK, font(16), anchor="lm")
    return sheet

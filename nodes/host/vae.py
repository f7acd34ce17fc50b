"""VAE objects for the host's own encode and decode nodes: pictures and clips, or sound."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from torch import Tensor

from ...codi_models.errors import CoDiError
from ...codi_models.latents import BINS_AT_ONCE, PIXELS_AT_ONCE, decode_audio, decode_pixels
from ...codi_models.libraries import stored_state
from ...codi_models.media import rgb
from .frames import working
from .handle import CoDiHandle
from .parts import check_room, mel_frames
from .said import say

TILE, OVERLAP = 64, 16  # latent elements
WHOLE = 2048 * 2048  # pixels of a picture that is taken in one piece: attention in the autoencoder grows with their square


class ImageVAE:
    """What the host's VAE Decode, VAE Encode and their tiled variants ask of a picture VAE."""

    def __init__(self, codi: CoDiHandle) -> None:
        self.codi = codi

    @torch.inference_mode()
    def decode(self, z: Any) -> Tensor:
        """(B, C, h, w) -> (B, H, W, 3); (B, C, F, h, w) -> (B, F, H, W, 3); values 0..1. Of a joint latent, its first part.

        Where a picture has more than WHOLE pixels, or memory is short for it, it is decoded in tiles, as the host's VAEs do. May be
        interrupted between pictures and tiles. Raises CoDiError for pictures that would not fit into the machine's memory."""
        z = self._first(z)
        height, width = (side * self.codi.config.image_autoencoder.downsampling for side in z.shape[-2:])
        count = len(z) * (1 if z.ndim == 4 else z.shape[2])
        check_room(count * height * width * 3, f"decoding {count} pictures of {width} x {height} pixels")
        model, device = self.codi.model, self.codi.model.place("image_autoencoder")
        if height * width > WHOLE:
            say(f"{width} x {height} pixels are decoded in tiles")
            return self.decode_tiled(z)
        if min(z.shape[-2:]) > TILE and model.activations("image_autoencoder", height * width) > mm.get_free_memory(device):
            say(f"memory is short for {width} x {height} pixels: they are decoded in tiles")
            return self.decode_tiled(z)
        try:
            return self._decode(z)
        except torch.cuda.OutOfMemoryError:
            if max(z.shape[-2:]) <= TILE:
                raise
        say(f"memory ran out at {width} x {height} pixels: they are decoded in tiles")
        mm.soft_empty_cache()
        return self.decode_tiled(z)

    def _first(self, z: Any) -> Tensor:
        z = z.unbind()[0] if z.is_nested else z
        if z.ndim not in (4, 5) or z.shape[1] != self.codi.config.image_autoencoder.latent_channels:
            raise CoDiError(f"a latent of shape {tuple(z.shape)} is no image or video of {self.codi.name}")
        return z

    def _decode(self, z: Tensor) -> Tensor:
        z = z.to(self.codi.model.place("image_autoencoder"), torch.float32) * self.codi.config.image_autoencoder.scale
        scaled_by = self.codi.config.image_autoencoder.downsampling
        self._reserve(z.shape[-2] * scaled_by, z.shape[-1] * scaled_by)
        pixels = decode_pixels(self.codi.model, z, working())  # (B, 3, H, W) or (B, F, 3, H, W)
        return pixels.movedim(-3, -1).to(mm.intermediate_device())

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 1, 3 or 4) 0..1 -> (B, C, h, w), one row a frame; of clips (B, F, H, W, 3) too. Sides that are no multiple
        of the compression lose their margins, as with the host's own VAEs. Pictures of more than WHOLE pixels are encoded in tiles.

        Raises CoDiError for other shapes, pictures smaller than one latent element, NaN and infinite values."""
        pixels = pixels.flatten(0, -4) if pixels.ndim > 4 else pixels
        unit = self.codi.config.image_autoencoder.downsampling
        if pixels.ndim != 4 or not len(pixels) or min(pixels.shape[1:3]) < unit:
            raise CoDiError(
                f"an IMAGE of shape {tuple(pixels.shape)} cannot be encoded: give (batch, height, width, 3) of {unit} x {unit} or more"
            )
        height, width = (side // unit * unit for side in pixels.shape[1:3])
        top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        pictures = pixels[:, top : top + height, left : left + width].split(self._reserve(height, width))
        model = self.codi.model
        device, dtype = model.place("image_autoencoder"), model.precision("image_autoencoder")
        autoencoder = model.image_autoencoder

        def encoded(part: Tensor) -> Tensor:
            mm.throw_exception_if_processing_interrupted()
            return autoencoder.encode((part.to(device) * 2 - 1).to(dtype)).float()

        parts = (rgb(part.movedim(-1, 1).float()) for part in pictures)  # one after another: copies of all may not fit
        if height * width <= WHOLE:
            return torch.cat([encoded(part) for part in parts]).to(mm.intermediate_device())
        say(f"{width} x {height} pixels are encoded in tiles")
        tile, overlap, place = TILE * unit, OVERLAP * unit, mm.intermediate_device()
        return torch.cat([
            comfy.utils.tiled_scale(part, encoded, tile, tile, overlap, 1 / unit, self.latent_channels, place) for part in parts
        ])  # fmt: skip

    def _reserve(self, height: int, width: int) -> int:
        """Room for as many pictures as are worked on at once, and their number."""
        self.codi.model.reserve("image_autoencoder", max(PIXELS_AT_ONCE, height * width))
        return max(1, PIXELS_AT_ONCE // (height * width))

    @torch.inference_mode()
    def decode_tiled(self, z: Any, tile_x: int = TILE, tile_y: int = TILE, overlap: int = OVERLAP, **_: Any) -> Tensor:
        """As `decode`, in tiles of so many latent elements that overlap by some, picture by picture; a clip's frames are pictures.

        Norms and attention see a tile instead of the picture, so that colours may differ a little from those of `decode`."""
        z = self._first(z)
        unit = self.codi.config.image_autoencoder.downsampling
        pictures = z if z.ndim == 4 else z.transpose(1, 2).flatten(0, 1)  # (B*F, C, h, w)
        tile = [max(1, min(tile_y, z.shape[-2])), max(1, min(tile_x, z.shape[-1]))]
        overlap = max(0, min(overlap, min(tile) // 2))
        pixels = comfy.utils.tiled_scale(
            pictures, lambda part: self._decode(part).movedim(-1, 1), tile[1], tile[0], overlap, unit, 3, mm.intermediate_device()
        ).movedim(1, -1)
        return pixels.clamp(0, 1) if z.ndim == 4 else pixels.unflatten(0, (len(z), -1)).clamp(0, 1)

    def encode_tiled(self, pixels: Tensor, **_: Any) -> Tensor:
        """As `encode`."""
        return self.encode(pixels)

    def spacial_compression_decode(self) -> int:
        """Pixels per latent element."""
        return self.codi.config.image_autoencoder.downsampling

    spacial_compression_encode = spacial_compression_decode

    @property
    def downscale_ratio(self) -> int:
        """Pixels per latent element, as hosts before 0.10 ask for it."""
        return self.spacial_compression_decode()

    upscale_ratio = downscale_ratio

    @property
    def latent_channels(self) -> int:
        """Channels of a picture's latent."""
        return self.codi.config.image_autoencoder.latent_channels

    def throw_exception_if_invalid(self) -> None:
        """The host asks before it encodes; this VAE was checked when it was opened."""

    def temporal_compression_decode(self) -> None:
        """Frames are not compressed in time."""

    def get_sd(self) -> dict[str, Tensor]:
        """Weights by the keys of the component's file, as the host's Save VAE asks for them."""
        return stored_state(self.codi.model.image_autoencoder)


class AudioVAE:
    """What the host's VAE Decode Audio and VAE Encode Audio ask: mel autoencoder and vocoder in one."""

    def __init__(self, codi: CoDiHandle) -> None:
        self.codi = codi
        self.audio_sample_rate = codi.config.mel.sample_rate

    @torch.inference_mode()
    def decode(self, z: Any) -> Tensor:
        """(B, C, t, m) -> (B, samples, 1). Of a joint latent, its last part."""
        z = z.unbind()[-1] if z.is_nested else z
        if z.ndim != 4 or z.shape[1] != self.codi.config.audio_autoencoder.latent_channels:
            raise CoDiError(f"a latent of shape {tuple(z.shape)} is no audio of {self.codi.name}")
        for name in ("audio_autoencoder", "vocoder"):
            self.codi.model.reserve(name, self._bins(z.shape[0], z.shape[2] * self.codi.config.audio_autoencoder.downsampling))
        z = z.to(self.codi.model.place("audio_autoencoder"), torch.float32) * self.codi.config.audio_autoencoder.scale
        return decode_audio(self.codi.model, z, working()).unsqueeze(-1).to(mm.intermediate_device())

    @torch.inference_mode()
    def encode(self, samples: Tensor) -> Tensor:
        """(B, samples, channels) at `audio_sample_rate` -> (B, C, t, m)."""
        sound = samples.mean(-1).to(self.codi.model.place("audio_autoencoder"), torch.float32)
        frames = mel_frames(self.codi.config, sound.shape[1] / self.audio_sample_rate)
        bins = self._bins(sound.shape[0], frames)
        self.codi.model.reserve("audio_autoencoder", bins)
        autoencoder, at_once = self.codi.model.audio_autoencoder, max(1, bins // (frames * self.codi.config.mel.n_mels))
        parts = []
        for part in sound.split(at_once):
            mm.throw_exception_if_processing_interrupted()
            parts.append(autoencoder.encode(part, frames=frames))
        return torch.cat(parts).to(mm.intermediate_device())

    def decode_tiled(self, z: Any, **_: Any) -> Tensor:
        """As `decode`: these sounds are short enough to be decoded whole."""
        return self.decode(z)

    def throw_exception_if_invalid(self) -> None:
        """The host asks before it encodes; this VAE was checked when it was opened."""

    def get_sd(self) -> dict[str, Tensor]:
        """Raises CoDiError: the host's Save VAE makes a file of one network, and this is two."""
        raise CoDiError("this VAE is an autoencoder and a vocoder, which no file of one network holds: copy the model folder instead")

    def _bins(self, batch: int, frames: int) -> int:
        """Places of the log-mels that are worked on at once."""
        one = frames * self.codi.config.mel.n_mels
        return min(batch * one, max(one, BINS_AT_ONCE))

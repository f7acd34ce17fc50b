"""The modalities of CoDi, one row each. Whoever needs to know what there is for a modality asks here."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from .config import CoDiConfig
from .errors import CoDiError


@dataclass(frozen=True)
class Size:
    """How large one output is: pixels, frames of video, frames of the log-mel spectrogram. What a modality has no use for is ignored."""

    height: int = 0
    width: int = 0
    frames: int = 0
    mel_frames: int = 0


@dataclass(frozen=True)
class Modality:
    """Components of one modality, and what its latents look like."""

    encoder: str  # reads prompts of this kind
    denoiser: str
    autoencoder: str  # media to latents
    decoders: tuple[str, ...]  # latents to media
    suffixes: tuple[str, ...]  # of files that hold it
    colour: tuple[int, int, int]  # in figures: red, green, blue, 0..255
    axes: Callable[[CoDiConfig], tuple[int | None, ...]]  # of one latent without batch axis; None where its size is free
    free: Callable[[CoDiConfig, Size], tuple[int, ...]]  # sizes of the free axes

    def latent_shape(self, config: CoDiConfig, size: Size) -> tuple[int, ...]:
        """Shape of one latent: video (C, F, h, w), image (C, h, w), text (D,), audio (C, t, m)."""
        free = iter(self.free(config, size))
        return tuple(next(free) if axis is None else axis for axis in self.axes(config))

    def is_latent(self, shape: Sequence[int], config: CoDiConfig) -> bool:
        """Whether this is the shape of one latent of the modality, without batch axis."""
        axes = self.axes(config)
        return len(axes) == len(shape) and all(axis in (None, size) for axis, size in zip(axes, shape, strict=True))

    def latent_scale(self, config: CoDiConfig) -> float:
        """Factor from the autoencoder's latent space to diffusion space."""
        return getattr(config, self.autoencoder).scale


def _pixels(config: CoDiConfig, size: Size) -> tuple[int, int]:
    factor = config.image_autoencoder.downsampling
    return size.height // factor, size.width // factor


MODALITIES: dict[str, Modality] = {
    "video": Modality(
        "clip", "vision_denoiser", "image_autoencoder", ("image_autoencoder",),
        ("mp4", "webm", "mov", "mkv", "avi", "gif"), (91, 158, 245),
        lambda config: (config.vision_denoiser.in_channels, None, None, None),
        lambda config, size: (size.frames, *_pixels(config, size)),
    ),
    "image": Modality(
        "clip", "vision_denoiser", "image_autoencoder", ("image_autoencoder",),
        ("png", "jpg", "jpeg", "webp", "bmp"), (98, 190, 120),
        lambda config: (config.vision_denoiser.in_channels, None, None),
        _pixels,
    ),
    "text": Modality(
        "clip", "text_denoiser", "text_autoencoder", ("text_autoencoder",),
        ("txt", "caption"), (238, 197, 87),
        lambda config: (config.text_denoiser.in_channels,),
        lambda config, size: (),
    ),
    "audio": Modality(
        "clap", "audio_denoiser", "audio_autoencoder", ("audio_autoencoder", "vocoder"),
        ("wav", "mp3", "flac", "ogg", "m4a", "aac"), (235, 116, 101),
        lambda config: (config.audio_denoiser.in_channels, None, config.mel.n_mels // config.audio_autoencoder.downsampling),
        lambda config, size: (size.mel_frames // config.audio_autoencoder.downsampling,),
    ),
}  # fmt: skip
"""In the order of joint latents everywhere: visual first and audio last, as ComfyUI's own joint latents have it.
Image and video share one denoiser (paper section 3.2); an image bypasses its temporal modules."""


def snr_scale(config: CoDiConfig, modality: str) -> float:
    """Factor s on the latents of a modality while they are sampled, x = s x0 + sigma n: it shifts the log SNR by 2 ln s."""
    return math.exp(config.diffusion.shifts.get(modality, 0.0) / 2)


def ordered(names: Collection[str]) -> tuple[str, ...]:
    """Modalities in the order of the table. Raises CoDiError for unknown ones, and for none."""
    if not isinstance(names, Collection):
        raise CoDiError(f"{names!r} names no outputs: give any of {', '.join(MODALITIES)}")
    names = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in names if not isinstance(name, str) or name not in MODALITIES]:
        raise CoDiError(f"unknown output {unknown[0]!r:.80}: give any of {', '.join(MODALITIES)}")
    if not names:
        raise CoDiError(f"no output was asked for: give any of {', '.join(MODALITIES)}")
    return tuple(name for name in MODALITIES if name in names)


def denoisers_of(modalities: Iterable[str]) -> list[str]:
    """Components that denoise these modalities, each once."""
    return list(dict.fromkeys(MODALITIES[name].denoiser for name in modalities))


def modality_of(shape: Sequence[int], config: CoDiConfig) -> str | None:
    """Modality of one latent of this shape, without batch axis; None where it is none of this model's."""
    return next((name for name, row in MODALITIES.items() if row.is_latent(shape, config)), None)

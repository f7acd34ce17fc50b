"""What a run is asked for: outputs, sizes, sampling. Filled from the model's own defaults and checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .conditioning import MIX_METHODS
from .config import DENOISER_OF, MODALITIES, CoDiConfig
from .coupling import WIRINGS
from .diffusion import SAMPLERS
from .errors import CoDiError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run. Sizes in pixels; None anywhere in `settled` means the model's default."""

    outputs: tuple[str, ...]  # in the order of MODALITIES
    seed: int
    count: int
    steps: int
    cfg: float
    sampler: str
    wiring: str
    alignment: float
    alignment_guidance: float
    mix: str
    frames: int
    image_size: int
    video_size: int
    batch_size: int

    @staticmethod
    def settled(
        config: CoDiConfig,
        outputs: Sequence[str],
        *,
        seed: int = 0,
        count: int = 1,
        steps: int | None = None,
        cfg: float | None = None,
        sampler: str | None = None,
        wiring: str | None = None,
        alignment: float | None = None,
        alignment_guidance: float | None = None,
        mix: str = "linear",
        frames: int | None = None,
        size: int | None = None,
        batch_size: int | None = None,
    ) -> Settings:
        """Defaults filled in from `config.sampling`, everything checked. `size` is the edge of picture and clip alike.

        Raises CoDiError that names the value and what is accepted."""
        usual = config.sampling
        settings = Settings(
            outputs=_outputs(outputs),
            seed=seed,
            count=count,
            steps=usual.steps if steps is None else steps,
            cfg=usual.cfg if cfg is None else float(cfg),
            sampler=usual.sampler if sampler is None else sampler,
            wiring=usual.wiring if wiring is None else wiring,
            alignment=usual.alignment if alignment is None else float(alignment),
            alignment_guidance=usual.alignment_guidance if alignment_guidance is None else float(alignment_guidance),
            mix=mix,
            frames=usual.frames if frames is None else frames,
            image_size=usual.image_size if size is None else size,
            video_size=usual.video_size if size is None else size,
            batch_size=1 if batch_size is None else batch_size,
        )
        settings._check(config)
        if batch_size is None:
            places = sum(math.prod(shape[1:]) for shape in latent_shapes(config, settings).values())
            return replace(settings, batch_size=max(1, min(32, _PLACES_AT_ONCE // places)))
        return settings

    def _check(self, config: CoDiConfig) -> None:
        unit, most = picture_unit(config), config.vision_denoiser.max_frames
        checks = [
            (0 <= self.seed and self.seed + self.count <= 1 << 63, f"seed {self.seed} must be 0 or more and below 2**63"),
            (self.count >= 1, f"count {self.count} must be 1 or more"),
            (1 <= self.steps <= 1000, f"steps {self.steps} must be between 1 and 1000"),
            (self.batch_size >= 1, f"batch size {self.batch_size} must be 1 or more"),
            (1 <= self.frames <= most, f"frames {self.frames} must be between 1 and {most}, the length of this model's table of positions"),
            (self.sampler in SAMPLERS, f"unknown sampler {self.sampler!r}: give one of {', '.join(SAMPLERS)}"),
            (self.sampler != "ddim" or self.steps <= 500, f"steps {self.steps}: the ddim sampler takes 1 to 500"),
            (self.wiring in WIRINGS, f"unknown wiring {self.wiring!r}: give one of {', '.join(WIRINGS)}"),
            (self.mix in MIX_METHODS, f"unknown mixing method {self.mix!r}: give one of {', '.join(MIX_METHODS)}"),
        ]
        for name in ("cfg", "alignment", "alignment_guidance"):
            checks.append((math.isfinite(getattr(self, name)), f"{name} {getattr(self, name)} must be a finite number"))
        for size in {self.image_size, self.video_size}:
            near = max(unit, round(size / unit) * unit)
            checks.append((size > 0 and size % unit == 0, f"size {size} must be a multiple of {unit} pixels: the nearest is {near}"))
        for good, message in checks:
            if not good:
                raise CoDiError(message)


_PLACES_AT_ONCE = 1 << 15  # latent positions denoised in one batch, all outputs together


def picture_unit(config: CoDiConfig) -> int:
    """Pixels that sizes are multiples of: the autoencoder's factor times the UNet's."""
    levels = len(config.picture_autoencoder.channel_mult) + len(config.vision_denoiser.channel_mult)
    return 2 ** (levels - 2)


def latent_shapes(config: CoDiConfig, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Shape of one sample's latent for each output: (C, h, w), (C, F, h, w), (C, T, M) or (D,)."""
    picture, sound = config.picture_autoencoder, config.sound_autoencoder
    factor, sound_factor = 2 ** (len(picture.channel_mult) - 1), 2 ** (len(sound.channel_mult) - 1)
    image, video = settings.image_size // factor, settings.video_size // factor
    shapes: dict[str, tuple[int, ...]] = {
        "video": (picture.latent_channels, settings.frames, video, video),
        "image": (picture.latent_channels, image, image),
        "text": (config.text_autoencoder.latent_dim,),
        "audio": (sound.latent_channels, config.mel.frames // sound_factor, config.mel.n_mels // sound_factor),
    }
    return {output: shapes[output] for output in settings.outputs}


def denoisers_of(outputs: Sequence[str]) -> list[str]:
    """Components that denoise these outputs, each once."""
    return list(dict.fromkeys(DENOISER_OF[output] for output in outputs))


def _outputs(outputs: Sequence[str]) -> tuple[str, ...]:
    outputs = [outputs] if isinstance(outputs, str) else list(outputs)
    if unknown := [o for o in outputs if o not in MODALITIES]:
        raise CoDiError(f"unknown output {unknown[0]!r}: give any of {', '.join(MODALITIES)}")
    if not outputs:
        raise CoDiError(f"no output was asked for: give any of {', '.join(MODALITIES)}")
    return tuple(m for m in MODALITIES if m in outputs)

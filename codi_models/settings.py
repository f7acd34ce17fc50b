"""What a run is asked for: outputs, sizes, sampling. Filled from the model's own defaults and checked before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from .conditioning import MIX_METHODS
from .config import COMPOSITIONS, DENOISER_OF, MODALITIES, CoDiConfig
from .coupling import Coupling, Pairs, parse_pairs
from .diffusion import SAMPLERS
from .errors import CoDiError
from .order import TOGETHER, parse_order

Each = float | str | Mapping[str, float]
"""A number for all outputs, or for some: 3, "image=5, text=2", "3, image=5" (3 for the others), {"image": 5}."""

OVERRIDES: dict[str, Any] = {
    "steps": int, "cfg": Each, "cfg_rescale": float, "sampler": str, "wiring": str, "alignment": float, "alignment_guidance": float,
    "alignment_pairs": str, "alignment_start": float, "alignment_end": float, "order": str, "denoise": Each, "mix": str,
    "composition": str, "frames": int,
    "size": int,
}  # fmt: skip
"""What a run's settings may be told instead of the model's defaults, with their types."""


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
    composition: str
    frames: int
    image_size: int
    video_size: int
    batch_size: int
    cfg_each: tuple[tuple[str, float], ...] = ()  # (output, cfg) where it is not `cfg`
    cfg_rescale: float = 0.0  # 0 to 1, see diffusion.rescaled
    alignment_pairs: tuple[tuple[str, str, float], ...] = ()  # (listener, speaker, strength)
    alignment_start: float = 0.0
    alignment_end: float = 1.0
    order: str = TOGETHER  # see order.parse_order
    keep: tuple[str, ...] = ()  # outputs that are given
    denoise: tuple[tuple[str, float], ...] = ()  # (kept output, part of the run in which it is made anew); 0 where it is not named

    @staticmethod
    def settled(
        config: CoDiConfig,
        outputs: Sequence[str],
        *,
        seed: int = 0,
        count: int = 1,
        steps: int | None = None,
        cfg: Each | None = None,
        cfg_rescale: float | None = None,
        sampler: str | None = None,
        wiring: str | None = None,
        alignment: float | None = None,
        alignment_guidance: float | None = None,
        alignment_pairs: str | Pairs | None = None,
        alignment_start: float | None = None,
        alignment_end: float | None = None,
        order: str | None = None,
        keep: Collection[str] = (),
        denoise: Each | None = None,
        mix: str = "linear",
        composition: str | None = None,
        frames: int | None = None,
        size: int | None = None,
        batch_size: int | None = None,
    ) -> Settings:
        """Defaults filled in from `config.sampling`, everything checked. `size` is the edge of picture and clip alike.

        keep: outputs that are given, asked for or not; denoise: how much of them is made anew, 0 (nothing) to 1.
        alignment_pairs: as `coupling.parse_pairs` reads them; order: as `parse_order` does.
        Raises CoDiError that names the value and what is accepted."""
        usual = config.sampling
        kept = _outputs(keep) if keep else ()
        made = [outputs] if isinstance(outputs, str) else list(outputs)
        scale, scales = parse_each("cfg", cfg)
        share, shares = parse_each("denoise", denoise)
        if share is not None:
            shares = {output: share for output in kept} | shares
        pairs = parse_pairs(alignment_pairs) if isinstance(alignment_pairs, str) else dict(alignment_pairs or {})
        settings = Settings(
            outputs=_outputs([*made, *(output for output in kept if output not in made)]),
            seed=seed,
            count=count,
            steps=usual.steps if steps is None else steps,
            cfg=usual.cfg if scale is None else scale,
            cfg_each=_ordered(scales),
            cfg_rescale=0.0 if cfg_rescale is None else float(cfg_rescale),
            sampler=usual.sampler if sampler is None else sampler,
            wiring=usual.wiring if wiring is None else wiring,
            alignment=usual.alignment if alignment is None else float(alignment),
            alignment_guidance=usual.alignment_guidance if alignment_guidance is None else float(alignment_guidance),
            alignment_pairs=tuple((*pair, float(pairs[pair])) for pair in sorted(pairs)),
            alignment_start=0.0 if alignment_start is None else float(alignment_start),
            alignment_end=1.0 if alignment_end is None else float(alignment_end),
            order=usual.order if order is None else order,
            keep=kept,
            denoise=_ordered(shares),
            mix=mix,
            composition=usual.composition if composition is None else composition,
            frames=usual.frames if frames is None else frames,
            image_size=usual.image_size if size is None else size,
            video_size=usual.video_size if size is None else size,
            batch_size=1 if batch_size is None else batch_size,
        )
        settings._check(config)
        if scale is None and usual.cfg_each:  # one for all replaces the model's own for some
            own = {m: s for m, s in parse_each("cfg", usual.cfg_each)[1].items() if m in settings.working}
            settings = replace(settings, cfg_each=_ordered(own | scales))
        if batch_size is None:
            places = sum(math.prod(shape[1:]) for shape in latent_shapes(config, settings).values())
            return replace(settings, batch_size=max(1, min(32, _PLACES_AT_ONCE // places)))
        return settings

    @property
    def scales(self) -> dict[str, float]:
        """Classifier-free guidance of each output, bridge included."""
        return dict.fromkeys(self.working, self.cfg) | dict(self.cfg_each)

    @property
    def fixed(self) -> tuple[str, ...]:
        """Kept outputs of which nothing is made anew."""
        return tuple(output for output in self.keep if not dict(self.denoise).get(output))

    @property
    def coupling(self) -> Coupling:
        """How the outputs listen to each other. Raises CoDiError as `Coupling` does."""
        pairs = {(listener, speaker): strength for listener, speaker, strength in self.alignment_pairs}
        return Coupling(self.wiring, self.alignment, self.alignment_guidance, self.alignment_start, self.alignment_end, pairs)

    def turns(self, made: Collection[str]) -> tuple[tuple[str, ...], ...]:
        """What is denoised one after the other where `made` of the outputs are generated, see `parse_order`.

        Where none listens there is no bridge."""
        return parse_order(self.order, self.outputs, made, () if self.coupling.silent else MODALITIES)

    @property
    def working(self) -> tuple[str, ...]:
        """Outputs, and the bridge that is made only for them to hear, in the order of MODALITIES."""
        turned = {m for turn in self.turns(self.outputs) for m in turn}
        return tuple(m for m in MODALITIES if m in turned)

    @property
    def listening(self) -> bool:
        """Whether any output hears another."""
        return len(self.working) > 1 and not self.coupling.silent

    def told(self) -> dict[str, Any]:
        """As JSON holds it, without what has a default that it keeps."""
        usual = {f.name for f in fields(self) if f.default is not MISSING and getattr(self, f.name) == f.default}
        return json.loads(json.dumps({name: value for name, value in asdict(self).items() if name not in usual}))

    def _check(self, config: CoDiConfig) -> None:
        unit, most = image_unit(config), config.vision_denoiser.max_frames
        checks = [
            (0 <= self.seed and self.seed + self.count <= 1 << 63, f"seed {self.seed} must be 0 or more and below 2**63"),
            (self.count >= 1, f"count {self.count} must be 1 or more"),
            (1 <= self.steps <= 1000, f"steps {self.steps} must be between 1 and 1000"),
            (self.batch_size >= 1, f"batch size {self.batch_size} must be 1 or more"),
            (1 <= self.frames <= most, f"frames {self.frames} must be between 1 and {most}, the length of this model's table of positions"),
            (self.sampler in SAMPLERS, f"unknown sampler {self.sampler!r}: give one of {', '.join(SAMPLERS)}"),
            (self.sampler != "ddim" or self.steps <= 500, f"steps {self.steps}: the ddim sampler takes 1 to 500"),
            (self.composition in COMPOSITIONS, f"unknown composition {self.composition!r}: give one of {', '.join(COMPOSITIONS)}"),
            (self.mix in MIX_METHODS, f"unknown mixing method {self.mix!r}: give one of {', '.join(MIX_METHODS)}"),
        ]
        for output, scale in {"": self.cfg, **dict(self.cfg_each)}.items():
            checks.append((math.isfinite(scale), f"cfg {f'of {output} ' if output else ''}{scale} must be a finite number"))
            known = not output or output in self.outputs
            checks.append((known, f"cfg of {output} was given, but the outputs are {', '.join(self.outputs)}: ask for {output} too"))
        checks.append((0 <= self.cfg_rescale <= 1, f"cfg_rescale {self.cfg_rescale} must be between 0 and 1"))
        for output, share in self.denoise:
            checks.append((output in self.keep, f"denoise of {output} was given, but no {output} to keep: give one, or leave it out"))
            checks.append((0 <= share <= 1, f"denoise {share} of {output} must be between 0 (kept as it is) and 1 (made anew)"))
        for size in {self.image_size, self.video_size}:
            near = max(unit, round(size / unit) * unit)
            checks.append((size > 0 and size % unit == 0, f"size {size} must be a multiple of {unit} pixels: the nearest is {near}"))
        for good, message in checks:
            if not good:
                raise CoDiError(message)
        _ = self.coupling, parse_order(self.order, self.outputs)  # they check themselves
        if set(self.fixed) == set(self.outputs):
            all_of_them = ", ".join(self.outputs)
            raise CoDiError(f"all outputs ({all_of_them}) are kept as they are: ask for another one, or vary one with denoise above 0")


_PLACES_AT_ONCE = 1 << 15  # latent positions denoised in one batch, all outputs together


def image_unit(config: CoDiConfig) -> int:
    """Pixels that sizes are multiples of: the autoencoder's factor times the UNet's."""
    levels = len(config.image_autoencoder.channel_mult) + len(config.vision_denoiser.channel_mult)
    return 2 ** (levels - 2)


def latent_shapes(config: CoDiConfig, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Shape of one sample's latent for each output, bridge included: (C, h, w), (C, F, h, w), (C, T, M) or (D,)."""
    picture, sound = config.image_autoencoder, config.audio_autoencoder
    factor, audio_factor = 2 ** (len(picture.channel_mult) - 1), 2 ** (len(sound.channel_mult) - 1)
    image, video = settings.image_size // factor, settings.video_size // factor
    shapes: dict[str, tuple[int, ...]] = {
        "video": (picture.latent_channels, settings.frames, video, video),
        "image": (picture.latent_channels, image, image),
        "text": (config.text_autoencoder.latent_dim,),
        "audio": (sound.latent_channels, config.mel.frames // audio_factor, config.mel.n_mels // audio_factor),
    }
    return {output: shapes[output] for output in settings.working}


def denoisers_of(outputs: Sequence[str]) -> list[str]:
    """Components that denoise these outputs, each once."""
    return list(dict.fromkeys(DENOISER_OF[output] for output in outputs))


def parse_each(name: str, given: Each | None) -> tuple[float | None, dict[str, float]]:
    """The number for all outputs, or None, and those for single ones; see `Each`. Raises CoDiError naming what cannot be read."""
    if given is None:
        return None, {}
    entries: list[tuple[str, Any]] = [("", given)]
    if isinstance(given, Mapping):
        entries = list(given.items())
    elif isinstance(given, str):
        split = [word.rpartition("=") for word in given.split(",") if word.strip()]
        entries = [(output.strip(), number.strip()) for output, _, number in split] or [("", given)]
    each: dict[str, float] = {}
    common: float | None = None
    for output, number in entries:
        try:
            value = float(number)
        except (TypeError, ValueError):
            raise CoDiError(f"{name} {number!r} is no number: write a number, or output=number, such as image=5,text=2") from None
        if output and output not in MODALITIES:
            raise CoDiError(f"{name} of unknown output {output!r}: give any of {', '.join(MODALITIES)}")
        if output in each or (not output and common is not None):
            raise CoDiError(f"{name}{f' of {output}' if output else ''} was given twice: give it once")
        if output:
            each[output] = value
        else:
            common = value
    return common, each


def _ordered(each: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple((output, each[output]) for output in MODALITIES if output in each)


def _outputs(outputs: Collection[str]) -> tuple[str, ...]:
    outputs = [outputs] if isinstance(outputs, str) else list(outputs)
    if unknown := [o for o in outputs if o not in MODALITIES]:
        raise CoDiError(f"unknown output {unknown[0]!r}: give any of {', '.join(MODALITIES)}")
    if not outputs:
        raise CoDiError(f"no output was asked for: give any of {', '.join(MODALITIES)}")
    return tuple(m for m in MODALITIES if m in outputs)

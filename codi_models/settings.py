"""What a run is asked for: outputs, sizes, sampling. Filled from the model's own defaults and checked before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from .alignment import Alignment, Directions, parse_directions
from .conditioning import DEFAULT_MIX, MIX_METHODS
from .config import CoDiConfig
from .diffusion import PUBLISHED, SAMPLERS, NoiseSchedule, run_sigmas
from .errors import CoDiError
from .guidance import Guidance
from .modalities import MODALITIES, Size, ordered, snr_scale
from .stages import TOGETHER, parse_schedule

Each = float | str | Mapping[str, float]
"""A number for all outputs, or for some: 3, "image=5, text=2", "3, image=5" (3 for the others), {"image": 5}."""
Pairs = str | Directions
"""As `alignment.parse_directions` reads it, or what that makes of it."""

OVERRIDES: dict[str, Any] = {
    "steps": int, "cfg": Each, "cfg_rescale": float, "sampler": str, "scheduler": str, "wiring": str, "alignment": float,
    "alignment_guidance": float, "alignment_directions": Pairs, "alignment_start": float, "alignment_end": float,
    "alignment_combine": str, "schedule": str, "strength": Each, "mix": str, "frames": int, "size": int,
}  # fmt: skip
"""What a run's settings may be told instead of the model's defaults, with their types."""


MOST_SAMPLES, MOST_AT_ONCE, MOST_PIXELS = 100_000, 4096, 8192
"""Upper bounds of what is typed: samples of a run, samples of a batch, pixels of an edge. Memory may set lower ones."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run. Sizes in pixels; None anywhere in `resolve` means the model's default."""

    outputs: tuple[str, ...]  # in the order of MODALITIES
    seed: int
    count: int
    steps: int
    sampler: str
    scheduler: str
    cfg: tuple[tuple[str, float], ...]  # classifier-free guidance of every output
    cfg_rescale: float  # 0 to 1, see guidance.rescaled
    alignment: Alignment
    mix: str
    frames: int
    image_size: int
    video_size: int
    batch_size: int
    schedule: str = TOGETHER  # see stages.parse_schedule
    given: tuple[str, ...] = ()  # outputs that the user gives
    strength: tuple[tuple[str, float], ...] = ()  # (given output, part of the run in which it is generated, as in SDEdit); else 0

    @staticmethod
    def resolve(
        config: CoDiConfig,
        outputs: Sequence[str],
        *,
        seed: int = 0,
        count: int = 1,
        steps: int | None = None,
        cfg: Each | None = None,
        cfg_rescale: float | None = None,
        sampler: str | None = None,
        scheduler: str | None = None,
        wiring: str | None = None,
        alignment: float | None = None,
        alignment_guidance: float | None = None,
        alignment_directions: str | Directions | None = None,
        alignment_start: float | None = None,
        alignment_end: float | None = None,
        alignment_combine: str | None = None,
        schedule: str | None = None,
        given: Collection[str] = (),
        strength: Each | None = None,
        mix: str = DEFAULT_MIX,
        frames: int | None = None,
        size: int | None = None,
        batch_size: int | None = None,
    ) -> Settings:
        """Defaults filled in from `config.sampling`, everything checked. `size` is the edge of image and video alike.

        given: outputs that the user gives, asked for or not; strength: how much of them is generated, 0 (nothing) to 1.
        alignment_directions: as `parse_directions` reads them; schedule: as `parse_schedule` does.
        Raises CoDiError that names the value and what is accepted."""
        values, usual = dict(locals()), config.sampling
        told = {name: typed(name, values[name], kind) for name, kind in OVERRIDES.items() if values[name] is not None}
        for name in ("seed", "count", "batch_size"):
            if values[name] is not None:
                typed(name, values[name], int)
        known = ordered(given) if given else ()
        made = ordered([*ordered(outputs), *known])
        common, scales = parse_each("cfg", cfg)
        share, shares = parse_each("strength", strength)
        if share is not None:
            shares = {output: share for output in known} | shares
        for name, named, accepted in (("cfg", scales, made), ("strength", shares, known)):
            if unknown := [output for output in named if output not in accepted]:
                has = f"the outputs are {', '.join(made)}" if name == "cfg" else f"no {unknown[0]} is given"
                raise CoDiError(f"{name} of {unknown[0]} was set, but {has}: ask for it too, or leave {name} of {unknown[0]} out")
        directions = told.get("alignment_directions", {})
        settings = Settings(
            outputs=made,
            seed=seed,
            count=count,
            steps=told.get("steps", usual.steps),
            sampler=told.get("sampler", usual.sampler),
            scheduler=told.get("scheduler", usual.scheduler),
            cfg=tuple((output, scales.get(output, usual.cfg if common is None else common)) for output in made),
            cfg_rescale=told.get("cfg_rescale", usual.cfg_rescale),
            alignment=Alignment(
                told.get("wiring", usual.wiring),
                told.get("alignment", usual.alignment),
                told.get("alignment_guidance", usual.alignment_guidance),
                told.get("alignment_start", 0.0),
                told.get("alignment_end", 1.0),
                parse_directions(directions) if isinstance(directions, str) else directions,
                told.get("alignment_combine", usual.alignment_combine),
            ),
            schedule=told.get("schedule", usual.schedule),
            given=known,
            strength=tuple((output, shares[output]) for output in known if output in shares),
            mix=mix,
            frames=told.get("frames", usual.frames),
            image_size=told.get("size", usual.image_size),
            video_size=told.get("size", usual.video_size),
            batch_size=1 if batch_size is None else batch_size,
        )
        settings._check(config)
        if batch_size is None:
            places = sum(math.prod(shape[1:]) for shape in latent_shapes(config, settings).values())
            return replace(settings, batch_size=max(1, min(32, _PLACES_AT_ONCE // places)))
        return settings

    def guidance(self, *, prompted: bool) -> dict[str, Guidance]:
        """Of every output; without a prompt there is nothing that cfg could lead away from."""
        return {output: Guidance(scale if prompted else 1.0, self.alignment.guidance, self.cfg_rescale) for output, scale in self.cfg}

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Given outputs of which nothing is generated."""
        return tuple(output for output in self.given if not dict(self.strength).get(output))

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """Outputs that are denoised together, stage by stage."""
        return parse_schedule(self.schedule, [output for output in self.outputs if output not in self.unchanged])

    def size(self, output: str, config: CoDiConfig) -> Size:
        """How large an output is made."""
        edge = self.image_size if output == "image" else self.video_size
        return Size(edge, edge, self.frames, config.mel.frames)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, without what has a default that it keeps; the alignment under the names that `resolve` takes."""
        usual = {f.name for f in fields(self) if f.default is not MISSING and getattr(self, f.name) == f.default}
        found = {name: value for name, value in asdict(self).items() if name not in usual and name != "alignment"}
        one = self.alignment
        found |= {"wiring": one.wiring, "alignment": one.strength, "alignment_guidance": one.guidance, "alignment_combine": one.combine}
        found |= {"alignment_start": one.start} if one.start else {}
        found |= {"alignment_end": one.end} if one.end != 1 else {}
        if one.directions:
            found["alignment_directions"] = ", ".join(f"{target}<{source}={value}" for (target, source), value in one.directions.items())
        found["cfg"] = next(iter(dict(self.cfg).values())) if len({scale for _, scale in self.cfg}) == 1 else dict(self.cfg)
        if "strength" in found:
            found["strength"] = dict(self.strength)
        return json.loads(json.dumps(found))

    def _check(self, config: CoDiConfig) -> None:
        unit, most = image_unit(config), config.vision_denoiser.max_frames
        checks = [
            (0 <= self.seed and self.seed + self.count <= 1 << 64, f"seed {self.seed} must be 0 or more and below 2**64"),
            (1 <= self.count <= MOST_SAMPLES, f"count {self.count} must be 1 to {MOST_SAMPLES}"),
            (1 <= self.batch_size <= MOST_AT_ONCE, f"batch size {self.batch_size} must be 1 to {MOST_AT_ONCE}"),
            (1 <= self.frames <= most, f"frames {self.frames} must be between 1 and {most}, the length of this model's table of positions"),
            (self.sampler in SAMPLERS, f"unknown sampler {self.sampler!r}: give one of {', '.join(SAMPLERS)}"),
            (self.mix in MIX_METHODS, f"unknown mixing method {self.mix!r}: give one of {', '.join(MIX_METHODS)}"),
            (0 <= self.cfg_rescale <= 1, f"cfg_rescale {self.cfg_rescale} must be between 0 and 1"),
        ]
        checks += [(math.isfinite(scale), f"cfg of {output} is {scale}: it must be a finite number") for output, scale in self.cfg]
        for output, share in self.strength:
            checks.append((0 <= share <= 1, f"strength {share} of {output} must be between 0 (as given) and 1 (generated)"))
        for size in {self.image_size, self.video_size}:
            near = max(unit, round(size / unit) * unit)
            checks.append((size <= MOST_PIXELS, f"size {size} must be {MOST_PIXELS} pixels or less"))
            checks.append((size > 0 and size % unit == 0, f"size {size} must be a multiple of {unit} pixels: the nearest is {near}"))
        for good, message in checks:
            if not good:
                raise CoDiError(message)
        self.sigmas(config)
        _ = parse_schedule(self.schedule, self.outputs)
        if set(self.unchanged) == set(self.outputs):
            all_of_them = ", ".join(self.outputs)
            raise CoDiError(f"all outputs ({all_of_them}) are given: ask for another one, or vary one with strength above 0")

    def sigmas(self, config: CoDiConfig) -> tuple[list[float], bool]:
        """Noise levels of the run, and whether it starts from noise of unit variance: at the schedule's end, and as published."""
        schedule = NoiseSchedule(config.diffusion)
        sigmas = run_sigmas(schedule, self.scheduler, self.steps)
        return sigmas, self.scheduler == PUBLISHED or sigmas[0] >= float(schedule.sigmas[-1]) * (1 - 1e-5)


_PLACES_AT_ONCE = 1 << 15  # latent positions denoised in one batch, all outputs together


def image_unit(config: CoDiConfig) -> int:
    """Pixels that sizes are multiples of: the autoencoder's factor times the UNet's."""
    return config.image_autoencoder.downsampling * 2 ** (len(config.vision_denoiser.channel_mult) - 1)


def latent_shapes(config: CoDiConfig, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Shape of one sample's latent for each output: (C, h, w), (C, F, h, w), (C, T, M) or (D,)."""
    return {output: MODALITIES[output].latent_shape(config, settings.size(output, config)) for output in settings.outputs}


def own_size(config: CoDiConfig, output: str) -> Size:
    """The size of an output that the model was made for."""
    usual = config.sampling
    edge = usual.image_size if output == "image" else usual.video_size
    return Size(edge, edge, usual.frames, config.mel.frames)


def unusual_sizes(config: CoDiConfig, sizes: Mapping[str, Size]) -> list[str]:
    """A line for every size of an output that is less than half or more than one and a half times the model's own."""
    lines = []
    for output, size in sizes.items():
        own = own_size(config, output)
        measures: list[tuple[str, float, float]] = []
        if output in ("image", "video"):
            measures += [("pixels wide", size.width, own.width), ("pixels high", size.height, own.height)]
        if output == "video":
            measures.append(("frames", size.frames, own.frames))
        if output == "audio":
            step = config.mel.hop_length / config.mel.sample_rate  # seconds
            measures.append(("s long", size.mel_frames * step, own.mel_frames * step))
        for what, asked, usual in measures:
            if not 0.5 * usual <= asked <= 1.5 * usual:
                lines.append(f"{output}: {asked:.4g} {what}, and {config.name} was made for {usual:.4g}: expect worse results")
    return lines


def snr_scales(config: CoDiConfig) -> dict[str, float]:
    """The factor s of every modality, see `modalities.snr_scale`."""
    return {modality: snr_scale(config, modality) for modality in MODALITIES}


def typed(name: str, value: Any, wanted: Any) -> Any:
    """A setting as its entry in OVERRIDES wants it. Raises CoDiError for values of another type."""
    if wanted in (Each, Pairs) and isinstance(value, str):
        return value
    if wanted is Each:
        if isinstance(value, Mapping):
            return {output: typed(f"{name} of {output}", number, float) for output, number in value.items()}
        wanted = float
    if wanted is Pairs:
        if not isinstance(value, Mapping) or not all(isinstance(key, tuple) and len(key) == 2 for key in value):
            raise CoDiError(f"{name} {value!r:.80} are no directions: write target<source=strength, such as video<audio=0.5")
        return {pair: typed(f"{name} {pair}", number, float) for pair, number in value.items()}
    kinds = {int: (Integral, "a whole number"), float: (Real, "a number"), str: (str, "a string")}
    kind, words = kinds[wanted]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CoDiError(f"{name} must be {words}, got {value!r:.80}")
    try:
        return wanted(value)
    except OverflowError as error:
        raise CoDiError(f"{name} {value} is too large") from error


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

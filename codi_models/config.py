"""One frozen dataclass per network; the official CoDi and codi-mini differ in numbers, never in code."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import version_0_3
from .errors import CoDiError
from .files import read_json, write_text


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """2-D latent diffusion UNet of images and video frames, or of sound (paper section 3.2)."""

    in_channels: int
    model_channels: int
    context_dim: int
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_blocks: tuple[int, ...] = (2, 2, 2, 2)  # ResBlocks per level; one more on the way up
    with_attention: tuple[bool, ...] = (True, True, True, False)
    with_connector: tuple[bool, ...] = (True, True, True, False)
    connector_mult: tuple[int, ...] = (1, 2, 4)  # widths of the environment encoder, in units of model_channels
    connector_blocks: tuple[int, ...] = (1, 1, 1)
    connector_dim: int = 1280  # width of an environment embedding
    num_heads: int = 8
    norm_groups: int = 32
    temporal: bool = False  # the video architecture: a temporal module behind every ResBlock
    max_frames: int = 30  # rows of the temporal position table


@dataclass(frozen=True, kw_only=True)
class TextUNetConfig:
    """Fully connected UNet of text latents: a latent vector is treated as `tokens` tokens per channel."""

    in_channels: int
    model_channels: int
    context_dim: int
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_blocks: tuple[int, ...] = (2, 2, 2, 2)
    with_attention: tuple[bool, ...] = (True, True, True, False)
    with_connector: tuple[bool, ...] = (True, True, True, False)
    connector_mult: tuple[int, ...] = (1, 2, 4)
    connector_blocks: tuple[int, ...] = (1, 1, 1)
    connector_dim: int = 1280
    tokens: int = 4
    num_heads: int = 8
    norm_groups: int = 32


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """KL autoencoder of pictures or of log-mel spectrograms (latent diffusion, f = 2 ** (levels - 1))."""

    in_channels: int
    latent_channels: int
    inner_channels: int = 0  # between the convolutions and the 1x1 maps to and from the latent; 0 = latent_channels
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_blocks: int = 2
    attention: tuple[bool, ...] = ()  # per level, highest resolution first; empty = in the middle only
    norm_groups: int = 32
    scale: float  # diffusion space = latent space * scale

    @property
    def downsampling(self) -> int:
        """Pixels, or mel bins, of one latent element along one side."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """Log-mel front end. A clip of `frames` frames is `frames * hop_length` samples."""

    sample_rate: int = 16000
    n_fft: int = 1024
    hop_length: int = 160
    n_mels: int = 64
    f_min: float = 0.0
    f_max: float = 8000.0
    frames: int = 1024  # frames of the sound latent made when nothing else is asked
    normalize: bool = True  # remove the mean and scale the peak to 0.5 first; without it a latent keeps the loudness


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """HiFi-GAN generator (Kong et al. 2020)."""

    n_mels: int = 64
    sample_rate: int = 16000
    initial_channels: int = 1024
    upsample_rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 16, 8, 4, 4)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[int | tuple[int, ...], ...] = (1, 3, 5)  # of every kernel, or a tuple for each


@dataclass(frozen=True, kw_only=True)
class SpectrumVocoderConfig:
    """A network from log-mel to the magnitudes of a spectrum, then Griffin-Lim."""

    n_mels: int = 64
    sample_rate: int = 16000
    n_fft: int = 1024
    hop_length: int = 160
    f_min: float = 0.0
    f_max: float = 8000.0
    width: int = 256
    blocks: int = 4
    iterations: int = 64
    momentum: float = 0.9


@dataclass(frozen=True, kw_only=True)
class OptimusConfig:
    """Optimus text autoencoder (Li et al. 2020): BERT encoder, GPT-2 decoder with the latent as memory and embedding."""

    latent_dim: int = 768
    encoder_vocab: int = 28996
    encoder_dim: int = 768
    encoder_layers: int = 12
    encoder_heads: int = 12
    encoder_mlp: int = 3072
    encoder_positions: int = 512
    decoder_vocab: int = 50260
    decoder_dim: int = 768
    decoder_layers: int = 12
    decoder_heads: int = 12
    decoder_positions: int = 1024
    max_tokens: int = 30  # generated ids, BOS included
    temperature: float = 1.0  # 0 = greedy
    scale: float = 4.3108


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Text, image and video prompt encoder: CLIP with a temporal module in every vision layer."""

    projection_dim: int = 768
    vocab_size: int = 49408
    text_dim: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_mlp: int = 3072
    text_positions: int = 77
    vision_dim: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vision_mlp: int = 4096
    image_size: int = 224
    patch_size: int = 14


@dataclass(frozen=True, kw_only=True)
class CLAPConfig:
    """Sound prompt encoder: the audio branch of CLAP, a hierarchical token-semantic transformer (HTSAT)."""

    projection_dim: int = 768
    hidden_dim: int = 768  # of the two-layer projection
    embed_dim: int = 256
    depths: tuple[int, ...] = (2, 2, 12, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    spec_size: int = 256
    patch_size: int = 4
    num_classes: int = 527
    sample_rate: int = 48000
    n_fft: int = 1024
    hop_length: int = 480
    n_mels: int = 64
    f_min: float = 50.0
    f_max: float = 14000.0
    clip_seconds: float = 10.0


SCHEDULES = ("linear", "linear_zsnr", "cosine")
PREDICTIONS = ("eps", "v")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Noise levels that the denoisers were trained at, and what they predict there; see `diffusion.NoiseSchedule`."""

    schedule: str = "linear"  # one of SCHEDULES
    prediction: str = "eps"  # one of PREDICTIONS
    shifts: dict[str, float] = field(
        default_factory=dict, hash=False
    )  # modality -> shift of its log SNR while sampling; 0 where it is not named

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise CoDiError(f"unknown noise schedule {self.schedule!r}: it is one of {', '.join(SCHEDULES)}")
        if self.prediction not in PREDICTIONS:
            raise CoDiError(f"unknown prediction type {self.prediction!r}: it is one of {', '.join(PREDICTIONS)}")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How this model is sampled where nothing else is asked for: the defaults of nodes and command line alike."""

    image_size: int = 512  # pixels
    video_size: int = 256
    frames: int = 8
    frame_rate: float = 4.0
    sampler: str = "ddim"  # see diffusion.SAMPLERS
    scheduler: str = "ddim_uniform"  # see diffusion.SCHEDULERS
    steps: int = 50
    cfg: float = 7.5
    cfg_rescale: float = 0.0  # what is taken back of the spread that guidance adds, see guidance.rescaled
    wiring: str = "cross"  # the paper's, see alignment.WIRINGS
    alignment: float = 1.0  # strength of the latent alignment
    alignment_guidance: float = 1.0  # 1 needs no extra pass
    alignment_combine: str = "attention"  # of several sources, see alignment.COMBINATIONS
    schedule: str = "together"  # which outputs are denoised together, see stages.parse_schedule


@dataclass(frozen=True, kw_only=True)
class CoDiConfig:
    """The whole model. Fields named like components are their configurations."""

    name: str
    clip: CLIPConfig
    clap: CLAPConfig
    image_autoencoder: AutoencoderConfig
    audio_autoencoder: AutoencoderConfig
    mel: MelConfig
    vocoder: VocoderConfig | SpectrumVocoderConfig
    text_autoencoder: OptimusConfig
    vision_denoiser: UNetConfig
    audio_denoiser: UNetConfig
    text_denoiser: TextUNetConfig
    sampling: SamplingConfig
    diffusion: DiffusionConfig = DiffusionConfig()

    @staticmethod
    def official() -> CoDiConfig:
        """The published checkpoint (5.7 B parameters)."""
        return CoDiConfig(
            name="codi",
            clip=CLIPConfig(),
            clap=CLAPConfig(),
            image_autoencoder=AutoencoderConfig(in_channels=3, latent_channels=4, scale=0.18215),
            audio_autoencoder=AutoencoderConfig(in_channels=1, latent_channels=8, channel_mult=(1, 2, 4), scale=0.9228),
            mel=MelConfig(),
            vocoder=VocoderConfig(),
            text_autoencoder=OptimusConfig(),
            vision_denoiser=UNetConfig(in_channels=4, model_channels=320, context_dim=768, temporal=True),
            audio_denoiser=UNetConfig(in_channels=8, model_channels=192, context_dim=768),
            text_denoiser=TextUNetConfig(in_channels=768, model_channels=320, context_dim=768),
            sampling=SamplingConfig(wiring="self"),  # what its weights were published with
        )

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all. Raises WriteError."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: str | Path) -> CoDiConfig:
        """Read what `save` wrote. Raises CoDiError naming the file and the field where it is not such a file."""
        try:
            data = read_json(path)
        except (OSError, ValueError, RecursionError) as error:
            raise CoDiError(f"{path} is not a readable CoDi config.json: {error}") from error
        return typing.cast(CoDiConfig, _build(CoDiConfig, version_0_3.config(data), str(path)))


_MOST, _MOST_LAYERS = 1 << 20, 256
_COUNTS = ("layers", "blocks", "depths", "mult", "dilations", "kernels", "rates", "attention", "connector")
"""Ends of the names of fields that count layers, or have an entry for each."""


def _check_size(name: str, value: Any, where: str) -> None:
    """Raises CoDiError for numbers that no network has: what is built from a file must not take more than the file is worth."""
    several = value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else [value]
    flat = [x for v in several for x in (v if isinstance(v, tuple) else [v]) if isinstance(x, int | float)]
    most = _MOST_LAYERS if name.endswith(_COUNTS) else _MOST
    for number in flat:
        if not abs(number) <= most:
            raise CoDiError(f"{where}: {name} {number!r:.80} is out of range: {most} at most")
    if isinstance(value, tuple) and len(flat) > _MOST_LAYERS:
        raise CoDiError(f"{where}: {name} has {len(flat)} entries: {_MOST_LAYERS} at most")


def _build(kind: type, data: Any, where: str) -> Any:
    """Dataclass of type `kind` from parsed JSON; lists become tuples, unknown and missing fields are errors."""
    if not isinstance(data, dict):
        raise CoDiError(f"{where}: expected an object with the fields of {kind.__name__}, got {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(data) - set(fields)):
        raise CoDiError(f"{where}: unknown fields {unknown} for {kind.__name__}; it takes {sorted(fields)}")
    values: dict[str, Any] = {}
    for name, value in data.items():
        hint = hints[name]
        if isinstance(hint, types.UnionType):  # the kind of network whose fields these are
            kinds = [k for k in typing.get_args(hint) if isinstance(value, dict) and set(value) <= {f.name for f in dataclasses.fields(k)}]
            hint = (kinds or typing.get_args(hint))[0]
        if dataclasses.is_dataclass(hint):
            value = _build(typing.cast(type, hint), value, f"{where}: {name}")
        elif typing.get_origin(hint) is tuple:
            if not isinstance(value, list):
                raise CoDiError(f"{where}: {name} must be a list, got {value!r}")
            if wrong := [x for v in value for x in (v if isinstance(v, list) else [v]) if not isinstance(x, int | float)]:
                raise CoDiError(f"{where}: {name} must hold numbers, got {wrong[0]!r}")
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        elif typing.get_origin(hint) is dict:
            if not isinstance(value, dict) or not all(isinstance(x, int | float) for x in value.values()):
                raise CoDiError(f"{where}: {name} must be an object of numbers, got {value!r}")
        elif not isinstance(value, (int, float) if hint is float else hint):
            raise CoDiError(f"{where}: {name} must be {hint.__name__}, got {value!r:.80}")
        _check_size(name, value, where)
        values[name] = value
    needed = {n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    missing = sorted(needed - set(values))
    if missing:
        raise CoDiError(f"{where}: missing fields {missing} of {kind.__name__}")
    return kind(**values)

"""A CoDi model folder: config.json, one safetensors file per component, tokenizer files; components load when first used."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoints import check_weights, load_weights, read_metadata, read_weights, save_weights, without_random_init
from .config import MODALITIES, CoDiConfig
from .errors import CoDiError, out_of_memory
from .facets import FACETS_FILE, Composition, Facets
from .files import sha256, whole_file

if TYPE_CHECKING:
    from .autoencoders.tokenizers import TextTokenizers
    from .encoders.tokenizer import CLIPTokenizer

SHARED_SPACE_FILE = "shared_space.safetensors"
SHIPPED = Path(__file__).parent.parent / "weights"
"""Folder of the models that come with the pack; `codi-mini` is one of them."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_HALF_FROM_BYTES = 4 << 30  # `auto` keeps float32 on a GPU below this much weight data


@dataclass(frozen=True)
class Component:
    """Where a component's class (or what builds one of several) lives and which parts of CoDiConfig it takes, in order."""

    module: str
    cls: str
    configs: tuple[str, ...]


COMPONENTS = {
    "clip": Component(".encoders.clip", "CLIPEncoder", ("clip",)),
    "clap": Component(".encoders.clap", "CLAPEncoder", ("clap",)),
    "image_autoencoder": Component(".autoencoders.image", "ImageAutoencoder", ("image_autoencoder",)),
    "audio_autoencoder": Component(".autoencoders.audio", "AudioAutoencoder", ("audio_autoencoder", "mel")),
    "vocoder": Component(".autoencoders.spectrum", "build_vocoder", ("vocoder",)),
    "text_autoencoder": Component(".autoencoders.optimus", "TextAutoencoder", ("text_autoencoder",)),
    "vision_denoiser": Component(".denoisers.unet2d", "UNet2D", ("vision_denoiser",)),
    "audio_denoiser": Component(".denoisers.unet2d", "UNet2D", ("audio_denoiser",)),
    "text_denoiser": Component(".denoisers.unet_text", "TextUNet", ("text_denoiser",)),
}


def build_component(
    name: str, config: CoDiConfig, *, operations: Any = nn, dtype: Any = None, device: Any = None, **extra: Any
) -> nn.Module:
    """A freshly initialised network of the component table; `extra` goes to its constructor.

    Raises CoDiError for an unknown name, and for a configuration that describes no network."""
    if name not in COMPONENTS:
        raise CoDiError(f"unknown component {name!r}; CoDi has {', '.join(COMPONENTS)}")
    entry = COMPONENTS[name]
    cls = getattr(importlib.import_module(entry.module, __package__), entry.cls)
    parts = [getattr(config, part) for part in entry.configs]
    try:
        return cls(*parts, operations=operations, dtype=dtype, device=device, **extra)
    except (TypeError, ValueError, ZeroDivisionError, IndexError, RuntimeError) as error:
        if isinstance(error, CoDiError) or out_of_memory(error):
            raise
        raise CoDiError(
            f"no {name} can be built from the configuration of {config.name!r} ({type(error).__name__}: {error}). "
            f"Look at {', '.join(entry.configs)} in its config.json, or restore the model folder"
        ) from error


def load_component(
    name: str, config: CoDiConfig, path: str | Path, *, operations: Any = nn, dtype: Any = None, device: Any = None, **extra: Any
) -> nn.Module:
    """Build a component and fill it from its file; evaluation mode, gradients off. Raises CoDiError as `check_component` does."""
    _check_file(name, Path(path))
    with without_random_init():
        network = build_component(name, config, operations=operations, dtype=dtype, device=device, **extra)
    load_weights(network, path)
    return network.eval().requires_grad_(False)


def check_component(name: str, config: CoDiConfig, path: str | Path) -> None:
    """Whether a file holds a component's weights, every key and shape; no tensor is read.

    Raises CoDiError where it is missing (naming how to get it), not whole, another component's or of another configuration."""
    _check_file(name, Path(path))
    check_weights(build_component(name, config, device="meta"), path)


def _check_file(name: str, path: Path) -> None:
    """The file is there, and its header does not name another component."""
    if not path.is_file():
        from .conversion.layout import published_file

        raise CoDiError(
            f"{path} is missing, so {name} cannot be used. In a folder made from the published checkpoint: "
            f"`python -m codi_models convert {published_file(name)} --out {path.parent}` adds it; else restore the model folder"
        )
    named = read_metadata(path).get("component", name)
    if named != name:
        raise CoDiError(f"{path} holds the weights of {named}, not of {name}. Restore the files of the model folder")


def save_component(name: str, network: nn.Module, config: CoDiConfig, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write `<folder>/<name>.safetensors`, whole or not at all; the header names component, model and configuration."""
    path = Path(folder) / f"{name}.safetensors"
    parts = {part: dataclasses.asdict(getattr(config, part)) for part in COMPONENTS[name].configs}
    save_weights(network, path, dtype=dtype, metadata={"component": name, "model": config.name, "config": json.dumps(parts)})
    return path


class SharedSpace:
    """Centre of each modality in the shared prompt space.

    Contrastive training leaves every modality in a cone of its own (the modality gap); with the cones' means removed,
    a prompt of one kind stands where the text that the denoisers were trained on would stand.
    `means`: modality -> (D,). Without means, `align` returns what it is given."""

    def __init__(self, means: Mapping[str, Tensor] | None = None) -> None:
        self.means = dict(means or {})

    @staticmethod
    def load(path: str | Path) -> SharedSpace:
        """Read `mean.<modality>` tensors; a missing file gives the identity. Raises CoDiError for any other content."""
        if not Path(path).exists():
            return SharedSpace()
        tensors, _ = read_weights(path)
        expected = {f"mean.{m}" for m in MODALITIES}
        if set(tensors) != expected or any(t.ndim != 1 for t in tensors.values()):
            raise CoDiError(f"{path} must hold one vector each of {sorted(expected)}, it has {sorted(tensors)}")
        return SharedSpace({key.removeprefix("mean."): tensor.float() for key, tensor in tensors.items()})

    def save(self, path: str | Path) -> None:
        """Write what `load` reads, float32."""
        save_weights({f"mean.{m}": v for m, v in self.means.items()}, path, dtype=torch.float32)

    def align(self, embedding: Tensor, modality: str) -> Tensor:
        """(B, 1, D) unit embedding of `modality` -> (B, 1, D), its modality's mean removed, unit length again."""
        if modality not in self.means:
            return embedding
        mean = self.means[modality].to(embedding)
        return nn.functional.normalize(embedding - mean, dim=-1)  # (B, 1, D)

    def restore(self, point: Tensor, modality: str) -> Tensor:
        """Inverse of `align` for unit embeddings: (B, 1, D) of the shared space -> the unit embedding that the encoder of
        `modality` would give. A point that no embedding of that modality is aligned to gives the nearest one."""
        point = nn.functional.normalize(point, dim=-1)
        if modality not in self.means:
            return point
        mean = self.means[modality].to(point)
        along = (point * mean).sum(dim=-1, keepdim=True)
        length = (along.square() + 1 - mean.square().sum()).clamp_min(0).sqrt() - along  # |mean + length * point| = 1
        return nn.functional.normalize(mean + length.clamp_min(0) * point, dim=-1)  # (B, 1, D)


class CoDi:
    """A model folder whose components are attributes (`model.clip`, `model.vision_denoiser`, ...), loaded when first read."""

    def __init__(self, folder: Path, config: CoDiConfig, *, device: torch.device, dtype: torch.dtype, operations: Any = nn) -> None:
        self.folder, self.config = folder, config
        self.device, self.dtype, self.operations = device, dtype, operations
        self.space = SharedSpace.load(folder / SHARED_SPACE_FILE)
        self.loaded: dict[str, nn.Module] = {}
        self._hashes: dict[str, str] = {}

    @staticmethod
    def from_pretrained(
        model: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", operations: Any = nn
    ) -> CoDi:
        """Open a model folder, or a shipped model by name. Nothing but config.json and the shared space is read yet.

        device "auto": CUDA if there is one, else CPU. dtype "auto": float32, except float16 on CUDA for models above 4 GiB.
        Raises CoDiError where the folder, its config.json, the device or the dtype is not usable."""
        folder = find_model(model)
        config = CoDiConfig.load(folder / "config.json")
        place = _device(device)
        return CoDi(folder, config, device=place, dtype=_dtype(dtype, place, folder), operations=operations)

    @staticmethod
    def create(
        config: CoDiConfig, folder: str | Path, *, captions: Sequence[str] = (), dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> CoDi:
        """Write a randomly initialised model folder (start of training, tests) and open it on the CPU.

        With captions, the tokenizers' vocabularies are built from them; without, the folder has none. `seed` draws the weights."""
        folder = Path(folder)
        for name in COMPONENTS:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                save_component(name, build_component(name, config), config, folder, dtype=dtype)
        if captions:
            from .autoencoders.tokenizers import build_vocabularies
            from .encoders.tokenizer import build_clip_vocabulary

            build_vocabularies(captions, folder, config.text_autoencoder.encoder_vocab, config.text_autoencoder.decoder_vocab)
            build_clip_vocabulary(captions, folder, vocab_size=config.clip.vocab_size)
        with whole_file(folder / "config.json") as temporary:
            config.save(temporary)
        return CoDi.from_pretrained(folder, device="cpu", dtype=torch.float32)

    def component(self, name: str) -> nn.Module:
        """The network of that name, loaded on first use. Raises CoDiError for unknown names and unusable files."""
        if name not in self.loaded:
            if name not in COMPONENTS:
                raise CoDiError(f"unknown component {name!r}; CoDi has {', '.join(COMPONENTS)}")
            self.loaded[name] = load_component(
                name, self.config, self.path(name), operations=self.operations, dtype=self.dtype, device=self.device
            )
        return self.loaded[name]

    def __getattr__(self, name: str) -> Any:
        if name in COMPONENTS:
            return self.component(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @cached_property
    def clip_tokenizer(self) -> CLIPTokenizer:
        """Tokenizer of text prompts."""
        from .encoders.tokenizer import CLIPTokenizer

        return CLIPTokenizer(self.folder, self.config.clip)

    @cached_property
    def text_tokenizers(self) -> TextTokenizers:
        """Tokenizers of the text autoencoder."""
        from .autoencoders.tokenizers import TextTokenizers

        return TextTokenizers(self.folder, self.config.text_autoencoder)

    @cached_property
    def facets(self) -> Facets | None:
        """Facets of the shared space; None where the model has none."""
        return Facets.load(self.folder / FACETS_FILE)

    def composition(self, kind: str) -> Composition | None:
        """What takes prompts apart for pictures and clips in the composition `kind`; None where prompts stay whole.

        Raises CoDiError for facets that the model does not have."""
        usual = self.config.sampling
        names = tuple(name.strip() for name in usual.facets.split(",") if name.strip())
        if kind == "plain" or not (facets := self.known_facets(kind)) or not names:
            return None
        if unknown := sorted(set(names) - set(facets.facets)):
            raise CoDiError(f"{self.folder} has no facet {unknown[0]!r}: its config.json may name {', '.join(facets.facets)}")
        return Composition(facets, names, (1 - usual.facets_from) * 1000)

    @property
    def emphasis(self) -> dict[str, float]:
        """Output -> factor of the alignment guidance, of those that have one. Raises CoDiError where config.json says it otherwise."""
        from .settings import parse_each

        common, each = parse_each("alignment_emphasis", self.config.sampling.alignment_emphasis or {})
        return ({} if common is None else dict.fromkeys(MODALITIES, common)) | each

    def known_facets(self, kind: str) -> Facets | None:
        """What clarifies prompts in the composition `kind`. Raises CoDiError where the model has no facets and they are asked for."""
        if kind == "plain":
            return None
        if self.facets is None:
            raise CoDiError(f"composition {kind!r} needs {FACETS_FILE}, and {self.folder} has none: use the composition 'plain'")
        return self.facets

    def precision(self, name: str) -> torch.dtype:
        """Dtype that a component computes in."""
        return self.dtype

    def path(self, name: str) -> Path:
        """File of a component."""
        return self.folder / f"{name}.safetensors"

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the file of every component loaded so far, and of the shared space and its facets where there are any."""
        paths = [self.path(name) for name in self.loaded] + [self.folder / SHARED_SPACE_FILE, self.folder / FACETS_FILE]
        for path in paths:
            if path.name not in self._hashes and path.exists():
                self._hashes[path.name] = sha256(path)
        return dict(sorted(self._hashes.items()))


def find_model(model: str | Path) -> Path:
    """Folder of a shipped model name or a path. Raises CoDiError naming what was looked for and which names exist."""
    shipped = sorted(p.name for p in SHIPPED.iterdir() if (p / "config.json").is_file()) if SHIPPED.is_dir() else []
    folder = SHIPPED / model if str(model) in shipped else Path(model)
    try:
        found = (folder / "config.json").is_file()
    except OSError:  # a name too long, a folder that may not be looked into
        found = False
    if not found:
        raise CoDiError(
            f"no CoDi model at {str(model)[:300]!r}: give a folder with a config.json, or one of {shipped or 'no shipped models'}"
        )
    return folder


def _device(device: str | torch.device) -> torch.device:
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise CoDiError(f"unknown device {str(device)!r}: give auto, cpu, cuda or cuda:N") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise CoDiError(f"device {device} is not there: this machine offers {torch.cuda.device_count()} CUDA devices. Give cpu or auto")
    try:
        torch.zeros(1, device=place).cpu()
    except (RuntimeError, AssertionError) as error:  # a backend that this build or this machine lacks; the meta device
        raise CoDiError(f"device {device} cannot compute here: give auto, cpu, cuda or cuda:N") from error
    return place


def _dtype(dtype: str | torch.dtype, device: torch.device, folder: Path) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        big = sum(p.stat().st_size for p in folder.glob("*.safetensors")) > _HALF_FROM_BYTES
        return torch.float16 if big and device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise CoDiError(f"unknown dtype {dtype!r}: give auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]

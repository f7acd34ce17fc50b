"""A CoDi model folder: config.json, one safetensors file per component, tokenizer files; components load when first used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .components import COMPONENTS, build_component, component_path, load_component, save_component
from .config import CoDiConfig
from .encoders.shared_space import SHARED_SPACE_FILE, SharedSpace
from .errors import CoDiError
from .files import sha256

if TYPE_CHECKING:
    from .autoencoders.tokenizers import TextTokenizers
    from .encoders.tokenizer import CLIPTokenizer

SHIPPED = Path(__file__).parent.parent / "weights"
"""Folder of the models that come with the pack; `codi-mini` is one of them."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_HALF_FROM_BYTES = 4 << 30  # `auto` keeps float32 on a GPU below this much weight data


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
        config.save(folder / "config.json")
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

    def precision(self, name: str) -> torch.dtype:
        """Dtype that a component computes in."""
        return self.dtype

    def path(self, name: str) -> Path:
        """File of a component."""
        return component_path(self.folder, name)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the file of every component loaded so far, and of the shared space where there is one."""
        paths = [self.path(name) for name in self.loaded] + [self.folder / SHARED_SPACE_FILE]
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

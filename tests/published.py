"""Files laid out like the published checkpoint, with drawn weights, for a configuration of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from codi.codi_models import __main__ as command
from codi.codi_models.config import CoDiConfig
from codi.codi_models.conversion.layout import ENCODERS_FILE, TIED, layout, published_file
from torch import Tensor

EXTRAS = {
    "betas": (10,),
    "audioldm.fn_STFT.mel_basis": (4, 5),
    "clip.model.text_model.embeddings.position_ids": (1, 7),
    "clap.model.audio_branch.layers.0.blocks.0.attn.relative_position_index": (4, 4),
    "optimus.decoder.transformer.h.0.attn.bias": (1, 1, 3, 3),
}
"""Some of the entries that are not converted."""


def state(config: CoDiConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Published file name -> published key -> tensor."""
    generator = torch.Generator().manual_seed(seed)
    files: dict[str, dict[str, Tensor]] = {}
    for key, entry in layout(config).entries.items():
        if entry.floating:
            value = torch.randn(entry.shape, generator=generator) / max(1, math.sqrt(math.prod(entry.shape[1:])))
            value = value.abs() if key.endswith("running_var") else value
        else:
            value = torch.tensor(3)
        files.setdefault(published_file(entry.component), {})[key] = value.to(dtype) if entry.floating else value
    encoders = files[ENCODERS_FILE]
    encoders.update({key: torch.zeros(shape) for key, shape in EXTRAS.items()})
    encoders.update({copy: encoders[kept] for copy, kept in TIED.items()})
    return files


def write(folder: Path, config: CoDiConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Path]:
    """Write the four files; published name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in state(config, dtype, seed).items():
        torch.save(tensors, folder / name)
    return {path.name: path for path in sorted(folder.glob("*.pth"))}


def saved(content: Any, path: Path, **options: Any) -> Path:
    """`path`, with the content in it as torch.save writes it."""
    torch.save(content, path, **options)
    return path


def refusal(tmp_path: Path, capsys: Any, config: CoDiConfig) -> Callable[..., str]:
    """A function that runs convert, which must exit with 2, say all the words, and leave no weights; it returns what was said."""
    config.save(tmp_path / "sizes.json")

    def refused(arguments: list[Any], *words: Any, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        before = {p for p in out.rglob("*")} if out.is_dir() else set()
        status = command.main(["convert", *map(str, arguments), "--out", str(out), "--config", str(tmp_path / "sizes.json")])
        text = capsys.readouterr().err
        assert status == 2, text
        for word in words:
            assert str(word) in text, text
        assert not {p for p in out.rglob("*.safetensors")} - before
        return text

    return refused

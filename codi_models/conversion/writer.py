"""safetensors files written tensor by tensor, so that no more than a piece of one tensor is in memory.

Container: 8 bytes little-endian length of the header; header, JSON of name -> dtype, shape, [begin, end) in the data; data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import METADATA_KEY
from ..files import whole_file

PIECE = 1 << 22  # elements converted at once

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}


@dataclass(frozen=True)
class Planned:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize


def stream_weights(
    path: str | Path, plan: Iterable[Planned], pieces: Callable[[Planned], Iterator[Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write `path`, whole or not at all. `pieces` yields a tensor's elements in order, flat, in the planned dtype.

    Raises CoDiError where the file cannot be written, and lets through what `pieces` raises."""
    ordered = sorted(plan, key=lambda t: (-t.dtype.itemsize, t.name))  # wide types first keeps every tensor aligned
    header: dict[str, object] = {"__metadata__": {METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            for piece in pieces(tensor):
                file.write(piece.contiguous().view(torch.uint8).numpy().data)


def flat_pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor's elements in order, at most PIECE at once, as views where its memory is contiguous."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), PIECE):
        yield flat[start : start + PIECE]

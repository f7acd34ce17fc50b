"""What each part of a model folder costs: file, dtype, memory on the device once it is loaded."""

from __future__ import annotations

import math
from collections import Counter

import comfy.model_management as mm
import torch

from ...codi_models.checkpoints import read_layout, read_metadata
from ...codi_models.components import COMPONENTS
from ...codi_models.conversion.layout import published_file
from ...codi_models.errors import CoDiError
from .denoiser import DENOISERS, weight_dtype
from .handle import CoDiHandle

_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHORT = {torch.float8_e4m3fn: "fp8", torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def describe(codi: CoDiHandle, dtype: str = "auto") -> str:
    """One line a component: size and dtype of its file, and the memory that it takes when loaded; or what is wrong with it.

    dtype: of the denoisers, as in `denoiser_model`. Only the headers of the files are read."""
    lines, total = [], 0
    for name in COMPONENTS:
        line, size = _component(codi, name, dtype)
        lines.append(line)
        total += size
    return "\n".join([f"{codi.name}: parts load when needed; {_size(total)} if all were loaded", *lines])


def _component(codi: CoDiHandle, name: str, dtype: str) -> tuple[str, int]:
    path = codi.model.path(name)
    if not path.is_file():
        return f"{name}: missing ({path.name}; convert makes it from {published_file(name)})", 0
    try:
        layout, held = read_layout(path), read_metadata(path).get("component", name)
    except CoDiError as error:
        return f"{name}: {error}", 0
    if held != name or not layout:
        return f"{name}: unusable, {path.name} holds {f'the weights of {held}' if layout else 'no weights'}", 0
    parameters = sum(math.prod(shape) for _, shape in layout.values())
    kinds = Counter[str]()
    for kind, shape in layout.values():
        kinds[kind] += math.prod(shape)
    stored = _DTYPES.get(kinds.most_common(1)[0][0], torch.float32)
    loaded = weight_dtype(dtype, parameters, stored) if name in DENOISERS else codi.model.precision(name)
    device = mm.get_torch_device() if name in DENOISERS else codi.model.place(name)
    size = parameters * loaded.itemsize
    return f"{name}: file {_size(path.stat().st_size)} {_SHORT[stored]}, {_size(size)} {_name(loaded)} on {device.type}", size


def _name(dtype: torch.dtype) -> str:
    return _SHORT.get(dtype, str(dtype).removeprefix("torch."))


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

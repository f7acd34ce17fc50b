"""Weights on disk: safetensors files in which every key and every shape is checked, both ways."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import CoDiError
from .files import whole_file
from .libraries import stored_state, taken_apart

METADATA_KEY = "codi"
_FILLS = {"uniform_", "normal_", "kaiming_uniform_", "trunc_normal_", "zeros_"}  # of tensors, of nn.init and of libraries in its place


class without_random_init(TorchFunctionMode):
    """Context in which new layers skip their initialisation, which for billions of parameters takes minutes.

    Only for modules whose parameters are all overwritten afterwards; buffers computed from constants are unaffected."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def aliases(module: nn.Module) -> dict[str, str]:
    """State-dict keys of tied parameters: later key -> the first key that names the same parameter."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), key) != key:
            tied[key] = first[id(parameter)]
    return tied


def save_weights(
    tensors: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a module's state dict (tied parameters once) or plain tensors as one safetensors file, whole or not at all.

    dtype converts floating-point tensors only; None keeps each as it is. Metadata are strings in the file's header,
    stored as one JSON object: safetensors writes several entries in random order, and equal weights should be equal files.
    Raises CoDiError where the folder cannot be written or is full."""
    from safetensors.torch import save_file

    skip: Iterable[str] = ()
    if isinstance(tensors, nn.Module):
        skip, tensors = aliases(tensors), stored_state(tensors)
    data = {}
    for key, tensor in tensors.items():
        if key not in skip:
            kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            # A copy in any case: safetensors refuses views that share storage.
            data[key] = tensor.detach().to(device="cpu", dtype=kind, copy=True).contiguous()
    with whole_file(path) as temporary:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # as the user's mask has it; safetensors makes files that nobody else can read
        save_file(data, str(temporary), metadata={METADATA_KEY: json.dumps(dict(metadata or {}), sort_keys=True)})
        temporary.chmod(mode)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, on the CPU, and its metadata. Raises CoDiError naming the file."""
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, _metadata(file)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata strings of a safetensors file, without reading its tensors. Raises CoDiError naming the file."""
    with _opened(path) as file:
        return _metadata(file)


def read_layout(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Key -> dtype as the format spells it (F32, F16, BF16, I64, ...) and shape, from the header. Raises CoDiError naming the file."""
    with _opened(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}
        return {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Give `module` the tensors of a safetensors file, in the dtype and on the device that the module has.

    Where both are the file's own, the tensors are views of the mapped file: nothing is read before it is used, nothing is held twice.
    Raises CoDiError as `check_weights`; the module is then left untouched."""
    check_weights(module, path)
    holders = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    with _opened(path) as file:
        for key, tensor in taken_apart(module, {key: file.get_tensor(key) for key in file.keys()}).items():
            holders[key].data = tensor.to(device=holders[key].device, dtype=holders[key].dtype)


def check_weights(module: nn.Module, path: str | Path) -> None:
    """Every key and shape of a safetensors file must be the module's (of tied parameters one key is enough); no tensor is read.

    Raises CoDiError naming the file and the first keys that are missing, unknown or of another shape."""
    target = stored_state(module)
    tied = aliases(module)
    shapes = {key: shape for key, (_, shape) in read_layout(path).items()}
    missing = [k for k in target if k not in shapes and k not in tied]
    unknown = sorted(set(shapes) - set(target))
    wrong = [f"{k} is {shapes[k]} instead of {tuple(target[k].shape)}" for k in target if k in shapes and shapes[k] != target[k].shape]
    problems = [
        f"{len(found)} {label}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        for label, found in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
        if found
    ]
    if problems:
        raise CoDiError(
            f"{path} does not hold the weights of this {type(module).__name__} ({'; '.join(problems)}). "
            "It belongs to another component or another configuration: use the file that came with this config.json"
        )


def _metadata(file: Any) -> dict[str, str]:
    """What `save_weights` stored; empty for files of other makers."""
    try:
        stored = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return {str(key): str(value) for key, value in stored.items()} if isinstance(stored, dict) else {}


def _opened(path: str | Path) -> Any:
    """An open safetensors file, as a context manager."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CoDiError(f"{path} is missing. A CoDi model folder has config.json and one .safetensors file per component")
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CoDiError(f"{path} is not a whole safetensors file ({error}). Copy or download it again") from error

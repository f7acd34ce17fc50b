"""Functions that the host's model patches put around a prediction, called with one stream of a joint latent at a time.

A joint latent reaches samplers and guiders packed, (B, 1, N). What RescaleCFG, Perp-Neg, SAG or PAG compute of norms, blurs and further
passes is made for pictures. So each is called once for every part, as a batch of maps (B or B*F, C, H, W): a video as its frames, a text as
one position. A pass that it asks for is a pass of the whole, in which only that part is predicted."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ...codi_models.errors import CoDiError
from .said import OURS, name_of, say
from .targets import TARGETS, with_options

_KEY = "codi_stream"
_FUNCTIONS = ("sampler_pre_cfg_function", "sampler_post_cfg_function")
_NO_PICTURES = ("text", "audio")


class Streams:
    """The parts of one packed latent: names, shapes, and how each is shown to functions made for pictures."""

    def __init__(self, names: Iterable[str], shapes: Iterable[tuple[int, ...]]) -> None:
        self.shapes = dict(zip(names, map(tuple, shapes), strict=True))

    def unpack(self, x: Tensor) -> dict[str, Tensor]:
        """(rows, 1, N) -> name -> (rows, ...); a latent of one part is itself."""
        return dict(zip(self.shapes, comfy.utils.unpack_latents(x, list(self.shapes.values())), strict=True))

    def pack(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `unpack`."""
        ordered = [parts[name] for name in self.shapes]
        return comfy.utils.pack_latents(ordered)[0] if len(ordered) > 1 else ordered[0]

    def shown(self, name: str, part: Tensor) -> Tensor:
        """(rows, ...) -> (rows, C, H, W); frames of a video as (rows*F, C, H, W)."""
        if name == "video":
            return part.transpose(1, 2).flatten(0, 1)
        return part.unsqueeze(-1) if part.ndim == 3 else part

    def taken(self, name: str, part: Tensor) -> Tensor:
        """The inverse of `shown`. Raises CoDiError for another shape."""
        shape = self.shapes[name]
        if name == "video" and part.ndim == 4 and part.shape[0] % shape[2] == 0:
            part = part.unflatten(0, (-1, shape[2])).transpose(1, 2)
        elif name == "text":
            part = part.flatten(1).unsqueeze(-1)
        if tuple(part.shape[1:]) != shape[1:]:
            raise CoDiError(f"a model patch made {tuple(part.shape)} of the {name} {shape}: it cannot be used with this MODEL")
        return part

    def frames(self, name: str) -> int:
        """Rows of the shown latent for each row of the part."""
        return self.shapes[name][2] if name == "video" else 1

    def one(self, name: str, value: Any, packed: tuple[int, ...]) -> Any:
        """What a function is given for one stream: of packed latents its part, whatever else as it is."""
        if isinstance(value, Tensor) and tuple(value.shape[1:]) == packed[1:] and value.ndim == len(packed):
            return self.shown(name, self.unpack(value)[name])
        if isinstance(value, list) and value and all(isinstance(entry, Tensor) for entry in value):
            return [self.one(name, entry, packed) for entry in value]
        return value


class Remembered:
    """What patches keep in variables of their own from call to call (a running mean, an attention map), kept for each stream.

    `of` puts the variables of a stream in place; the last call puts back what was there at first."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._cells = [cell for cell in _cells(_functions(options)) if _filled(cell)]
        self._first = [cell.cell_contents for cell in self._cells]
        self._kept: dict[str, list[Any]] = {}
        self._current: str | None = None

    def of(self, stream: str | None) -> None:
        """Put in place what was kept for a stream, at first what there was before sampling; None: that again, for good."""
        if stream == self._current:
            return
        if self._current is not None:
            self._kept[self._current] = [cell.cell_contents if _filled(cell) else None for cell in self._cells]
        contents = self._first if stream is None else self._kept.get(stream, self._first)
        for cell, content in zip(self._cells, contents, strict=True):
            cell.cell_contents = content
        self._current = stream


REMEMBERED = "codi_remembered"
"""Key of transformer_options for the `Remembered` of the run that is under way."""


def streamwise(model: Any, options: dict[str, Any], own: Mapping[str, Any], x: Tensor, timestep: Tensor) -> dict[str, Any]:
    """Model options whose functions are called for each stream. `own`: options of the MODEL; what a sampler adds (CFG++) works on the
    whole latent and is left as it is."""
    shapes = [tuple(shape) for shape in model.latent_shapes or [x.shape]]
    single = options.get("model_function_wrapper"), options.get("sampler_cfg_function")
    if not any(single) and not any(options.get(key) for key in _FUNCTIONS):
        return options
    if len(shapes) == 1 and len(shapes[0]) == 4:
        return options  # as those functions expect it
    call = _Call(model, Streams(model.check(shapes), shapes), x, timestep)
    changed = dict(options)
    for key in _FUNCTIONS:
        ours = [id(f) for f in own.get(key, [])]
        if options.get(key):
            changed[key] = [call.each(f) if id(f) in ours else f for f in options[key]]
    guidance = options.get("sampler_cfg_function")
    if guidance is own.get("sampler_cfg_function") and guidance is not None:
        changed["sampler_cfg_function"] = call.each(guidance)
    if (wrapper := options.get("model_function_wrapper")) is not None:
        changed["model_function_wrapper"] = call.wrapped(wrapper)
    return changed


class _Call:
    """One prediction: its latent x and noise level, as the passes need them that functions ask for."""

    def __init__(self, model: Any, streams: Streams, x: Tensor, timestep: Tensor) -> None:
        self.model, self.streams, self.x, self.timestep = model, streams, x, timestep
        self.packed = tuple(x.shape)

    def each(self, function: Callable[[dict], Any]) -> Callable[[dict], Any]:
        """A function of the host's `args`, called for each stream that is predicted."""

        def run(args: dict) -> Any:
            results: dict[str, Any] = {}
            names = _targets(args["model_options"], self.streams.shapes)
            for name in self.streams.shapes:
                given = {key: self.streams.one(name, value, self.packed) for key, value in args.items()}
                given |= {key: self.timestep[:1] for key in ("sigma", "timestep") if key in args}
                given |= {"cond_scale": _scale(self.streams, name, args.get("cond_scale"))} if "cond_scale" in args else {}
                given["model_options"] = self.nested(args["model_options"], name)
                before = given["denoised"] if "denoised" in args else given.get("conds_out")
                if before is None:  # a function of guidance
                    before = given["uncond"] + given["cond_scale"] * (given["cond"] - given["uncond"])
                before = list(before) if isinstance(before, list) else before
                results[name] = before if name not in names else self._guarded(function, name, given, before)
            first = next(iter(results.values()))
            if isinstance(first, (list, tuple)):
                return [self._packed({n: r[i] for n, r in results.items()}) for i in range(len(first))]
            return self._packed(results)

        return run

    def wrapped(self, wrapper: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A wrapper of `apply_model`, called for each stream that is predicted."""

        def run(apply_model: Callable[..., Tensor], args: dict) -> Tensor:
            x, t = args["input"], args["timestep"]
            shape, options = tuple(x.shape), args["c"].get("transformer_options") or {}
            names, parts = _targets({"transformer_options": options}, self.streams.shapes), self.streams.unpack(x)
            made = {name: torch.zeros_like(part) for name, part in parts.items()}
            for name in names:

                def apply(part: Tensor, t: Tensor, *, _name: str = name, **c: Any) -> Tensor:
                    whole = self.streams.pack({**parts, _name: self.streams.taken(_name, part)})
                    c["transformer_options"] = {**(c.get("transformer_options") or {}), TARGETS: [_name]}
                    done = apply_model(whole, t[:: len(t) // len(whole)], **c)
                    return self.streams.shown(_name, self.streams.unpack(done)[_name])

                given = {**args, "input": self.streams.one(name, x, shape), "timestep": t.repeat_interleave(self.streams.frames(name))}
                self.model.remembered.of(name)
                made[name] = self.streams.taken(name, wrapper(apply, given))
            return self.streams.pack(made)

        return run

    def nested(self, options: dict[str, Any], name: str) -> dict[str, Any]:
        """Options of passes that a function asks for with the latent of one stream."""
        windows = options.get("context_handler")
        inner = {k: v for k, v in options.items() if k != "context_handler"}
        inner = create_model_options_clone(inner)

        def whole(executor: Any, model: Any, conds: list, x: Tensor, timestep: Tensor, asked: dict) -> list[Tensor]:
            plain = create_model_options_clone(asked)
            del plain["transformer_options"]["wrappers"][WrappersMP.CALC_COND_BATCH][_KEY]
            plain |= {} if windows is None else {"context_handler": windows}
            if tuple(x.shape) == self.packed:
                return comfy.samplers.calc_cond_batch(model, conds, x, self.timestep, plain)
            joint = self.streams.pack({**self.streams.unpack(self.x), name: self.streams.taken(name, x)})
            found = comfy.samplers.calc_cond_batch(model, conds, joint, self.timestep, with_options(plain, **{TARGETS: [name]}))
            return [self.streams.shown(name, self.streams.unpack(f)[name]) for f in found]

        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _KEY, whole, inner, is_model_options=True)
        return inner

    def _guarded(self, function: Callable[[dict], Any], name: str, given: dict, before: Any) -> Any:
        """What the function makes of a stream. Where it cannot take several rows, it gets one after the other. What fails on text or
        audio, or makes NaN of them, for want of a picture's shape, leaves them out."""
        self.model.remembered.of(name)
        try:
            try:
                made = function(given)
            except (RuntimeError, ValueError) as error:
                rows = len(given["input"])
                if rows == 1 or isinstance(error, OURS):
                    raise
                made = _joined([function(_row(given, i, rows)) for i in range(rows)])
            if name in _NO_PICTURES and not all(bool(torch.isfinite(t).all()) for t in _tensors(made)):
                raise ValueError("it makes NaN of it")
            return made
        except OURS:
            raise
        except Exception as error:
            if name not in _NO_PICTURES or len(self.streams.shapes) == 1:
                raise CoDiError(f"the model patch {name_of(function)} cannot be used with the {name} of this MODEL: {error}") from error
            say(f"the model patch {name_of(function)} has no effect on the {name}: {error}")
            return before

    def _packed(self, parts: Mapping[str, Tensor]) -> Tensor:
        return self.streams.pack({name: self.streams.taken(name, part) for name, part in parts.items()})


def _tensors(made: Any) -> list[Tensor]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _row(given: dict, index: int, rows: int) -> dict:
    """A function's args with one row of every latent."""

    def one(value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(entry, Tensor) for entry in value):
            return [one(entry) for entry in value]
        return value[index : index + 1] if isinstance(value, Tensor) and value.ndim == 4 and len(value) == rows else value

    return {key: one(value) for key, value in given.items()}


def _joined(results: list[Any]) -> Any:
    if isinstance(results[0], (list, tuple)):
        return [torch.cat(found) for found in zip(*results, strict=True)]
    return torch.cat(results)


def _targets(options: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    asked = (options.get("transformer_options") or {}).get(TARGETS)
    return [name for name in names if asked is None or name in asked]


def _scale(streams: Streams, name: str, scale: Any) -> Any:
    """Guidance of one stream, of a number for each element of a packed latent."""
    if isinstance(scale, Tensor) and scale.numel() > 1:
        return float(streams.unpack(scale)[name].flatten()[0])
    return float(scale) if isinstance(scale, Tensor) else scale


def _functions(value: Any, depth: int = 0) -> Iterable[Any]:
    """Functions in model options, which are nested dictionaries and lists."""
    if isinstance(value, (types.FunctionType, types.MethodType)):
        yield value
    elif depth < 6 and isinstance(value, Mapping):
        for key, entry in value.items():
            if key not in ("wrappers", "callbacks"):
                yield from _functions(entry, depth + 1)
    elif depth < 6 and isinstance(value, (list, tuple)):
        for entry in value:
            yield from _functions(entry, depth + 1)


def _cells(functions: Iterable[Any]) -> list[Any]:
    """Variables that functions share with the functions they were made in, and so keep from call to call."""
    seen: dict[int, Any] = {}
    waiting = list(functions)
    while waiting:
        function = waiting.pop()
        for cell in getattr(getattr(function, "__func__", function), "__closure__", None) or ():
            if id(cell) not in seen:
                seen[id(cell)] = cell
                if _filled(cell) and isinstance(cell.cell_contents, (types.FunctionType, types.MethodType)):
                    waiting.append(cell.cell_contents)
    return list(seen.values())


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True

"""LoRA files of Stable Diffusion 1.5 on CoDi's denoisers, through the host's own LoRA loaders.

The UNet of pictures and clips is Stable Diffusion's with temporal modules and connectors added. The host turns the names in a LoRA
file into state-dict keys of that network; a patcher of this module turns those into CoDi's keys, checks the shapes, and hands what a
joint MODEL is given to the member that it was made for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
from comfy.weight_adapter import LoRAAdapter

from ...codi_models.config import UNetConfig
from ...codi_models.errors import CoDiError

MEMBERS = "codi"
"""Key under which a joint MODEL holds its members, additional models of the host."""

PREFIX = "diffusion_model."
_BLOCK = re.compile(r"^(diffusion_model\.(?:(?:input|output)_blocks\.\d+|middle_block)\.\d+)\.")
_DEEPER = re.compile(_BLOCK.pattern + r"0\.(?=(?:in_layers|emb_layers|out_layers|skip_connection)\.)")


def key_map_config(config: Any) -> dict[str, Any]:
    """The entries of a host's `unet_config` from which it names the layers of a UNet as LoRA files do; empty for other networks.

    The host counts blocks as if every level had equally many, so that other UNets get no such names."""
    if not isinstance(config, UNetConfig) or len(set(config.num_blocks)) > 1:
        return {}
    depths = [int(attends) for attends in config.with_attention]
    return {
        "num_res_blocks": list(config.num_blocks),
        "channel_mult": list(config.channel_mult),
        "transformer_depth": [d for d, n in zip(depths, config.num_blocks, strict=True) for _ in range(n)],
        "transformer_depth_output": [d for d, n in zip(depths, config.num_blocks, strict=True) for _ in range(n + 1)],
        "transformer_depth_middle": 1,
    }


def own_key(key: str, known: Mapping[str, Any] | set[str]) -> str | None:
    """The key of `known` that a Stable Diffusion key means: a ResBlock with a temporal module behind it lies one level deeper."""
    deeper = _BLOCK.sub(r"\1.0.", key)
    return deeper if deeper in known else key if key in known else None


def with_other_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with Stable Diffusion's keys beside ours where the two differ: the host knows names in LoRA files by state-dict keys."""
    return {_DEEPER.sub(r"\1.", key): value for key, value in weights.items()} | dict(weights)


def without_other_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """What `with_other_names` was given."""
    return {key: value for key, value in weights.items() if own_key(key, weights) == key}


class RootedPatching:
    """Mixed into patcher classes of the host whose clones are many and short-lived."""

    def clone(self, *args: Any, **kw: Any) -> Any:
        """As the host's, but a clone's parent is the first patcher of its model, which lives as long as any other.

        When a patcher goes, the host books what is loaded on its parent. Where both go in one collection of garbage (a failed run's
        traceback holds both) it finds none, takes the model for leaked, and collects all garbage before every later run."""
        made = super().clone(*args, **kw)  # type: ignore[misc]
        if made.model is self.model:  # type: ignore[attr-defined]
            made.parent = self.parent or self  # type: ignore[attr-defined]
        return made


class DenoiserPatching(RootedPatching):
    """Mixed into a patcher class of the host, for the MODEL of one denoiser, whose state dict has some weights under two names."""

    def model_size(self) -> int:
        """Bytes of the weights."""
        if self.size <= 0:  # type: ignore[has-type]
            self.size = mm.module_size(self.model.diffusion_model)  # type: ignore[attr-defined]
        return self.size

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Any]:
        """Every weight once, by our key."""
        weights = without_other_names(super().model_state_dict())  # type: ignore[misc]
        return {key: value for key, value in weights.items() if key.startswith(filter_prefix or "")}

    def add_patches(self, patches: Mapping[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0) -> list[Any]:
        """As the host's; keys may be Stable Diffusion's. Patches of another shape are left out with a warning.

        Raises CoDiError where there are patches for this network and none of them fits it."""
        placed, wrong = place(patches, self.model.weight_shapes())  # type: ignore[attr-defined]
        _report(wrong, any_fits=bool(placed))
        with self.model.keys_only():  # type: ignore[attr-defined]
            super().add_patches({own: patch for own, (_, patch) in placed.items()}, strength_patch, strength_model)  # type: ignore[misc]
        return [given for given, _ in placed.values()]

    def add_hook_patches(self, hook: Any, patches: Mapping[Any, Any], *args: Any, **kw: Any) -> list[Any]:
        """As `add_patches`, for what is scheduled on CONDITIONING."""
        placed, wrong = place(patches, self.model.weight_shapes())  # type: ignore[attr-defined]
        _report(wrong, any_fits=bool(placed))
        super().add_hook_patches(hook, {own: patch for own, (_, patch) in placed.items()}, *args, **kw)  # type: ignore[misc]
        return [given for given, _ in placed.values()]


class JointPatcher(RootedPatching, comfy.model_patcher.ModelPatcher):
    """Patcher of a joint MODEL, which has no weights: patches go to its members, whose weights the host moves and patches.

    Its keys are its members' behind the component's name, `diffusion_model.vision_denoiser.input_blocks...`. A LoRA that names no
    component goes, whole, to the member that most of it fits; the first of equals, and the vision denoiser is first."""

    def __init__(self, model: Any, load_device: Any, offload_device: Any, size: int = 0, weight_inplace_update: bool = False) -> None:
        # The members count their weights themselves; one byte stands for none, which the host would take for "not counted yet".
        super().__init__(model, load_device, offload_device, size=max(size, 1), weight_inplace_update=weight_inplace_update)

    def members(self) -> dict[str, Any]:
        """Component -> patcher of the member, in the order in which they were composed."""
        return dict(zip(self.model.diffusion_model.components, self.get_additional_models_with_key(MEMBERS), strict=True))

    def set_model_compute_dtype(self, dtype: Any) -> None:
        """As the host's; the members are what computes."""
        super().set_model_compute_dtype(dtype)
        for member in self.members().values():
            member.set_model_compute_dtype(dtype)

    def add_patches(self, patches: Mapping[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0) -> list[Any]:
        """Give every patch to its member. Returns the keys that one took; errors as `DenoiserPatching.add_patches`."""
        taken: list[Any] = []
        for component, part in self._shared_out(patches).items():
            took = self.members()[component].add_patches({own: patch for own, (_, patch) in part.items()}, strength_patch, strength_model)
            taken += [part[own][0] for own in took]
        with self.model.keys_only():
            super().add_patches({}, strength_patch, strength_model)  # marks this MODEL as another one
        return taken

    def add_hook_patches(self, hook: Any, patches: Mapping[Any, Any], *args: Any, **kw: Any) -> list[Any]:
        """What is scheduled on CONDITIONING is switched by this patcher itself, under its own keys."""
        canonical: dict[Any, Any] = {}
        given: list[Any] = []
        for component, part in self._shared_out(patches).items():
            placed, wrong = place({own: patch for own, (_, patch) in part.items()}, self.members()[component].model.weight_shapes())
            _report(wrong, any_fits=bool(placed))
            for own, (key, patch) in placed.items():
                canonical[_renamed(own, lambda k: component_key(component, k))] = patch  # noqa: B023
                given.append(part[key][0])
        super().add_hook_patches(hook, canonical, *args, **kw)
        return given

    def get_key_patches(self, filter_prefix: str | None = None) -> dict[str, Any]:
        """Weights and patches of all members, as nodes that merge MODELs ask for them."""
        return {
            name: patches
            for component, member in self.members().items()
            for key, patches in member.get_key_patches(PREFIX).items()
            if (name := component_key(component, key)).startswith(filter_prefix or "")
        }

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Any]:
        """Weights of all members by the keys of this MODEL."""
        starts = tuple(component_key(c, PREFIX) for c in self.members())
        return {k: v for k, v in self.model.state_dict().items() if k.startswith(starts) and k.startswith(filter_prefix or "")}

    def model_patches_models(self) -> list[Any]:
        """What the host loads with this patcher: on hosts that save the weights of loaded models (0.8), the members too."""
        found = super().model_patches_models()
        return found if hasattr(comfy.model_patcher.ModelPatcher, "state_dict_for_saving") else [*found, *self.members().values()]

    def state_dict_for_saving(self, clip_state_dict: Any = None, vae_state_dict: Any = None, clip_vision_state_dict: Any = None) -> Any:
        """Weights of all members with their patches, as `LatentModel.state_dict_for_saving`.

        The host saves weights as they lie in a network that is loaded: with the patches of whichever MODEL was loaded last."""
        refuse_others(clip_state_dict, vae_state_dict, clip_vision_state_dict)
        mm.load_models_gpu(list(self.members().values()))
        return {key: value for member in self.members().values() for key, value in member.state_dict_for_saving().items()}

    def _shared_out(self, patches: Mapping[Any, Any]) -> dict[str, dict[Any, tuple[Any, Any]]]:
        """Component -> member's key -> (key given, patch)."""
        members = self.members()
        shared: dict[str, dict[Any, tuple[Any, Any]]] = {}
        nameless: dict[Any, Any] = {}
        for key, patch in patches.items():
            component = next((c for c in members if name_of(key).startswith(component_key(c, PREFIX))), None)
            if component is None:
                nameless[key] = patch
            else:
                start = len(component_key(component, PREFIX))
                own = _renamed(key, lambda k: PREFIX + k[start:])  # noqa: B023
                shared.setdefault(component, {})[own] = (key, patch)
        if nameless:
            fitting = {c: len(place(nameless, member.model.weight_shapes())[0]) for c, member in members.items()}
            best = max(fitting, key=lambda c: fitting[c])
            shared.setdefault(best, {}).update({key: (key, patch) for key, patch in nameless.items()})
        return shared


def refuse_others(*others: Any) -> None:
    """Raises CoDiError where any other network is to go into the file of a MODEL."""
    if any(other is not None for other in others):
        raise CoDiError(
            "a checkpoint of CLIP, VAE and CoDi in one file could be loaded by nothing: save the MODEL alone with Save Model; "
            "`codi.py convert` makes a model folder of such a file"
        )


def component_key(component: str, key: str) -> str:
    """Key of a joint MODEL for a member's key."""
    return f"{PREFIX}{component}.{key.removeprefix(PREFIX)}"


def joint_state_dict(networks: Mapping[str, Any]) -> dict[str, Any]:
    """State dict of a joint MODEL: every member's behind its name, and without a name as LoRA files know it."""
    keys: dict[str, Any] = {}
    for component, network in networks.items():
        for key, value in network.state_dict().items():
            keys[f"{PREFIX}{component}.{key}"] = value
            keys.setdefault(PREFIX + key, value)
    return with_other_names(keys)


def denoiser_patcher(model: Any, *, load: Any, rest: Any, plain: bool) -> Any:
    """Patcher of one denoiser, of the kind that the host uses on this device; `plain` for the one that keeps weights whole."""
    base = comfy.model_patcher.ModelPatcher
    if not plain and not mm.is_device_cpu(load):
        # The host rebinds CoreModelPatcher at start: looked up here, not imported.
        base = getattr(comfy.model_patcher, "CoreModelPatcher", base)
    return _patcher_class(base)(model, load_device=load, offload_device=rest)


@cache
def _patcher_class(base: type) -> Any:
    """One class for each of the host's, so that MODELs of one kind are of one type."""
    return type("DenoiserPatcher", (DenoiserPatching, base), {})


def name_of(key: Any) -> str:
    """The host's keys are strings, or tuples that start with one where a patch changes a part of a weight."""
    return key if isinstance(key, str) else key[0]


def place(patches: Mapping[Any, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[Any, tuple[Any, Any]], list[str]]:
    """Own key -> (key given, patch) of the patches that fit weights of these shapes, and what is wrong with the others that name one."""
    placed: dict[Any, tuple[Any, Any]] = {}
    wrong: list[str] = []
    for key, patch in patches.items():
        own = own_key(name_of(key), shapes)
        if own is None:
            continue
        shape = shapes[own]
        made_for = _shape_of(patch, shape) if isinstance(key, str) else shape
        if made_for == shape:
            placed[_renamed(key, lambda _: own)] = (key, patch)  # noqa: B023
        else:
            wrong.append(f"{own} is {shape} here and {made_for} there")
    return placed, wrong


def _renamed(key: Any, change: Any) -> Any:
    return change(key) if isinstance(key, str) else (change(key[0]), *key[1:])


def _shape_of(patch: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the weight that a patch was made for, as far as it tells; `shape` where it would fit."""
    if isinstance(patch, LoRAAdapter):
        up, down, _, middle, _, reshape = patch.weights[:6]
        if reshape is not None:
            return shape
        kernel = tuple(middle.shape[2:]) if middle is not None else tuple(down.shape[2:])
        made_for = (up.shape[0], down.shape[1], *kernel)
        rows_and_columns = (shape[0], _product(shape[1:])) == (made_for[0], _product(made_for[1:]))
        return shape if rows_and_columns and up.flatten(1).shape[1] == down.shape[0] else made_for
    if isinstance(patch, tuple) and len(patch) > 1 and patch[0] == "diff" and len(patch[1]) == 1:
        return tuple(patch[1][0].shape)
    return shape


def _product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _report(wrong: list[str], *, any_fits: bool) -> None:
    if not wrong:
        return
    if not any_fits:
        raise CoDiError(
            f"this LoRA was made for another network: {wrong[0]}{f', and {len(wrong) - 1} more' if len(wrong) > 1 else ''}. "
            "Give one for this denoiser; the vision denoiser of the published CoDi takes those of Stable Diffusion 1.5"
        )
    logging.warning("CoDi: %d weights of this LoRA do not fit and are left out: %s", len(wrong), "; ".join(wrong[:3]))

"""Published files as they may turn up: types, wrappers, divisions, extras and gaps drawn at random from a seed."""

from __future__ import annotations

import json
import random
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from codi.codi_models.conversion.layout import PREFIXES
from torch import Tensor

UNETS = [prefix for prefix in PREFIXES.values() if "unet" in prefix]
ZERO_STARTS = ("frameshiftblock.out_layers.2.", "temporal_attn.to_out.", "ff.proj_out.1.", "_in.")  # of the last, connectors' proj_out


@dataclass
class Variant:
    """What was done to one published file: paths to give, and the weights that have to come out, by published key."""

    paths: list[Path]
    expected: dict[str, Tensor]
    done: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)  # that the notes must hold


def draw(state: dict[str, Tensor], folder: Path, seed: int) -> Variant:
    """Write one variant of a published file into `folder`."""
    dice = random.Random(seed)
    folder.mkdir(parents=True)
    tensors = dict(state)
    variant = Variant([], dict(state))
    kind = dice.choice([torch.float16, torch.float16, torch.float32, torch.bfloat16])
    variant.done.append(str(kind))
    tensors = {key: value.to(kind) if value.is_floating_point() or kind == torch.float16 else value for key, value in tensors.items()}
    changes = [_gaps, _tied, _counters, _second_set, _average, _known_extras, _unknown_extras]
    chosen = dice.sample(changes, dice.randint(1, 4))
    for change in changes:  # in this order, because some take over what others left
        if change in chosen:
            change(tensors, variant, dice)
    keys = list(tensors)
    dice.shuffle(keys)
    tensors = {key: tensors[key] for key in keys}
    _write(tensors, folder, variant, dice)
    return variant


def _gaps(tensors: dict[str, Tensor], variant: Variant, dice: random.Random) -> None:
    """Branches that start at zero, some without their last layer alone, some as a whole."""
    lasts = [k for k in tensors if k.endswith(".weight") and any(part in k for part in ZERO_STARTS[:3])]
    lasts += [k for k in tensors if "connecters_in" in k and k.endswith("proj_out.weight")]
    for key in dice.sample(lasts, min(len(lasts), dice.randint(1, 3))):
        end = ".temporal_attn" if ".temporal_attn." in key else ".proj_out" if "connecters" in key else ".out_layers"
        root = key.rpartition(end)[0]
        whole = dice.random() < 0.5 and (".frameshiftblock" in key or "connecters_in" in key)
        gone = [k for k in tensors if (k.startswith(f"{root}.") if whole else k in (key, key.replace(".weight", ".bias")))]
        for k in gone:
            del tensors[k]
            variant.expected[k] = torch.zeros_like(variant.expected[k])
        variant.words.append("begin as the identity")
        variant.done.append(f"without {len(gone)} of {root}")


def _second_set(tensors: dict[str, Tensor], variant: Variant, dice: random.Random) -> None:
    groups = sorted({k.rpartition("connecters_out.")[0] for k in tensors if "connecters_out." in k})
    groups = groups or [dice.choice(sorted(tensors)).split(".")[0]]
    root = dice.choice(groups)
    inside = [k for k in tensors if k.startswith(f"{root}connecters_out.")] or [k for k in tensors if k.startswith(f"{root}.")][:30]
    name = "connecters_out" if "connecters_out" in inside[0] else root
    other = dice.choice([f"{name}_of_another1", f"{name}2", f"former_{name}", f"{name}s.before"])
    factor = dice.choice([1, 2])
    for k in inside:
        tensors[k.replace(name, other, 1)] = tensors[k] * factor if tensors[k].is_floating_point() else tensors[k].clone()
    variant.words += ["repeat names and shapes", "with the same numbers" if factor == 1 else "with other numbers"]
    variant.done.append(f"{len(inside)} again as {other}, times {factor}")


def _average(tensors: dict[str, Tensor], variant: Variant, dice: random.Random) -> None:
    own = [k for k in tensors if k in variant.expected]
    style = dice.choice(["ema.", "model_ema.", "state_dict_ema.module.", "dotless"])
    for k in own:
        if style != "dotless":
            tensors[style + k] = tensors[k] + 1
        elif k.startswith("model."):
            tensors[f"model_ema.{k.removeprefix('model.').replace('.', '')}"] = tensors[k] + 1
    if style != "dotless" or own[0].startswith("model."):
        variant.words.append("moving average")
    tensors["model_ema.num_updates"] = torch.tensor(7)
    variant.done.append(f"average {style}")


def _known_extras(tensors: dict[str, Tensor], variant: Variant, dice: random.Random) -> None:
    extras = {
        "logvar": torch.zeros(10), "betas": torch.ones(10), "global_step": torch.tensor(3),
        "clap.model.text_branch.encoder.layer.0.weight": torch.ones(4, 4), "clap.model.text_projection.0.weight": torch.ones(4, 4),
        "clap.model.logit_scale_t": torch.ones(()), "audioldm.loss.discriminator.main.0.weight": torch.ones(4, 1),
        "clip.model.text_model.embeddings.position_ids": torch.arange(7.0)[None].half(),
    }  # fmt: skip
    for key in dice.sample(sorted(extras), 4):
        tensors[key] = extras[key]
    variant.done.append("known extras")


def _unknown_extras(tensors: dict[str, Tensor], variant: Variant, dice: random.Random) -> None:
    for i in range(dice.randint(1, 40)):
        tensors[f"{dice.choice(['some', 'model.diffusion_model.unet_extra', 'head'])}.thing.{i}.kernel"] = torch.ones(3, 1 + i)
    variant.words.append("not of the published layout and left out")
    variant.done.append("unknown extras")


def _counters(tensors: dict[str, Tensor], variant: Variant, dice: random.Random) -> None:
    for key in [k for k in tensors if k.endswith("num_batches_tracked") and k in variant.expected]:
        how = dice.choice(["absent", "infinite", "float32"])
        variant.expected[key] = torch.tensor(0)
        if how == "absent":
            del tensors[key]
        else:
            tensors[key] = torch.tensor(float("inf")).half() if how == "infinite" else torch.tensor(123456.0)
            variant.expected[key] = torch.tensor(0 if how == "infinite" else 123456)
        variant.done.append(f"counter {how}")


def _tied(tensors: dict[str, Tensor], variant: Variant, dice: random.Random) -> None:
    kept, head = "optimus.decoder.transformer.wte.weight", "optimus.decoder.lm_head.weight"
    if kept not in tensors:
        return
    how = dice.choice(["no head", "head alone", "head differs"])
    if how == "no head":
        tensors.pop(head, None)
    else:
        tensors[head] = tensors[kept] + 1
        variant.expected[kept] = tensors[head].float()
        if how == "head alone":
            del tensors[kept]
        variant.words.append("tied to it" if how == "head alone" else "one parameter with two values")
    variant.done.append(how)


def _write(tensors: dict[str, Tensor], folder: Path, variant: Variant, dice: random.Random) -> None:
    """One file or several, in one of the formats, with containers and prefixes around the weights."""
    form = dice.choice(["torch", "torch", "torch", "legacy", "safetensors"])
    before = dice.choice(["", "", "module.", "_orig_mod.module.", "state_dict.", "net."])
    shards = dice.choice([1, 1, 2, 3])
    named = [(before + key, value) for key, value in tensors.items()]
    parts = [dict(named[i::shards]) for i in range(shards)]
    protocol = dice.choice([2, 2, 3, 4, 5])
    around = dice.choice(["none", "none", "state_dict", "model and optimiser", "nested", "list"])
    variant.done.append(f"{form}, {before!r}, {shards} files, protocol {protocol}, {around}")
    for i, part in enumerate(parts):
        if form == "safetensors":
            from safetensors.torch import save_file

            path = folder / f"part-{i}.safetensors"
            save_file({key: value.clone().contiguous() for key, value in part.items()}, str(path))
        else:
            if dice.random() < 0.3:
                part = _shared(part)
            path = folder / f"part-{i}.{dice.choice(['pth', 'pt', 'bin', 'ckpt'])}"
            torch.save(_around(part, around), path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "torch")
        variant.paths.append(path)
    if shards > 1 and dice.random() < 0.5:
        index = {"metadata": {}, "weight_map": {key: variant.paths[i].name for i, part in enumerate(parts) for key in part}}
        (folder / "model.index.json").write_text(json.dumps(index))
        variant.paths = [dice.choice([folder, folder / "model.index.json"])]
    variant.done.append(", ".join(path.name for path in variant.paths))


def _shared(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers as views of one storage for each type."""
    shared: dict[str, Tensor] = {}
    for kind in {value.dtype for value in part.values()}:
        same = [(key, value) for key, value in part.items() if value.dtype == kind]
        whole = torch.cat([value.flatten() for _, value in same])
        pieces = whole.split([value.numel() for _, value in same])
        shared |= {key: piece.view_as(value) for (key, value), piece in zip(same, pieces, strict=True)}
    return shared


def _around(part: dict[str, Tensor], around: str) -> Any:
    if around == "state_dict":
        return {"state_dict": OrderedDict(part), "epoch": 3, "hyper_parameters": {"lr": 0.1, "name": "x"}}
    if around == "model and optimiser":
        states = {i: {"exp_avg": torch.ones(3), "step": torch.tensor(5.0)} for i in range(3)}
        return {"model": part, "optimizer": {"state": states, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}, "lr_scheduler": {"last": 3}}
    if around == "nested":
        nested: dict[str, Any] = {}
        for key, value in part.items():
            *places, last = key.split(".")
            inner = nested
            for place in places:
                inner = inner.setdefault(place, {})
            if isinstance(inner.get(last), dict):  # one name for a tensor and for what holds others
                nested[key] = value
            else:
                inner[last] = torch.nn.Parameter(value) if value.is_floating_point() else value
        return nested
    return [part, {"epoch": 3}] if around == "list" else part

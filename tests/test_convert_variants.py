"""Files as they may turn up, drawn from seeds: all that can be right is converted, weight by weight as it has to be."""

from __future__ import annotations

import random

import published
import pytest
import torch
from codi.codi_models.checkpoints import read_weights
from codi.codi_models.conversion.convert import convert
from codi.codi_models.conversion.layout import TIED, layout, left_out
from codi.codi_models.errors import CoDiError
from host.tiny import tiny_config
from variants import draw

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def states():
    return published.state(CONFIG)


def own_weights(state):
    return {key: value for key, value in state.items() if left_out(key) is None}


@pytest.mark.parametrize("seed", range(80))
def test_variants_are_converted(states, tmp_path, seed):
    state = own_weights(states[sorted(states)[seed % len(states)]])
    variant = draw(state, tmp_path / "in", seed)
    result = convert(variant.paths, tmp_path / "out", dtype="fp32", config=CONFIG, allow_half=True)
    told = "\n".join(result.notes)
    assert all(word in told for word in variant.words), (variant.done, told)
    entries, done = layout(CONFIG).entries, " | ".join(variant.done)
    assert set(result.components) == {entries[key].component for key in state}, done
    kind = getattr(torch, variant.done[0].removeprefix("torch."))
    for name in result.components:
        weights, _ = read_weights(tmp_path / "out" / f"{name}.safetensors")
        for key, entry in layout(CONFIG).of(name).items():
            expected = variant.expected[key]
            expected = expected.to(kind).float() if entry.floating else expected
            assert torch.equal(weights[entry.key], expected.reshape(entry.shape)), (key, done)


@pytest.mark.parametrize("seed", range(20))
def test_variants_that_cannot_be_right_are_refused(states, tmp_path, seed):
    dice = random.Random(seed)
    state = own_weights(states[sorted(states)[seed % len(states)]])
    never_zero = [
        key
        for key, value in state.items()
        if value.is_floating_point() and value.numel() > 1 and key not in (*TIED, *TIED.values())
        and any(part in key for part in ("conv_in", "time_embed", "patch_embed", "embeddings", "mlp", "up.", "ups.", "input_blocks.0."))
    ]  # fmt: skip
    key = dice.choice(never_zero)
    changed = dict(state)
    how = ["missing", "shape", "type"][seed % 3]
    if how == "missing":
        del changed[key]
    else:
        changed[key] = changed[key][:-1] if how == "shape" else changed[key].bool()
    torch.save(changed, tmp_path / "wrong.pth")
    with pytest.raises(CoDiError) as refusal:
        convert([tmp_path / "wrong.pth"], tmp_path / "out", config=CONFIG)
    words = {"missing": "keys are missing", "shape": "have another shape", "type": "another kind of numbers"}
    assert key in str(refusal.value) and words[how] in str(refusal.value) and "Download it again" not in str(refusal.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.safetensors"))

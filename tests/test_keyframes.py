"""Weights that change along the run, frames or a batch."""

from __future__ import annotations

import pytest
import torch
from codi.codi_models.conditioning import mix
from codi.codi_models.errors import CoDiError
from codi.codi_models.keyframes import Curve, WeightedPrompt, blend, describe
from torch.nn.functional import normalize


def point(seed: int, batch: int = 1) -> torch.Tensor:
    return normalize(torch.randn(batch, 1, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


A, B = point(1), point(2)
DOWN, UP = Curve((0.0, 1.0), (1.0, 0.0)), Curve((0.0, 1.0), (0.0, 1.0))


def test_curve() -> None:
    curve = Curve.parse("0.2:1, 0.6:0")
    assert curve is not None and Curve.parse(" ") is None
    assert [round(curve.at(x), 6) for x in (0, 0.2, 0.4, 0.6, 1)] == [1, 1, 0.5, 0, 0]
    assert Curve.of([2, 4, 0]).at(0.75) == 2 and Curve.of([3]).at(0.9) == 3
    for text, words in (("0:1, 0:2", "ascend"), ("0.5:1, 0.2:1", "ascend"), ("0:nan", "finite"), ("1", "no key"), ("0:1, 2:1", "ascend")):
        with pytest.raises(CoDiError, match=words):
            Curve.parse(text)
    with pytest.raises(CoDiError, match="at least one key"):
        Curve.of([])


def test_weights_that_do_not_change_are_the_plain_mixture() -> None:
    for method in ("linear", "renormalised", "spherical", "add-subtract"):
        for over in ("steps", "frames", "batch"):
            level = Curve((0.0,), (1.0,))
            (one,) = blend([WeightedPrompt(A, 2.0, curve=level), WeightedPrompt(B, 1.0)], method, over, 1 if over == "batch" else 4)
            assert one.frames is None and (one.start, one.end) == (0, 1)
            assert torch.equal(one.prompt, mix([A, B], [2, 1], method))


def test_over_steps() -> None:
    segments = blend([WeightedPrompt(A, curve=DOWN), WeightedPrompt(B, curve=UP)], "linear", "steps", 4)
    assert [(s.start, s.end) for s in segments] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert torch.allclose(segments[0].prompt, mix([A, B], [0.875, 0.125]))


def test_prompts_that_start_and_end() -> None:
    segments = blend([WeightedPrompt(A, end=0.4), WeightedPrompt(B, start=0.2)], "linear")
    assert [(s.start, s.end) for s in segments] == [(0, 0.2), (0.2, 0.4), (0.4, 1)]
    for segment, expected in zip(segments, (A, mix([A, B]), B), strict=True):
        assert torch.allclose(segment.prompt, expected)
    with pytest.raises(CoDiError, match="50 to 100 % of the run"):
        blend([WeightedPrompt(A, end=0.5)], "linear")
    with pytest.raises(CoDiError, match="start comes before end"):
        WeightedPrompt(A, start=0.5, end=0.5)


def test_over_frames_and_batch() -> None:
    weighted = [WeightedPrompt(A, curve=DOWN), WeightedPrompt(B, curve=UP)]
    (clip,) = blend(weighted, "spherical", "frames", 5)
    whole = clip.prompt[:, None] + clip.frames
    assert whole.shape == (1, 5, 1, 16)
    assert torch.allclose(whole[:, 0], A, atol=1e-6) and torch.allclose(whole[:, 4], B, atol=1e-6)
    (batch,) = blend(weighted, "spherical", "batch", 5)
    assert torch.allclose(batch.prompt, whole[0], atol=1e-6)
    assert describe([clip], weighted).count("norm") == 5
    with pytest.raises(CoDiError, match="batch of 3"):
        blend([WeightedPrompt(point(1, 3), curve=DOWN), WeightedPrompt(B)], "linear", "batch", 4)
    with pytest.raises(CoDiError, match="3 and 4|do not go together"):
        blend([WeightedPrompt(point(1, 3)), WeightedPrompt(point(2, 4))], "linear")


def test_add_and_subtract() -> None:
    assert torch.allclose(mix([A, B], [1, -1], "add-subtract"), A - B)
    assert torch.allclose(mix([A, B], [2, 1], "add-subtract"), 2 * A + B)
    with pytest.raises(CoDiError, match="cancel out"):
        mix([A, A], [1, -1], "add-subtract")

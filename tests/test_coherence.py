"""Similarities, ranking, main axes and their pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from codi.codi_models.coherence import best, encode_outputs, principal_axes, scores, similarities
from codi.codi_models.conditioning import Prompt, encode_prompt
from codi.codi_models.encoders.shared_space import SharedSpace
from codi.codi_models.errors import CoDiError
from codi.codi_models.figures import clipped, draw_matrix, draw_points, draw_spectrogram, font, from_image, to_image
from codi.codi_models.model import CoDi
from random_model import random_model
from torch.nn.functional import normalize


def unit(*angles: float) -> torch.Tensor:
    """Unit vectors of the plane at these degrees, (B, 1, 2)."""
    radians = torch.tensor(angles) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=-1)[:, None]


def test_similarities_are_cosines_whatever_the_length():
    matrix = similarities([3 * unit(0, 0), unit(60), unit(90, 180)])
    assert matrix.shape == (2, 3, 3)
    assert torch.allclose(matrix[0, 0], torch.tensor([1.0, 0.5, 0.0]), atol=1e-6)
    assert torch.allclose(matrix[1, :, 2], torch.tensor([-1.0, -0.5, 1.0]), atol=1e-6)
    assert torch.allclose(matrix, matrix.transpose(1, 2))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([], "are \\(batch, 1, D\\)"),
        ([torch.ones(1, 2, 8)], "are \\(batch, 1, 8\\)"),
        ([torch.ones(1, 1, 8), torch.ones(1, 1, 9)], "one model"),
        ([torch.ones(2, 1, 8), torch.ones(3, 1, 8)], "2 and 3"),
        ([torch.zeros(1, 1, 8)], "zero"),
        ([torch.full((1, 1, 8), float("nan"))], "NaN"),
    ],
)
def test_points_that_cannot_be_compared(points, words):
    with pytest.raises(CoDiError, match=words):
        similarities(points)


def test_scores_are_means_over_the_chosen_pairs():
    matrix = similarities([unit(0), unit(60), unit(90)])  # a prompt and two outputs
    pairs = {"prompts": (0.5 + 0.0) / 2, "outputs": math.cos(math.pi / 6), "all": (0.5 + 0.0 + math.cos(math.pi / 6)) / 3}
    for among, expected in pairs.items():
        assert float(scores(matrix, 2, among=among)) == pytest.approx(expected, abs=1e-6)
    two_prompts = scores(similarities([unit(0), unit(180), unit(90)]), 1)  # the pair of prompts says nothing about the output
    assert float(two_prompts) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(CoDiError, match="no pair"):
        scores(matrix[:, 1:, 1:], 2, among="prompts")
    with pytest.raises(CoDiError, match="sideways"):
        scores(matrix, 2, among="sideways")


def test_best_first_and_ties_in_order():
    score = torch.tensor([0.1, 0.9, 0.4, 0.9])
    assert best(score, 3) == [1, 3, 2] and best(score, 99) == [1, 3, 2, 0]
    with pytest.raises(CoDiError, match="0 items"):
        best(score, 0)


def test_outputs_are_encoded_as_prompts_are(tmp_path):
    model = CoDi.from_pretrained(random_model(tmp_path / "m"), device="cpu")
    generator = torch.Generator().manual_seed(0)
    image, video = torch.rand(2, 3, 64, 64, generator=generator), torch.rand(2, 4, 3, 64, 64, generator=generator)
    audio, text = torch.rand(2, 20480, generator=generator) - 0.5, ["a red star", "a blue circle"]
    points = encode_outputs(model, {"image": image, "video": video, "audio": audio, "text": text})
    for kind, values in (("image", image), ("video", video), ("audio", [(a, 16000) for a in audio]), ("text", text)):
        assert points[kind].shape == (2, 1, 128)
        for row, value in zip(points[kind], values, strict=True):
            assert torch.equal(row[None], encode_prompt(model, Prompt(kind, value)))


def test_main_axes_keep_what_differs_most():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    flat = torch.zeros(9, 16)
    flat[:, 0], flat[:, 1] = torch.randn(9, generator=generator) * 5, torch.randn(9, generator=generator)
    flat[:, 2] = torch.randn(9, generator=generator) * 0.01
    coordinates, shares = principal_axes(flat @ turn + 3)
    assert coordinates.shape == (9, 2) and shares[0] > shares[1] > 0 and 0.999 < sum(shares) <= 1.0001
    assert torch.allclose(torch.cdist(coordinates, coordinates), torch.cdist(flat, flat), atol=0.05)
    again, _ = principal_axes(flat @ turn - 1)
    assert torch.allclose(coordinates, again, atol=1e-3)
    assert (coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True)) > 0).all()
    pair, shares = principal_axes(torch.eye(4)[:2])
    assert float((pair[0] - pair[1]).norm()) == pytest.approx(math.sqrt(2), abs=1e-5) and shares == (1.0, pytest.approx(0, abs=1e-9))
    same, shares = principal_axes(torch.ones(3, 4))
    assert not same.any() and shares == (0.0, 0.0)
    with pytest.raises(CoDiError, match="at least two"):
        principal_axes(torch.ones(1, 4))


def test_restore_undoes_align():
    generator = torch.Generator().manual_seed(0)
    space = SharedSpace({"image": normalize(torch.randn(32, generator=generator), dim=0) * 0.7})
    embedding = normalize(torch.randn(5, 1, 32, generator=generator), dim=-1)
    assert torch.allclose(space.restore(space.align(embedding, "image") * 3, "image"), embedding, atol=1e-5)
    assert torch.allclose(space.restore(2 * embedding, "audio"), embedding, atol=1e-6)


def test_matrix_picture_is_warm_where_things_agree():
    labels, kinds = ["a very long label that cannot fit beside the matrix", "picture", "sound"], ["text", "image", "audio"]
    matrix = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    picture = to_image(draw_matrix(matrix, labels, kinds, "title"))

    def cell(row: int, column: int) -> torch.Tensor:
        return picture[44 + row * 72 + 6, 168 + column * 72 + 6]  # beside the number

    for row in range(3):
        for column in range(3):
            red, _, blue = cell(row, column).tolist()
            value = float(matrix[row, column])
            assert (red > blue + 0.3) == (value == 1) and (blue > red + 0.3) == (value == -1)


def test_points_are_drawn_where_they_are():
    coordinates = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.5]])
    picture = to_image(draw_points(coordinates, ["left", "right", "top"], ["image", "audio", "video"], (0.8, 0.1)))
    found = []
    for kind in ((98, 190, 120), (235, 116, 101), (91, 158, 245)):
        where = (picture * 255 - torch.tensor(kind)).abs().amax(dim=-1) < 2
        rows, columns = where.nonzero(as_tuple=True)
        assert len(rows) > 60
        dots = [
            (int(c), int(r)) for r, c in zip(rows, columns, strict=True) if bool(where[max(r - 3, 0) : r + 4, max(c - 3, 0) : c + 4].all())
        ]
        found.append(dots[len(dots) // 2])
    left, right, top = found
    assert left[0] < top[0] < right[0] and abs(left[1] - right[1]) < 5 and top[1] < left[1] - 20
    one_place = draw_points(torch.zeros(4, 2), ["a", "b", "c", "d"], ["text"] * 4, (0.0, 0.0))  # labels evade each other
    assert np.asarray(one_place).std() > 0


def test_spectrogram_has_low_bands_below_and_time_to_the_right():
    loudness = torch.zeros(20, 10)
    loudness[15:, :3] = 1.0
    picture = to_image(draw_spectrogram(loudness, (200, 100)))
    assert picture.shape == (100, 200, 3)
    assert picture[90, 190].mean() > 0.8 and max(picture[10, 190].mean(), picture[90, 20].mean()) < 0.1
    assert draw_spectrogram(torch.full((4, 4), float("nan")), (8, 8)).size == (8, 8)


def test_pictures_and_texts_fit():
    assert clipped("short", 200, 14) == "short"
    cut = clipped("something far too long for so little room", 80, 14)
    assert cut.endswith("...") and font(14).getlength(cut) <= 80
    pixels = torch.tensor([[[0.0, 0.5, 2.0], [float("nan"), 1.0, -1.0]]])
    assert torch.allclose(to_image(from_image(pixels)), torch.tensor([[[0.0, 0.5, 1.0], [0.0, 1.0, 0.0]]]), atol=0.003)

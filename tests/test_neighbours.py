"""Neighbours of Bounce World: they widen training without showing what the world holds out."""

from __future__ import annotations

import pytest
import torch
from codi.codi_models.bounce_world import judge, neighbours, render
from codi.codi_models.bounce_world import world as bounce


def _pairs(scenes: bounce.Scenes) -> set[tuple[str, str]]:
    rows = zip(scenes.shape.tolist(), scenes.colour.tolist(), strict=True)
    return {(neighbours.SHAPES[s], neighbours.COLOURS[c]) for s, c in rows}


def test_training_scenes_begin_with_the_worlds_and_hold_out_what_it_holds_out() -> None:
    scenes, world = neighbours.training_scenes(), bounce.every_scene("exclude")
    for name, column in scenes.fields():
        assert torch.equal(column[: len(world)], getattr(world, name))
    assert not neighbours.foreign(world).any()
    assert neighbours.foreign(scenes[len(world) :]).all()
    assert not _pairs(scenes) & set(bounce.HELD_OUT)
    for shape, colour in bounce.HELD_OUT:  # each half of a held-out pair is met in more company than the world offers
        assert sum(s == shape for s, _ in _pairs(scenes)) > 2 * 5
        assert sum(c == colour for _, c in _pairs(scenes)) > 4


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_drawn_scenes_are_neighbours(share: float) -> None:
    ids = neighbours.draw_ids(4000, torch.Generator().manual_seed(1), share)
    found = neighbours.foreign(neighbours.training_scenes()[ids]).float().mean()
    assert abs(float(found) - share) < 0.03
    assert int(ids.max()) < len(neighbours.training_scenes())


@pytest.mark.parametrize("full", [None, True, False])
def test_captions_of_neighbours_say_what_is_foreign(full: bool | None) -> None:
    scenes = neighbours.training_scenes()[torch.arange(222).repeat(6)]
    ids = neighbours.sample_caption_ids(scenes, generator=torch.Generator().manual_seed(2), full=full)
    said = neighbours.captions()[2][ids]  # (n, 3)
    truth = torch.stack([scenes.shape, scenes.colour, scenes.beats], 1)
    assert bool(((said == truth) | (said < 0)).all())
    assert bool((said[scenes.shape >= len(bounce.SHAPES), 0] >= 0).all())
    assert bool((said[scenes.colour >= len(bounce.COLOURS), 1] >= 0).all())
    assert bool((said >= 0).all()) == (full is True)
    text = neighbours.captions()[0][int(ids[-1])]
    assert neighbours.SHAPES[int(scenes.shape[-1])] in text


def test_the_judge_reads_the_shape_and_no_colour_in_foreign_colours() -> None:
    generator = torch.Generator().manual_seed(3)
    scenes = neighbours.training_scenes()
    scenes = scenes[neighbours.foreign(scenes) & (scenes.shape < len(bounce.SHAPES)) & (scenes.beats == 0)]
    seen = judge.judge_image(render.render_image(scenes, bounce.sample_nuisance(len(scenes), generator=generator)))
    assert torch.equal(seen["shape"], scenes.shape)
    assert bool((seen["colour"] < 0).all())
    heard = judge.judge_audio(render.render_audio(scenes, bounce.sample_nuisance(len(scenes), generator=generator)), bounce.SAMPLE_RATE)
    known = heard["shape"] >= 0  # of the highest pitch the judge hears no timbre
    assert torch.equal(heard["shape"][known], scenes.shape[known]) and int(known.sum()) > 0.8 * len(scenes)
    assert bool((heard["colour"] < 0).all())


def test_tables_have_a_row_for_every_name() -> None:
    assert len(neighbours.SHAPES) == len(set(neighbours.SHAPES)) == len(neighbours.TIMBRES) == len(render.OUTLINES)
    assert len(neighbours.COLOURS) == len(set(neighbours.COLOURS)) == len(neighbours.RGB) == len(neighbours.FREQUENCIES)
    frequencies = torch.tensor(neighbours.FREQUENCIES)
    gap = (frequencies[:, None] / frequencies - 1).abs() + torch.eye(len(frequencies))
    assert float(gap.min()) > 0.05  # farther apart than detuning reaches

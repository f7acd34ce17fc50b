"""Bridging alignment: its loss, and the media that it hears and sees as users have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from codi.codi_models.bounce_world.dataset import BounceWorld
from codi.codi_models.errors import CoDiError
from codi.codi_models.training import bridging
from codi.codi_models.training.bridging import GAIN, NOISE, Bridging, as_recorded, contrastive
from codi.codi_models.training.recipe import Recipe
from codi.codi_models.training.workspace import Workspace
from test_training import few, recipe_file


def test_contrastive_loss_forgives_equal_captions() -> None:
    a = torch.eye(4)
    assert contrastive(a, a, 100.0) < 1e-6 < contrastive(a, a.roll(1, 0), 1.0)
    doubled = torch.eye(3)[[0, 0, 1, 2]]
    assert contrastive(doubled, doubled, 50.0, torch.tensor([0, 0, 1, 2])) == pytest.approx(
        0.5 * torch.log(torch.tensor(2.0)).item(), abs=1e-3
    )


def test_recordings_are_louder_or_softer_and_most_have_a_background() -> None:
    """Never louder than a tenth of the sound, and none where there is no sound; a quarter has none."""
    audio = torch.zeros(400, 800)
    audio[:-1, 100] = 0.5
    made = as_recorded(audio, torch.Generator().manual_seed(0))
    assert torch.isfinite(made).all() and not made[-1].any()
    peak, background = made[:-1, 100], made[:-1, 200:].abs().amax(1)
    gain = 20 * torch.log10(peak / 0.5)
    assert gain.min() >= -GAIN - 1 and gain.max() <= GAIN + 1 and gain.std() > 2
    level = 20 * torch.log10(background / peak)
    noisy = level > -200
    assert 0.65 < noisy.float().mean() < 0.85 and level.max() <= NOISE[1] + 1 and level[noisy].std() > 10
    slow = made[:-1][noisy, 200:].diff(dim=1).square().mean(1) / made[:-1][noisy, 200:].var(dim=1)  # 2 of white noise, near 0 of brown
    assert slow.max() > 1.5 and slow.min() < 0.5


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, BounceWorld]:
    """Networks as they are drawn, and a few scenes."""
    folder = tmp_path_factory.mktemp("drawn")
    recipe = Recipe.load(recipe_file(folder))
    data = few(recipe)
    space = Workspace(folder / "model", torch.device("cpu"), recipe.networks, data)
    torch.manual_seed(0)
    for name in ("image_autoencoder", "audio_autoencoder", "vocoder"):
        space.save(name, space.network(name))
    return space, data


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_a_part_of_the_media_is_as_the_autoencoders_give_it_back(
    drawn: tuple[Workspace, BounceWorld], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """So many of a batch, in the place of their originals; the encoders learn from all of them."""
    seen: list[torch.Tensor] = []
    embed = bridging.embed
    monkeypatch.setattr(bridging, "embed", lambda *given: (seen.append(given[-1]), embed(*given))[1])
    monkeypatch.setattr(bridging, "as_recorded", lambda audio, _: audio)
    for part in (0.0, 0.5):
        learning = Bridging(*drawn, Bridging.Options(batch={kind: 4}, decoded=part))
        loss, _ = learning(0, torch.Generator().manual_seed(1))
        loss.backward()
    plain, mixed = seen
    assert torch.equal(plain[2:], mixed[2:]) and plain.shape == mixed.shape
    assert (plain[:2] - mixed[:2]).abs().flatten(1).mean(1).min() > 1e-3, "an autoencoder that learnt nothing gives nothing back"
    assert torch.equal(mixed[:2], learning.reconstructed(kind, plain[:2]))


def test_a_part_that_cannot_be_is_told(drawn: tuple[Workspace, BounceWorld], tmp_path: Path) -> None:
    space, data = drawn
    with pytest.raises(CoDiError, match="decoded 1.5 must be 0 to 1"):
        Bridging(space, data, Bridging.Options(decoded=1.5))
    empty = Workspace(tmp_path / "model", torch.device("cpu"), space.config, data)
    with pytest.raises(CoDiError, match="has no .* yet: train the earlier runs first"):
        Bridging(empty, data, Bridging.Options(decoded=0.5))

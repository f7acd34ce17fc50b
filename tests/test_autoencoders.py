"""Behaviour of the autoencoders beyond parity: bad input, batches, sampling, training, weights in files."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from codi.codi_models.autoencoders.audio import AudioAutoencoder
from codi.codi_models.autoencoders.image import ImageAutoencoder
from codi.codi_models.autoencoders.kl import sample_posterior
from codi.codi_models.autoencoders.mel import LogMel
from codi.codi_models.autoencoders.optimus import TextAutoencoder
from codi.codi_models.autoencoders.spectrum import SpectrumVocoder
from codi.codi_models.autoencoders.tokenizers import special_ids
from codi.codi_models.autoencoders.vocoder import Vocoder
from codi.codi_models.checkpoints import load_weights, read_weights, save_weights
from codi.codi_models.errors import CoDiError
from codi.codi_models.libraries import stored_state
from small import HIFIGAN, small_config
from torch import Tensor, nn

MINI = small_config()


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


@pytest.fixture(scope="module")
def picture() -> ImageAutoencoder:
    return seeded(lambda: ImageAutoencoder(MINI.image_autoencoder)).requires_grad_(False)


@pytest.fixture(scope="module")
def sound() -> AudioAutoencoder:
    return seeded(lambda: AudioAutoencoder(MINI.audio_autoencoder, MINI.mel)).requires_grad_(False)


@pytest.fixture(scope="module")
def text() -> TextAutoencoder:
    net = seeded(lambda: TextAutoencoder(MINI.text_autoencoder)).requires_grad_(False)
    for parameter in net.parameters():
        parameter.mul_(4)  # fresh weights give nearly the same text for every latent
    return net


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# pictures


def test_mini_picture_shapes(picture: ImageAutoencoder) -> None:
    z = picture.encode(noise(2, 3, 64, 64))
    assert z.shape == (2, 4, 8, 8) and picture.decode(z).shape == (2, 3, 64, 64)


def test_frames_do_not_see_each_other(picture: ImageAutoencoder) -> None:
    video = noise(2, 3, 5, 16, 24)
    z = picture.encode(video)
    assert z.shape == (2, 4, 5, 2, 3)
    torch.testing.assert_close(z[:, :, 3], picture.encode(video[:, :, 3]))
    torch.testing.assert_close(picture.decode(z)[:, :, 3], picture.decode(z[:, :, 3]))


@pytest.mark.parametrize("size", [(64, 60), (63, 64), (4, 64)])
def test_indivisible_size_is_named(picture: ImageAutoencoder, size: tuple[int, int]) -> None:
    with pytest.raises(CoDiError, match=f"{size[1]} x {size[0]}.*multiples of 8"):
        picture.encode(noise(1, 3, *size))


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 64, 64), (1, 4, 8, 8)])
def test_not_a_picture(picture: ImageAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(CoDiError, match="pixels must be"):
        picture.encode(noise(*shape))


def test_latents_of_another_model(picture: ImageAutoencoder, sound: AudioAutoencoder, text: TextAutoencoder) -> None:
    for decode, shape in ((picture.decode, (1, 8, 16, 8)), (sound.decode, (1, 4, 8, 8)), (text.generate, (1, 768))):
        with pytest.raises(CoDiError, match=r"latents must be"):
            decode(noise(*shape))


def test_posterior_draws_have_the_posterior_moments() -> None:
    mean, logvar = torch.full((1, 4, 100, 100), 3.0), torch.full((1, 4, 100, 100), -2.0)
    draw = sample_posterior(mean, logvar, torch.Generator().manual_seed(2))
    assert abs(draw.mean().item() - 3) < 0.02 and abs(draw.std().item() - torch.tensor(-1.0).exp().item()) < 0.02


def test_drawing_is_asked_for_and_seeded(picture: ImageAutoencoder) -> None:
    pixels = noise(1, 3, 16, 16)
    first, again, other = (picture.encode(pixels, sample=True, generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(picture.encode(pixels), picture.moments(pixels)[0])


# sound


def test_mini_sound_shapes(sound: AudioAutoencoder) -> None:
    z = sound.encode(noise(2, 20480))
    assert z.shape == (2, 8, 16, 8) and sound.decode(z).shape == (2, 1, 128, 64)


def test_log_mel_is_accepted_as_well(sound: AudioAutoencoder) -> None:
    wave = noise(2, 20480)
    torch.testing.assert_close(sound.encode(sound.mel(wave)), sound.encode(wave))


def test_silence_stays_finite(sound: AudioAutoencoder) -> None:
    silence = torch.zeros(2, 20480, requires_grad=True)
    z = sound.encode(silence)
    z.sum().backward()
    assert z.isfinite().all() and silence.grad is not None and silence.grad.isfinite().all()


def test_clips_of_any_length_fill_the_frames() -> None:
    mel = LogMel(MINI.mel)
    assert {mel(noise(1, n)).shape for n in (1, 300, 20480, 100_000)} == {(1, 1, 128, 64)}
    padded, cropped = mel(noise(1, 8000), normalize=False), mel(noise(1, 30_000), normalize=False)
    assert (padded[0, 0, 60:] < -11.5).all(), "silence behind the clip"
    torch.testing.assert_close(cropped, mel(noise(1, 30_000)[:, :20480], normalize=False))


def test_normalising_the_level_is_a_choice() -> None:
    mel, wave = LogMel(MINI.mel), noise(1, 20480) * 0.1
    same = mel(wave * 3 + 0.2, normalize=True)
    torch.testing.assert_close(mel(wave, normalize=True), same, atol=1e-3, rtol=0)
    louder = mel(wave * 2, normalize=False) - mel(wave, normalize=False)
    torch.testing.assert_close(louder, torch.full_like(louder, 2.0).log(), atol=1e-3, rtol=0)


def test_front_end_stays_exact_when_the_model_is_cast() -> None:
    wave = noise(1, 20480)
    net = AudioAutoencoder(MINI.audio_autoencoder, MINI.mel)
    expected = net.mel(wave)
    assert torch.equal(net.to(torch.bfloat16).mel(wave), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net.mel(wave), expected)


def test_tables_made_while_sampling_serve_training() -> None:
    mel = LogMel(MINI.mel)
    with torch.inference_mode():
        mel(noise(1, 20480))
    wave = noise(1, 20480).requires_grad_()
    mel(wave).sum().backward()
    assert wave.grad is not None and wave.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(20480,), (1, 1, 20480), (1, 0)])
def test_not_a_waveform(shape: tuple[int, ...]) -> None:
    with pytest.raises(CoDiError, match="waveform must be"):
        LogMel(MINI.mel)(torch.zeros(shape))


def test_not_a_sound(sound: AudioAutoencoder) -> None:
    with pytest.raises(CoDiError, match="at least 4 are needed|too few"):
        sound.encode(noise(1, 20480), frames=2)
    with pytest.raises(CoDiError, match=r"log-mel \(B, 1, T, 64\)"):
        sound.encode(noise(1, 1, 128, 80))
    with pytest.raises(CoDiError, match="7 frames is too short"):
        sound.encode(noise(1, 1, 7, 64))


def test_only_a_diverged_latent_is_clipped(sound: AudioAutoencoder) -> None:
    z = noise(2, 8, 16, 8) * 5
    z[0, 0, 0, 0] = 200.0
    assert z[1].abs().max() > 10
    expected = torch.cat([sound.decode(z[:1].clamp(-10, 10)), sound.decode(z[1:])])
    torch.testing.assert_close(sound.decode(z), expected)


# text


def test_padding_does_not_change_a_text(text: TextAutoencoder) -> None:
    ids = torch.tensor([[2, 7, 9, 3]])
    torch.testing.assert_close(text.encode(torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], dim=1)), text.encode(ids))


def test_logits_do_not_see_what_follows(text: TextAutoencoder) -> None:
    z, ids = noise(1, 64), torch.arange(20)[None]
    changed = ids.clone()
    changed[0, 10:] = 99
    torch.testing.assert_close(text.logits(z, ids)[:, :10], text.logits(z, changed)[:, :10])


def test_greedy_text_is_the_likeliest_at_every_step(text: TextAutoencoder) -> None:
    z = noise(2, 64)
    bos, eos = special_ids(text.config)[1:]
    for i, row in enumerate(text.generate(z, temperature=0)):
        assert row[0] == bos and row[-1] == eos and len(row) <= text.config.max_tokens
        likeliest = text.logits(z[i : i + 1], torch.tensor([row]))[0].argmax(dim=1).tolist()
        assert likeliest[: len(row) - 2] == row[1:-1]


def test_a_text_does_not_depend_on_its_batch(text: TextAutoencoder) -> None:
    z = noise(4, 64)
    together = text.generate(z, temperature=1.0, seeds=[3, 4, 5, 4])
    assert together == [text.generate(z[i : i + 1], temperature=1.0, seeds=[s])[0] for i, s in enumerate([3, 4, 5, 4])]
    assert text.generate(z[:1], temperature=1.0, seeds=[9]) != together[:1]


def test_a_small_nucleus_is_greedy(text: TextAutoencoder) -> None:
    z = noise(2, 64)
    assert text.generate(z, temperature=1.0, top_p=1e-6, seeds=[0, 1]) == text.generate(z, temperature=0)


def test_tokens_are_drawn_with_their_probabilities(text: TextAutoencoder) -> None:
    z = noise(1, 64)
    bos = special_ids(text.config)[1]
    expected = (text.logits(z, torch.tensor([[bos]]))[0, 0] / 0.5).softmax(0)
    drawn = text.generate(z.expand(4000, -1), temperature=0.5, seeds=range(4000), max_tokens=3)
    counts = torch.bincount(torch.tensor([row[1] for row in drawn]), minlength=512) / 4000
    assert (counts - expected).abs().sum() / 2 < 0.1, "total variation"
    nucleus = text.generate(z.expand(1000, -1), temperature=0.5, top_p=0.5, seeds=range(1000), max_tokens=3)
    order = expected.argsort(descending=True)
    inside = order[: int((expected[order].cumsum(0) < 0.5).sum()) + 1].tolist()
    assert {row[1] for row in nucleus} <= set(inside)


def test_text_ends_at_the_end_token(text: TextAutoencoder) -> None:
    z = noise(1, 64)
    row = text.generate(z, temperature=0)[0]
    assert text.generate(z, temperature=0, eos=row[3]) == [row[: row.index(row[3], 1) + 1]]
    assert text.generate(z, temperature=0, max_tokens=2) == [[row[0], row[-1]]]


@pytest.mark.parametrize("wrong", [{"seeds": [1]}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"max_tokens": 1}])
def test_generation_settings_out_of_range(text: TextAutoencoder, wrong: dict[str, Any]) -> None:
    with pytest.raises(CoDiError):
        text.generate(noise(2, 64), **{"temperature": 1.0, **wrong})


def test_text_longer_than_the_positions(text: TextAutoencoder) -> None:
    with pytest.raises(CoDiError, match="1 to 64 tokens"):
        text.encode(torch.ones(1, 65, dtype=torch.long))
    with pytest.raises(CoDiError, match="1 to 63 tokens"):
        text.logits(noise(1, 64), torch.ones(1, 64, dtype=torch.long))


# all of them

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "picture": lambda **k: ImageAutoencoder(MINI.image_autoencoder, **k),
    "sound": lambda **k: AudioAutoencoder(MINI.audio_autoencoder, MINI.mel, **k),
    "vocoder": lambda **k: Vocoder(HIFIGAN, **k),
    "spectrum": lambda **k: SpectrumVocoder(MINI.vocoder, **k),
    "text": lambda **k: TextAutoencoder(MINI.text_autoencoder, **k),
}
IDS = torch.tensor([[2, 40, 41, 42, 3], [2, 50, 51, 3, 0]])
TARGETS = torch.tensor([[510, 7, 8, 9, 511], [510, 70, 80, 511, 509]])


def objective(name: str, net: Any) -> Tensor:
    """What training minimises, in short: reconstruction from a posterior draw, plus its divergence."""
    draw = torch.Generator().manual_seed(0)
    if name == "vocoder":
        mel = LogMel(MINI.mel)
        wave = noise(1, 32 * 160).cumsum(1)
        target = mel(wave, frames=32)
        return (mel(net(target).float(), frames=32, normalize=False) - target).abs().mean()
    if name == "spectrum":
        return (net.log_magnitudes(noise(2, 1, 16, 64)).float() - noise(2, 513, 16)).abs().mean()
    if name == "text":
        mean, logvar = net.moments(IDS)
        logits = net.logits(sample_posterior(mean, logvar, draw), TARGETS[:, :-1])
        reconstruction = nn.functional.cross_entropy(logits.flatten(0, 1).float(), TARGETS[:, 1:].flatten(), ignore_index=509)
    else:
        target = noise(2, 3, 16, 16) if name == "picture" else noise(2, 1, 16, 64)
        mean, logvar = net.moments(target)
        reconstruction = (net.decode(sample_posterior(mean, logvar, draw)) - target).abs().mean()
    return reconstruction + 1e-4 * (mean.square() + logvar.exp() - logvar).mean()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name: str, autocast: bool) -> None:
    net = seeded(NETWORKS[name])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = objective(name, net)
        optimizer.zero_grad()
        loss.backward()
        missing = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not missing
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-2:]) < losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_type_and_device_are_those_asked_for(name: str) -> None:
    net = NETWORKS[name](operations=nn, dtype=torch.bfloat16, device="meta")
    assert all(p.dtype == torch.bfloat16 and p.device.type == "meta" for p in net.parameters())


def test_layers_of_the_vocoder_that_is_ours_come_from_the_injected_operations() -> None:
    operations = types.SimpleNamespace(Conv1d=type("Conv1d", (nn.Conv1d,), {}))
    net = SpectrumVocoder(MINI.vocoder, operations=operations)
    leaves = [m for m in net.modules() if any(True for _ in m.parameters(recurse=False))]
    assert leaves and all(type(leaf) is operations.Conv1d for leaf in leaves)


BORROWED = {name: make for name, make in NETWORKS.items() if name != "spectrum"} | {
    "levels that attend, an entry of its own width, fewer channels inside": lambda **k: ImageAutoencoder(
        dataclasses.replace(MINI.image_autoencoder, channel_mult=(2, 1, 3), attention=(False, True, True), inner_channels=3), **k
    ),
}


@pytest.mark.parametrize("name", BORROWED)
def test_weights_have_the_published_names_in_files(name: str, tmp_path: Path) -> None:
    net, again = seeded(BORROWED[name]), BORROWED[name]()
    save_weights(net, tmp_path / "w.safetensors")
    stored = read_weights(tmp_path / "w.safetensors")[0]
    assert not any("network." in key or "_blocks" in key or "upsampler" in key for key in stored)
    assert {k: v.shape for k, v in stored.items()} == {k: v.shape for k, v in stored_state(BORROWED[name](device="meta")).items()}
    load_weights(again, tmp_path / "w.safetensors")
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_a_library_reads_what_its_network_saves(picture: ImageAutoencoder, tmp_path: Path) -> None:
    picture.network.save_pretrained(tmp_path)
    library = type(picture.network).from_pretrained(tmp_path)
    pixels = noise(1, 3, 16, 16)
    torch.testing.assert_close(library.encode(pixels).latent_dist.mean, picture.encode(pixels))
    assert library.config.scaling_factor == MINI.image_autoencoder.scale

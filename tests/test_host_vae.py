"""Pictures decoded whole and in tiles, and attention of the autoencoder that needs no matrix of all pairs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@pytest.fixture
def vae(session):
    host = session.pack.nodes.host
    return host.vae.ImageVAE(host.handle.open_handle("tiny"))


@pytest.fixture
def latent() -> torch.Tensor:
    return torch.randn(2, 4, 12, 20, generator=torch.Generator().manual_seed(0))


def test_tiles_make_the_picture_of_the_whole(vae, latent):
    whole, tiled = vae.decode(latent), vae.decode_tiled(latent, tile_x=8, tile_y=8, overlap=4)
    assert tiled.shape == whole.shape and 0 <= tiled.min() and tiled.max() <= 1
    assert 0 < (tiled - whole).abs().mean() < 0.5 * whole.std()  # norms see a tile
    assert torch.allclose(vae.decode_tiled(latent), whole, atol=1e-5)  # one tile holds all
    clip = latent.unflatten(0, (1, 2)).transpose(1, 2)  # (1, 4, 2, 12, 20)
    assert torch.equal(vae.decode_tiled(clip, tile_x=8, tile_y=8, overlap=4)[0], tiled)


@pytest.mark.parametrize("short", ["free memory", "an error"])
def test_memory_that_is_short_for_a_picture_means_tiles(session, vae, latent, monkeypatch, caplog, short):
    import comfy.model_management as mm

    module, seen = session.pack.nodes.host.vae, []
    monkeypatch.setattr(module, "TILE", 8)
    tiled = vae.decode_tiled(latent, tile_x=8, tile_y=8)
    decode, plain = vae._decode, type(vae).decode_tiled

    def counted(z):
        seen.append(tuple(z.shape[-2:]))
        if short == "an error" and z.shape[-2] > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(z)

    monkeypatch.setattr(vae, "_decode", counted)
    monkeypatch.setattr(type(vae), "decode_tiled", lambda self, z: plain(self, z, tile_x=8, tile_y=8))
    if short == "free memory":
        monkeypatch.setattr(mm, "get_free_memory", lambda *_, **__: 1000)
    session.pack.nodes.host.said.forget()
    assert torch.equal(vae.decode(latent), tiled)
    assert all(max(shape) <= 8 for shape in seen[short == "an error" :])
    assert any("decoded in tiles" in record.getMessage() for record in caplog.records)


def test_attention_of_the_autoencoder_runs_on_the_fused_kernel(vae):
    """Elsewhere it would hold a matrix of all pairs of positions, 2 GB at 512 pixels."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        assert torch.isfinite(vae.decode(torch.randn(1, 4, 16, 16))).all()


def test_pictures_that_are_too_large_for_attention_are_taken_in_tiles(session, vae, latent, monkeypatch):
    module, attended = session.pack.nodes.host.vae, []
    pixels = torch.rand(2, 96, 160, 3, generator=torch.Generator().manual_seed(1))
    whole = {"decode": vae.decode(latent), "encode": vae.encode(pixels)}
    monkeypatch.setattr(module, "WHOLE", 64 * 64)
    monkeypatch.setattr(module, "TILE", 8)
    monkeypatch.setattr(module, "OVERLAP", 4)
    plain = type(vae).decode_tiled
    monkeypatch.setattr(type(vae), "decode_tiled", lambda self, z: plain(self, z, tile_x=8, tile_y=8, overlap=4))
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, *a, **k: (attended.append(q.shape[-2]), attend(q, *a, **k))[1]
    )
    for way, given in (("decode", latent), ("encode", pixels)):
        attended.clear()
        made = getattr(vae, way)(given)
        assert attended and max(attended) <= 64 and made.shape == whole[way].shape
        assert 0 < (made - whole[way]).abs().mean() < whole[way].std()


@pytest.mark.parametrize("what", ["decode images", "decode a clip", "decode sounds", "encode images", "encode sounds", "encode outputs"])
def test_long_work_ends_where_the_user_interrupts(session, vae, monkeypatch, interrupt_at, what):
    import comfy.model_management as mm

    host, latents = session.pack.nodes.host, session.pack.codi_models.latents
    for module in (latents, host.vae):
        monkeypatch.setattr(module, "PIXELS_AT_ONCE", 1)
        monkeypatch.setattr(module, "BINS_AT_ONCE", 1)
    sounds, channels = host.vae.AudioVAE(vae.codi), vae.codi.config.audio_autoencoder.latent_channels
    work = {
        "decode images": lambda: vae.decode(torch.zeros(9, 4, 8, 8)),
        "decode a clip": lambda: vae.decode(torch.zeros(1, 4, 9, 8, 8)),
        "decode sounds": lambda: sounds.decode(torch.zeros(9, channels, 16, 8)),
        "encode images": lambda: vae.encode(torch.zeros(9, 64, 64, 3)),
        "encode sounds": lambda: sounds.encode(torch.zeros(9, 16000, 1)),
        "encode outputs": lambda: host.shared.encode_parts(vae.codi, {"samples": torch.zeros(9, 4, 8, 8)}),
    }[what]
    interrupt_at(5)
    with pytest.raises(mm.InterruptProcessingException):
        work()


def test_pictures_that_no_memory_holds_are_refused_before_they_are_decoded(session, vae):
    endless = torch.zeros(1, 4, 1, 1).expand(1, 4, 1 << 20, 1 << 20)
    with pytest.raises(session.pack.codi_models.errors.CoDiError, match="decoding 1 pictures of .* lower the batch, the size"):
        vae.decode(endless)

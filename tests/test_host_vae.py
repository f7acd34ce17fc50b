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

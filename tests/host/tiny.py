"""A CoDi of codi-mini's shapes with next to no layers: what the host does with it costs nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from codi.codi_models.bounce_world.world import ALL_CAPTIONS
from codi.codi_models.components import save_component
from codi.codi_models.config import CoDiConfig, DiffusionConfig
from codi.codi_models.modalities import MODALITIES, denoisers_of
from codi.codi_models.model import CoDi
from small import small_config


def tiny_config() -> CoDiConfig:
    """Latent sizes, prompt width and vocabularies of codi-mini; every network as small as its class allows."""
    mini = small_config()
    unet = dict(model_channels=16, num_heads=2, num_blocks=(1, 1), norm_groups=8)
    picture = dict(model_channels=8, norm_groups=4)
    text = dict(encoder_layers=1, encoder_mlp=64, decoder_layers=1, scale=3.0)
    return replace(
        mini,
        name="tiny",
        clip=replace(mini.clip, text_layers=1, vision_layers=1, text_mlp=64, vision_mlp=64),
        clap=replace(mini.clap, depths=(1, 1, 1, 1), embed_dim=16),
        image_autoencoder=replace(mini.image_autoencoder, scale=0.5, **picture),
        audio_autoencoder=replace(mini.audio_autoencoder, scale=2.0, **picture),
        vocoder=replace(mini.vocoder, width=16, iterations=4),
        text_autoencoder=replace(mini.text_autoencoder, **text),
        vision_denoiser=replace(mini.vision_denoiser, **unet),
        audio_denoiser=replace(mini.audio_denoiser, **unet),
        text_denoiser=replace(mini.text_denoiser, **unet),
        sampling=replace(mini.sampling, schedule="together"),
    )


def create_tiny(folder: Path) -> None:
    """Write the model folder. Fresh denoisers predict zero and ignore each other: theirs are drawn at random throughout."""
    model = CoDi.create(tiny_config(), folder, captions=ALL_CAPTIONS)
    generator = torch.Generator().manual_seed(1)
    for name in sorted(denoisers_of(MODALITIES)):
        network = model.component(name)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        save_component(name, network, model.config, folder)


def create_shifted(tiny: Path, folder: Path) -> None:
    """The same weights in a folder whose denoisers predict v at cosine noise levels, with a shift of the log SNR for each modality, and
    whose guidance is rescaled."""
    config = tiny_config()
    shifts = {"video": -4.8, "image": -2.3, "text": -1.0, "audio": -4.5}
    folder.mkdir(parents=True)
    for file in tiny.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "config.json").unlink()
    diffusion = DiffusionConfig(schedule="cosine", prediction="v", shifts=shifts)
    replace(config, diffusion=diffusion, sampling=replace(config.sampling, cfg_rescale=0.4)).save(folder / "config.json")

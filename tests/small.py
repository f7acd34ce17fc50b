"""A small configuration: that of codi-mini as 0.3.0 shipped it, whose folders load."""

from pathlib import Path

from codi.codi_models.config import CoDiConfig, VocoderConfig

HIFIGAN = VocoderConfig(initial_channels=128, resblock_kernels=(3, 7), resblock_dilations=(1, 3))


def small_config() -> CoDiConfig:
    """codi-mini of 0.3.0: 64 px, 8 frames, 1.28 s of sound, the published linear noise levels."""
    return CoDiConfig.load(Path(__file__).parent / "small.json")

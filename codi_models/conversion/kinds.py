"""What a file probably is that cannot be converted, or that holds more than the layout."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch

from .layout import PREFIXES, Layout
from .sources import Source

_FAMILIES = {
    "Stable Diffusion (1.x, 2.x or XL)": ("cond_stage_model.", "first_stage_model.", "model.diffusion_model.input_blocks.", "conditioner."),
    "AudioLDM": ("cond_stage_model.model.audio_branch.", "first_stage_model.vocoder."),
    "diffusers": ("down_blocks.", "up_blocks.", "mid_block.", "transformer_blocks."),
    "transformers": ("text_model.", "vision_model.", "encoder.layer.", "h.0.", "transformer.h.", "bert.", "roberta."),
    "Versatile Diffusion": ("model.diffusion_model.unet_image.", "ctx.", "vae."),
}
_SHARE_OF_EXTRA = 0.3  # of a file's bytes, from which it counts as the full-precision release

FORMER_SIZES = {
    1256858021: "the audio denoiser of June 2023",
    6835640625: "the text denoiser of June 2023",
    5629511241: "the video denoiser of June 2023",
    3580945260: "the encoders of June 2023",
    4793811933: "the encoders of June 2023",
}
"""Bytes of files that stood under today's names in the published repository before latent alignment was in them."""


def looks_like(source: Source) -> str:
    """The family of models that a file without any weight of CoDi seems to be of, as a half sentence; empty where nothing is known."""
    for name, begins in _FAMILIES.items():
        if any(key.startswith(begins) or key.partition(".")[2].startswith(begins) for key in source):
            return f"; it looks like a file of {name}"
    return ""


def lacks_alignment(missing: Collection[str], component: str, layout: Layout) -> bool:
    """Whether a denoiser lacks its whole environment encoder, as those published before latent alignment do."""
    encoder = [key for key in layout.of(component) if key.startswith(f"{PREFIXES[component]}connecters_out.")]
    return bool(encoder) and set(encoder) <= set(missing)


def earlier(sources: Iterable[Source]) -> str:
    """What is known of files by their size alone, as a half sentence."""
    known = [f"{s.path.name} has the size of {FORMER_SIZES[size]}" for s in sources if (size := s.stamp[0]) in FORMER_SIZES]
    return f" ({', '.join(known)})" if known else ""


def full_precision_release(source: Source, extra_bytes: int) -> bool:
    """Whether a file looks like the full-precision release: float32, with many tensors besides those of the layout."""
    total = sum(torch.Size(shape).numel() * source.dtypes[key].itemsize for key, shape in source.shapes.items())
    floats = [dtype for dtype in source.dtypes.values() if dtype.is_floating_point]
    return extra_bytes > _SHARE_OF_EXTRA * total and floats.count(torch.float32) > len(floats) / 2

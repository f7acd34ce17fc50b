"""CLIP_VISION_OUTPUT that holds a prompt: the embedding of a whole picture, without the picture."""

from __future__ import annotations

from typing import Any

import comfy.clip_vision
from torch import Tensor

from ...codi_models.errors import CoDiError

HIDDEN = ("last_hidden_state", "penultimate_hidden_states", "all_hidden_states", "mm_projected")
"""What CLIP Vision Encode says of each of a picture's patches."""


class NoHiddenStates(CoDiError, AttributeError):
    """Raised where a node asks for what a prompt has not; to `getattr` with a default, and to `hasattr`, it is a missing attribute."""


class PromptEmbeds(comfy.clip_vision.Output):
    """`image_embeds` (B, D), and the size of the pictures that CLIP would have seen.

    Hidden states are not made up: those who read them look for 257 places of a picture, each with what is to be seen there."""

    def __init__(self, embeds: Tensor, size: int) -> None:
        self.image_embeds = embeds
        self.image_sizes = [(3, size, size)] * len(embeds)

    def __getattr__(self, name: str) -> Any:
        if name in HIDDEN:
            raise NoHiddenStates(
                f"this CLIP_VISION_OUTPUT comes from CoDi Prompt to CLIP Vision and holds image_embeds only; this node reads {name}, which "
                "tells of every patch of an image, and a prompt has no patches. Nodes that read image_embeds (unCLIPConditioning, plain "
                "IPAdapter) take it; here, decode an image of CoDi and connect CLIP Vision Encode"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

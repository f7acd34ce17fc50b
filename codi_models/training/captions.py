"""Every caption of Bounce World and its neighbours, tokenised once, so that a training step draws rows of tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autoencoders.tokenizers import TextTokenizers
from ..bounce_world import neighbours
from ..encoders.shared_space import SharedSpace
from ..encoders.tokenizer import CLIPTokenizer
from .workspace import Workspace


class CaptionTables:
    """Token ids of `neighbours.captions` and, as the last row of `prompt`, of the empty text; C captions."""

    def __init__(self, space: Workspace):
        config, device = space.config, space.device
        captions = list(neighbours.captions()[0])
        self.prompt = CLIPTokenizer(space.folder, config.clip)([*captions, ""]).to(device)  # (C + 1, positions)
        tokenizers = TextTokenizers(space.folder, config.text_autoencoder)
        self.encoder = tokenizers.encode(captions).to(device)  # (C, Te)
        self.decoder, self.pad = tokenizers.encode_target(captions).to(device), tokenizers.pad  # (C, Td), BOS ... EOS PAD

    @torch.no_grad()
    def embeddings(self, clip: Any, space: SharedSpace) -> Tensor:
        """Prompt embeddings of all captions and, last, of the empty text. (C + 1, D)"""
        return space.align(clip.encode_text(self.prompt), "text")[:, 0]

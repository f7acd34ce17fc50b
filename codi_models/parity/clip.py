"""CLIP with temporal attention: texts, pictures and clips, and what happens on the way."""

from __future__ import annotations

import re

from ..conversion.layout import PREFIXES
from ..encoders.clip import CLIPEncoder
from .check import Check
from .configs import clip_config
from .networks import Networks
from .watch import Watch

PATHS = (
    (r"(image|video)\.embeddings$", "vision_model.embeddings"),
    (r"(image|video)\.layers\.(\d+)\.temporal_rel_pos_bias$", r"vision_model.encoder.layers.\2.temporal_self_attn.temporal_rel_pos_bias"),
    (r"(image|video)\.layers\.(.+)$", r"vision_model.encoder.layers.\2"),
    (r"(image|video)_last_hidden_state$", "vision_model.encoder.layers"),
    (r"(image|video)_pooled$", "vision_model.post_layernorm"),
    (r"text\.embeddings$", "text_model.embeddings"),
    (r"text\.layers\.(.+)$", r"text_model.encoder.layers.\1"),
    (r"text_last_hidden_state$", "text_model.final_layer_norm"),
)
"""Intermediates and where our network has them."""

CLIP_LENGTH = re.compile(r"out/video_(?:first)?(\d+)frames?_embedding(.*)$")


def check_clip(check: Check, networks: Networks) -> None:
    """Embeddings of every input, clips also by their first frames alone."""
    fixture = check.fixture
    config = clip_config(fixture.setting("config"))
    net: CLIPEncoder = networks.checked(check, lambda: CLIPEncoder(config), config, PREFIXES["clip"])
    for label, ids in fixture.labels("in/token_ids"):
        with _watch(check, net, "text", label) as watch:
            check.tensor(f"out/text_embedding{label}", net.encode_text(ids))
        check.tensor(f"mid/text_pooled{label}", lambda ids=ids: net.text_features(ids))  # type: ignore[misc]
        check.watched(watch)
    for label, pixels in fixture.labels("in/pixels"):
        with _watch(check, net, "image", label) as watch:
            check.tensor(f"out/image_embedding{label}", net.encode_image(pixels))
        check.watched(watch)
    for label, clip in fixture.labels("in/video_pixels"):
        label = label.replace("_b_f_c_h_w", "")
        with _watch(check, net, "video", label) as watch:
            embedding = net.encode_video(clip, still_as_image=False)
        check.tensor(f"out/video_embedding{label}", embedding)
        check.tensor(f"out/video{label}_embedding", embedding)
        check.watched(watch)
        for name in check.open("out/video_"):
            match = CLIP_LENGTH.match(name)
            if match and match[2] == label:
                check.tensor(name, net.encode_video(clip[:, : int(match[1])], still_as_image=False))


def _watch(check: Check, net: CLIPEncoder, kind: str, label: str) -> Watch:
    paths = {}
    for name in check.open(f"mid/{kind}") if not label else ():
        for pattern, path in PATHS:
            if match := re.match(pattern, name.removeprefix("mid/")):
                paths[name] = match.expand(path)
                break
    return Watch(net, paths)

"""Frames of a clip that is being sampled, for the browser to play on the node that samples (web/codi_playing.js)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO

from comfy_execution.utils import get_executing_context
from PIL import Image

EVENT = "codi.frames"


def play(frames: Sequence[Image.Image], rate: float) -> None:
    """Sends frames of one size, played at `rate` a second, to the browser that runs the prompt; does nothing where there is none."""
    from server import PromptServer

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is None or server is None or server.client_id is None or len(frames) < 2:
        return
    clip = {"node": context.node_id, "frames": len(frames), "rate": rate, "strip": _strip(frames)}
    server.send_sync(EVENT, clip, server.client_id)


def _strip(frames: Sequence[Image.Image]) -> str:
    """Frames side by side as the address of a JPEG."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for i, frame in enumerate(frames):
        strip.paste(frame, (i * width, 0))
    file = BytesIO()
    strip.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")

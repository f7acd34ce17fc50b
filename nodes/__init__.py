"""CoDi's nodes: one file per step of a graph."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from .bounce_scene import BounceScene
from .coherence import Coherence, EncodeOutputs, PickBest
from .compose import Alignment, AlignmentMatrix, Compose
from .decode import DecodeAudio, DecodeImage, DecodeText, DecodeVideo
from .encode import EncodeAudio, EncodeImage, EncodeText, EncodeVideo
from .former import BatchLatents, RepeatLatent, SharedSpacePlot, ShowText
from .guide import Guider
from .host import folders, install
from .interplay import FromCLIP, FromCLIPVision, ToCLIPVision
from .joint_latent import JoinLatents, LoadLatent, SaveLatent, SelectFromBatch, SplitLatent
from .keep import Keep, Mask, MediaToLatent
from .latent import EmptyJointLatent
from .load import Denoiser, Load, LoadJoint, LoadVAE
from .mix import ConditionMixer, PromptTravel, PromptWeight
from .preview import Preview
from .sample import JointSampler
from .train import Train

MINIMUM = (0, 8, 0)
NODES: list[type[io.ComfyNode]] = [
    LoadJoint,
    Load,
    Denoiser,
    Compose,
    Alignment,
    AlignmentMatrix,
    LoadVAE,
    EncodeText,
    EncodeImage,
    EncodeAudio,
    EncodeVideo,
    ConditionMixer,
    PromptWeight,
    PromptTravel,
    EmptyJointLatent,
    MediaToLatent,
    Keep,
    Mask,
    SplitLatent,
    JoinLatents,
    SelectFromBatch,
    SaveLatent,
    LoadLatent,
    JointSampler,
    Guider,
    DecodeImage,
    DecodeVideo,
    DecodeAudio,
    DecodeText,
    Preview,
    EncodeOutputs,
    Coherence,
    PickBest,
    FromCLIP,
    FromCLIPVision,
    ToCLIPVision,
    Train,
    BounceScene,
    BatchLatents,
    RepeatLatent,
    SharedSpacePlot,
    ShowText,
]


class CoDiExtension(ComfyExtension):
    """Registers the nodes and the model folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()
        install.register()
        _warn_old_host()
        return list(NODES)


async def comfy_entrypoint() -> ComfyExtension:
    """The host's way in."""
    return CoDiExtension()


def _warn_old_host() -> None:
    """The host reads requires-comfyui from pyproject.toml but does not act on it."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return
    if tuple(int(p) for p in __version__.split(".")[:3] if p.isdigit()) < MINIMUM:
        logging.warning("CoDi needs ComfyUI %s or newer; this is %s. Update it if a node fails.", ".".join(map(str, MINIMUM)), __version__)

"""Between CoDi's shared space and the host's CLIP: the published model's prompts are those of CLIP ViT-L/14."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import normalize

from ..codi_models.errors import CoDiError
from ..codi_models.modalities import MODALITIES
from .host.handle import CoDiHandle
from .host.shared import point_of
from .host.unconditional import marked
from .host.vision_output import PromptEmbeds
from .schema import PROMPTS, CodiModel, Node, schema


def _fits(codi: CoDiHandle, width: int, what: str) -> None:
    wanted = codi.config.clip.projection_dim
    if width != wanted:
        raise CoDiError(
            f"{what} is {width} wide, the shared space of {codi.name} is {wanted}: only embeddings of its own CLIP fit "
            "(the published CoDi takes CLIP ViT-L/14, 768 wide)"
        )


class FromCLIP(Node):
    """A sentence through the host's CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiFromCLIP",
            display_name="CoDi Prompt from CLIP",
            category=PROMPTS,
            description="A text prompt through the host's CLIP ViT-L/14 (with its LoRAs and prompt weights) to CoDi's shared space.",
            search_aliases=["clip text", "clip-l", "prompt weights"],
            inputs=[
                CodiModel.Input("codi", tooltip="A model whose prompts are CLIP ViT-L/14's, as the published CoDi's."),
                io.Clip.Input("clip", tooltip="CLIP ViT-L/14, alone or within a model's text encoders."),
                io.String.Input("text", multiline=True, dynamic_prompts=True, default="", tooltip="The prompt, as for CLIP Text Encode."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="A prompt of CoDi's shared space.")],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, clip: Any, text: str) -> io.NodeOutput:
        tower = getattr(clip.cond_stage_model, "clip_l", None)
        if tower is None:
            raise CoDiError(f"this CLIP ({type(clip.cond_stage_model).__name__}) has no CLIP ViT-L/14 in it: load clip_l with Load CLIP")
        tokens = clip.tokenize(text)["l"]
        network, config = tower.transformer, codi.config.clip
        clip.load_model()  # the whole model: the host moves it as one
        place = clip.patcher.load_device
        tower.reset_clip_options()
        # Checkpoints without the projection leave an identity in its place: then CoDi's own is taken, which is the same network's.
        tower.set_clip_options({"projected_pooled": False, "execution_device": place})
        pooled = tower.encode_token_weights(tokens)[1].float()  # (1, C)
        tower.reset_clip_options()
        projection, own = network.text_projection, network.text_projection.weight
        if own.shape[0] == own.shape[1] and torch.equal(own.float().cpu(), torch.eye(len(own))):
            _fits_tower(pooled.shape[-1], config.text_dim, codi.name)
            projection, place = codi.model.clip.text_projection, codi.model.device
        embedding = normalize(projection(pooled.to(place)).float(), dim=-1)[:, None]  # (1, 1, D)
        _fits(codi, embedding.shape[-1], "this CLIP")
        return io.NodeOutput(marked(codi, codi.model.space.align(embedding, "text").to(mm.intermediate_device()), "text"))


def _fits_tower(width: int, wanted: int, name: str) -> None:
    if width != wanted:
        raise CoDiError(f"the text encoder of this CLIP is {width} wide, that of {name} is {wanted}: load CLIP ViT-L/14")


def _embeds(output: Any) -> Tensor:
    """(B, D) of a CLIP_VISION_OUTPUT. Raises CoDiError where it has none, or none that is finite."""
    embeds = getattr(output, "image_embeds", None)
    if not isinstance(embeds, Tensor) or not embeds.numel():
        raise CoDiError("this CLIP_VISION_OUTPUT holds no image_embeds: make it with CLIP Vision Encode and CLIP ViT-L/14")
    embeds = embeds.reshape(-1, embeds.shape[-1]).float()
    if not bool(torch.isfinite(embeds).all()):
        raise CoDiError("the image_embeds of this CLIP_VISION_OUTPUT are NaN or infinite: look at the node that made them")
    return embeds


class FromCLIPVision(Node):
    """A picture through the host's CLIP Vision."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiFromCLIPVision",
            display_name="CoDi Prompt from CLIP Vision",
            category=PROMPTS,
            description="An embedding of CLIP Vision Encode (ViT-L/14) as a prompt of CoDi's shared space.",
            search_aliases=["clip vision", "image embeds", "ipadapter"],
            inputs=[
                CodiModel.Input("codi", tooltip="A model whose prompts are CLIP ViT-L/14's, as the published CoDi's."),
                io.ClipVisionOutput.Input("clip_vision_output", tooltip="From CLIP Vision Encode with CLIP ViT-L/14."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="A prompt for each image.")],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, clip_vision_output: Any) -> io.NodeOutput:
        embeds = _embeds(clip_vision_output)
        _fits(codi, embeds.shape[-1], "this CLIP_VISION_OUTPUT")
        point = codi.model.space.align(normalize(embeds, dim=-1)[:, None], "image")
        return io.NodeOutput(marked(codi, point.to(mm.intermediate_device()), "image"))


class ToCLIPVision(Node):
    """Any of CoDi's prompts for nodes that take a CLIP Vision embedding."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiToCLIPVision",
            display_name="CoDi Prompt to CLIP Vision",
            category=PROMPTS,
            description="A prompt of any kind, such as audio, as CLIP_VISION_OUTPUT: for unCLIP and for adapters that read image_embeds.",
            search_aliases=["unclip", "ipadapter", "sound to image", "image embeds"],
            inputs=[
                CodiModel.Input("codi", tooltip="The model that made the prompt."),
                io.Conditioning.Input("conditioning", tooltip="A prompt or a mixture from CoDi's nodes."),
                io.Combo.Input(
                    "as_kind",
                    options=[m for m in MODALITIES if m != "audio"] + ["audio"],
                    default="image",
                    tooltip="Where models remove each modality's mean: whose mean to put back. unCLIP and IPAdapter expect image.",
                ),
                io.Float.Input(
                    "length",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Length of the vector. 0: that of `like`, or 1. CLIP Vision's own embeddings are not of unit length.",
                ),
                io.ClipVisionOutput.Input(
                    "like", optional=True, tooltip="An embedding of CLIP Vision Encode whose length is taken, for nodes that care about it."
                ),
            ],
            outputs=[io.ClipVisionOutput.Output(display_name="clip_vision_output", tooltip="Holds image_embeds only, no hidden states.")],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, conditioning: Any, as_kind: str, length: float, like: Any = None) -> io.NodeOutput:
        points = [point_of(entry) for entry in conditioning]
        for point in points:
            _fits(codi, point.shape[-1], "this CONDITIONING")
        embeds = codi.model.space.restore(torch.cat(points).float(), as_kind)[:, 0]  # (B, D)
        if not length and like is not None:
            length = float(_embeds(like).norm(dim=-1).mean())
        return io.NodeOutput(PromptEmbeds(embeds * (length or 1.0), codi.config.clip.image_size))

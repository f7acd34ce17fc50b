"""Load a CoDi model folder, whole or denoiser by denoiser."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..codi_models.errors import CoDiError
from ..codi_models.modalities import MODALITIES, denoisers_of
from .host import compose, costs, folders, handle
from .host.denoiser import DENOISERS, denoiser_model
from .host.vae import AudioVAE, ImageVAE
from .schema import ADVANCED, CODI_TIP, MODELS, CodiModel, Node, schema

_DTYPES = ["auto", "fp32", "fp16", "bf16"]


def _name() -> io.Combo.Input:
    return io.Combo.Input(
        "name",
        display_name="model",
        options=folders.model_names(),
        tooltip="A folder in models/codi, or codi-mini, which comes with the pack. Where CoDi's official model is not installed, "
        "a button on the node fetches it.",
    )


def _known(name: str | None) -> bool | str:
    """Whether a model can be opened, or why not, in better words than that a value is not in a list. A linked name is not known yet."""
    try:
        if name is not None:
            folders.model_folder(name)
    except CoDiError as error:
        return str(error)
    return True


def _dtype() -> io.Combo.Input:
    return io.Combo.Input("dtype", options=_DTYPES, default="auto", extra_dict=ADVANCED, tooltip="Precision of the denoisers' weights.")


class LoadJoint(Node):
    """The beginner's loader: a joint MODEL of the chosen outputs, and the model for encoding and decoding."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiLoadJoint",
            display_name="Load CoDi (joint)",
            category=MODELS,
            description="Loads the denoisers of the chosen outputs as one joint MODEL, and shows what the model's parts cost. "
            "What is switched off is not loaded.",
            search_aliases=["codi", "any-to-any", "codi-mini"],
            has_intermediate_output=True,
            inputs=[
                _name(),
                *[io.Boolean.Input(m, default=True, tooltip=f"The MODEL can make {m}.") for m in MODALITIES],
                _dtype(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Joint MODEL, for the CoDi Joint Sampler and the stock samplers."),
                CodiModel.Output(display_name="codi", tooltip="For CoDi's Encode, Empty Joint Latent and Decode nodes."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        return _known(name)

    @classmethod
    def fingerprint_inputs(cls, name: str, **_: Any) -> tuple:
        return handle.fingerprint(name)

    @classmethod
    def execute(cls, name: str, dtype: str = "auto", **outputs: bool) -> io.NodeOutput:
        needed = denoisers_of([m for m in MODALITIES if outputs.get(m)])
        if not needed:
            raise CoDiError(f"no output chosen: switch on at least one of {', '.join(MODALITIES)}")
        codi = handle.open_handle(name)
        members = [denoiser_model(codi, d, dtype) for d in DENOISERS if d in needed]
        return io.NodeOutput(compose.compose(members), codi, ui=ui.PreviewText(costs.describe(codi, dtype)))


class Load(Node):
    """Opens a model folder; its networks load when a node first needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiLoad",
            display_name="Load CoDi",
            category=MODELS,
            description="Opens a CoDi model and shows what its parts cost. Networks load when a node first needs them.",
            has_intermediate_output=True,
            search_aliases=["codi model", "checkpoint", "open"],
            inputs=[_name()],
            outputs=[CodiModel.Output(display_name="codi", tooltip="For all of CoDi's nodes that encode, decode or make denoisers.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        return _known(name)

    @classmethod
    def fingerprint_inputs(cls, name: str) -> tuple:
        return handle.fingerprint(name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        codi = handle.open_handle(name)
        return io.NodeOutput(codi, ui=ui.PreviewText(costs.describe(codi)))


class Denoiser(Node):
    """One modality's diffusion model, usable alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiDenoiser",
            display_name="CoDi Denoiser",
            category=MODELS,
            description="One denoiser as a MODEL of its own. It samples alone, or together with others after CoDi Compose.",
            search_aliases=["unet", "diffusion model", "one modality"],
            inputs=[
                CodiModel.Input("codi", tooltip=CODI_TIP),
                io.Combo.Input(
                    "denoiser",
                    options=list(DENOISERS),
                    tooltip="vision generates images and videos, audio generates audio, text generates captions.",
                ),
                _dtype(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="A MODEL for any sampler, or for CoDi Compose.")],
        )

    @classmethod
    def execute(cls, codi: handle.CoDiHandle, denoiser: str, dtype: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(denoiser_model(codi, denoiser, dtype))


class LoadVAE(Node):
    """CoDi's autoencoders for the host's own VAE nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiVAE",
            display_name="CoDi VAE",
            category=MODELS,
            description="CoDi's autoencoders for the stock nodes VAE Decode, VAE Encode, VAE Decode Audio and VAE Encode Audio.",
            search_aliases=["autoencoder", "audio vae", "vae loader"],
            inputs=[CodiModel.Input("codi", tooltip=CODI_TIP)],
            outputs=[
                io.Vae.Output(display_name="image VAE", tooltip="Decodes the first part of a joint LATENT: video, else image."),
                io.Vae.Output(display_name="audio VAE", tooltip="Decodes the last part of a joint LATENT: audio."),
            ],
        )

    @classmethod
    def execute(cls, codi: handle.CoDiHandle) -> io.NodeOutput:
        return io.NodeOutput(ImageVAE(codi), AudioVAE(codi))

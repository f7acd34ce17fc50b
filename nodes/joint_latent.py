"""Joint LATENTs split, joined, batched, repeated, picked from, saved and loaded: what stock nodes do with plain ones only."""

from __future__ import annotations

import hashlib
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..codi_models.errors import CoDiError
from ..codi_models.modalities import MODALITIES
from .host import joining, latent_files
from .host.handle import CoDiHandle
from .schema import LATENTS, CodiModel, Node, schema


def latents_input() -> Any:
    """Links of any number of LATENTs."""
    template = io.Autogrow.TemplatePrefix(io.Latent.Input("latent", tooltip="A LATENT of CoDi."), prefix="latent", min=1, max=16)
    return io.Autogrow.Input("latents", template=template, tooltip="An input appears when the last is connected.")


def _node(kind: str, name: str, description: str, inputs: list[Any], outputs: list[Any] | None = None, **more: Any) -> io.Schema:
    outputs = [io.Latent.Output(display_name="latent", tooltip="A joint LATENT, mask included.")] if outputs is None else outputs
    codi = CodiModel.Input("codi", tooltip="The model that made the LATENT.")
    return schema(
        node_id=kind,
        display_name=name,
        description=description,
        inputs=[codi, *inputs],
        outputs=outputs,
        category=LATENTS,
        **{"search_aliases": ["nested latent", "joint latent"], **more},
    )


def given(latents: dict | None) -> list[dict]:
    """Those that are connected. Raises CoDiError for none."""
    connected = [latent for latent in (latents or {}).values() if latent is not None]
    if not connected:
        raise CoDiError("no LATENT was given: connect at least one")
    return connected


class SplitLatent(Node):
    """The outputs of a joint LATENT, each alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs: list[Any] = [
            io.Latent.Output(display_name=m, tooltip=f"Plain LATENT; nothing runs on it where there is no {m}.") for m in MODALITIES
        ]
        latent = io.Latent.Input("latent", tooltip="A joint LATENT.")
        return _node("CoDiSplitLatent", "CoDi Split Latent", "Takes a joint LATENT apart into its outputs.", [latent], outputs)

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict) -> io.NodeOutput:
        apart = joining.take_apart(latent, codi.config)
        return io.NodeOutput(*[apart.get(m, ExecutionBlocker(None)) for m in MODALITIES])


class JoinLatents(Node):
    """LATENTs put together: outputs beside each other, samples behind each other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        description = "Puts LATENTs together: different outputs to one joint LATENT, the same outputs to one batch."
        aliases = ["joint latent", "nested latent", "batch latents", "concatenate"]
        return _node("CoDiJoinLatents", "CoDi Join Latents", description, [latents_input()], search_aliases=aliases)

    @classmethod
    def execute(cls, codi: CoDiHandle, latents: dict | None = None) -> io.NodeOutput:
        return io.NodeOutput(joining.joined(given(latents), codi.config))


class SelectFromBatch(Node):
    """Some samples of a batch, or all of them, as often as wanted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Latent.Input("latent", tooltip="A joint LATENT."),
            io.String.Input(
                "samples",
                default="0",
                tooltip="Numbers from 0, separated by commas, in the order wanted; -1 is the last. Empty: all of them.",
            ),
            io.Int.Input("repeat", default=1, min=1, max=64, optional=True, tooltip="How often what is picked comes, one after another."),
        ]
        aliases = ["nested latent", "joint latent", "repeat latent", "pick", "variations"]
        description = "Picks samples of a joint LATENT by number, and repeats them."
        return _node("CoDiSelectFromBatch", "CoDi Select from Batch", description, inputs, search_aliases=aliases)

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict, samples: str, repeat: int = 1) -> io.NodeOutput:
        try:
            chosen = [int(word) for word in samples.split(",") if word.strip()]
        except ValueError as error:
            raise CoDiError(f"samples must be whole numbers separated by commas, got {samples!r}") from error
        return io.NodeOutput(joining.rows(latent, chosen if samples.strip() else None, codi.config, repeat=repeat))


class SaveLatent(Node):
    """A joint LATENT to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Latent.Input("latent", tooltip="A joint LATENT."),
            io.String.Input("filename_prefix", default="latents/codi", tooltip="Name in the output folder."),
        ]
        description = "Writes a joint LATENT with its mask to a safetensors file in the output folder."
        return _node("CoDiSaveLatent", "CoDi Save Latent", description, inputs, [], is_output_node=True)

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict, filename_prefix: str) -> io.NodeOutput:
        file, subfolder = latent_files.save(latent, filename_prefix, codi.config)
        return io.NodeOutput(ui={"latents": [{"filename": file, "subfolder": subfolder, "type": "output"}]})


class LoadLatent(Node):
    """A joint LATENT from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        file = io.Combo.Input(
            "file", options=latent_files.names(), tooltip="From the input folder, or from the output folder where marked."
        )
        return _node("CoDiLoadLatent", "CoDi Load Latent", "Reads what CoDi Save Latent wrote.", [file])

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        try:
            _ = file is None or latent_files.path_of(file)
        except CoDiError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> str:
        return hashlib.sha256(latent_files.path_of(file).read_bytes()).hexdigest()

    @classmethod
    def execute(cls, codi: CoDiHandle, file: str) -> io.NodeOutput:
        return io.NodeOutput(latent_files.load(file, codi.config))

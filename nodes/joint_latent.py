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


def _latents(least: int) -> Any:
    template = io.Autogrow.TemplatePrefix(io.Latent.Input("latent", tooltip="A LATENT of CoDi."), prefix="latent", min=least, max=16)
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


def _given(latents: dict | None) -> list[dict]:
    given = [latent for latent in (latents or {}).values() if latent is not None]
    if not given:
        raise CoDiError("no LATENT was given: connect at least one")
    return given


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
    """Outputs put together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _node(
            "CoDiJoinLatents", "CoDi Join Latents", "Puts LATENTs of different outputs together to one joint LATENT.", [_latents(1)]
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, latents: dict | None = None) -> io.NodeOutput:
        return io.NodeOutput(joining.put_together(_given(latents), codi.config))


class BatchLatents(Node):
    """Samples put together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _node("CoDiBatchLatents", "CoDi Batch Latents", "Puts the samples of several joint LATENTs into one batch.", [_latents(1)])

    @classmethod
    def execute(cls, codi: CoDiHandle, latents: dict | None = None) -> io.NodeOutput:
        return io.NodeOutput(joining.batched(_given(latents), codi.config))


class RepeatLatent(Node):
    """A batch of the same."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Latent.Input("latent", tooltip="A joint LATENT."),
            io.Int.Input("amount", default=2, min=1, max=64, tooltip="How often each sample comes."),
        ]
        return _node("CoDiRepeatLatent", "CoDi Repeat Latent", "Repeats the samples of a joint LATENT.", inputs)

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict, amount: int) -> io.NodeOutput:
        batch = next(iter(joining.split(latent, codi.config).values())).shape[0]
        return io.NodeOutput(joining.rows({k: v for k, v in latent.items() if k != "batch_index"}, [*range(batch)] * amount, codi.config))


class SelectFromBatch(Node):
    """Some samples of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Latent.Input("latent", tooltip="A joint LATENT."),
            io.String.Input(
                "samples", default="0", tooltip="Numbers from 0, separated by commas; -1 is the last. 2, 0 gives these two in this order."
            ),
        ]
        return _node("CoDiSelectFromBatch", "CoDi Select from Batch", "Picks samples of a joint LATENT by number.", inputs)

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict, samples: str) -> io.NodeOutput:
        try:
            chosen = [int(word) for word in samples.split(",") if word.strip()]
        except ValueError as error:
            raise CoDiError(f"samples must be whole numbers separated by commas, got {samples!r}") from error
        return io.NodeOutput(joining.rows(latent, chosen, codi.config))


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

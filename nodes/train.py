"""Train a model on the user's own pairs, for small runs in the graph."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui

from ..codi_models.errors import CoDiError
from ..codi_models.figures import draw_curve, to_image
from ..codi_models.files import PLAIN, plain_name
from ..codi_models.modalities import MODALITIES
from ..codi_models.model import SHIPPED
from ..codi_models.training import STAGES
from .host import folders, handle
from .schema import ADVANCED, MODELS, CodiModel, Node, schema

RUNS = "codi_training"
"""Folder in the host's output folder for states, logs and encoded media."""
_PREVIEW_EVERY = 2.0  # seconds


class Train(Node):
    """One stage of the paper on pairs in the host's input folder; the result is a model folder in models/codi."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiTrain",
            display_name="CoDi Train",
            category=MODELS,
            description="Trains one stage on your own pairs and writes a new model folder. An interrupted run goes on where it was.",
            search_aliases=["finetune", "latent alignment", "fit"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "name", display_name="model", options=folders.model_names(), tooltip="The model to start from; it stays as it is."
                ),
                io.String.Input(
                    "data",
                    default="codi_pairs",
                    tooltip="Folder or tar in ComfyUI's input folder: with manifest.jsonl, files that share a name, or webdataset tars.",
                ),
                io.String.Input(
                    "save_as", default="my_codi", tooltip="Name of the new model folder in models/codi; one that exists is trained further."
                ),
                io.Combo.Input(
                    "stage",
                    options=list(STAGES),
                    default="alignment",
                    tooltip="bridging: encoders towards captions. denoiser: one modality's diffusion model. alignment: how outputs agree.",
                ),
                io.Combo.Input(
                    "modality", options=list(MODALITIES), default="image", tooltip="What the denoiser makes; for the stage denoiser only."
                ),
                io.Int.Input("steps", default=200, min=1, max=1_000_000, tooltip="Steps in all; a run that goes on counts those done."),
                io.Int.Input("batch", default=8, min=1, max=4096, tooltip="Examples of a step."),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=0.1,
                    step=0.000001,
                    round=False,
                    tooltip="0 for the stage's own.",
                    extra_dict=ADVANCED,
                ),
                io.String.Input(
                    "pairs",
                    default="",
                    tooltip="For the stage alignment, such as image+text,audio+video; empty for the paper's.",
                    extra_dict=ADVANCED,
                ),
                io.Boolean.Input("bf16", default=False, tooltip="Compute in bfloat16: less memory on a GPU.", extra_dict=ADVANCED),
                io.Boolean.Input(
                    "checkpointing", default=False, tooltip="Recompute activations: less memory, more time.", extra_dict=ADVANCED
                ),
                io.Boolean.Input(
                    "skip_unreadable",
                    default=False,
                    tooltip="Leave out media that cannot be read instead of stopping.",
                    extra_dict=ADVANCED,
                ),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="Draws the order of the examples and the noise."),
            ],
            outputs=[
                CodiModel.Output(display_name="codi", tooltip="The trained model, as Load CoDi would open it."),
                io.Image.Output(display_name="loss", tooltip="The loss over the steps."),
                io.String.Output(display_name="name", tooltip="Name of the model folder."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, data: str, **_: Any) -> tuple:
        """Runs again where the starting model or the data changed."""
        path = data_path(data)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return (handle.fingerprint(name), *((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files if p.is_file()))

    @classmethod
    def execute(
        cls,
        name: str,
        data: str,
        save_as: str,
        stage: str,
        modality: str,
        steps: int,
        batch: int,
        learning_rate: float,
        pairs: str,
        bf16: bool,
        checkpointing: bool,
        skip_unreadable: bool,
        seed: int,
    ) -> io.NodeOutput:
        from ..codi_models.training.finetune import Finetune, parse_pairs  # the host starts without them

        out, runs = model_path(save_as), _runs(save_as)
        what = Finetune(
            stage=stage, data=data_path(data), out=out, runs=runs, model=folders.model_folder(name), modality=modality,
            pairs=parse_pairs(pairs), steps=steps, batch=batch, learning_rate=learning_rate or None, bf16=bf16, checkpointing=checkpointing,
            skip_unreadable=skip_unreadable, seed=seed, again=True,
        )  # fmt: skip
        losses = _train(what)
        picture = draw_curve(losses, f"{save_as}: {what.name}")
        image = to_image(picture)[None]  # (1, H, W, 3)
        return io.NodeOutput(handle.open_handle(save_as), image, save_as, ui=ui.PreviewImage(image, cls=cls))


def data_path(data: str) -> Path:
    """A folder or tar below the host's input folder. Raises CoDiError for anything else."""
    root = Path(folder_paths.get_input_directory()).resolve()
    path = root / data
    if not data.strip() or not folders.inside(path, root) or path.resolve() == root or not path.exists():
        raise CoDiError(f"no data named {data[:200]!r} in {root}: put a folder of pairs, or a tar, there and give its name")
    return path.resolve()


def model_path(name: str) -> Path:
    """The folder in models/codi that a name stands for. Raises CoDiError for other names and those of the pack."""
    if not name.isascii() or name != name.strip() or not plain_name(name.replace(" ", "-"), 100):
        raise CoDiError(f"{name[:200]!r} is no name for a model folder: {PLAIN}")
    if (SHIPPED / name).exists():
        raise CoDiError(f"{name!r} is a model of the pack itself: give another name, or it could not be told apart")
    root = folder_paths.get_folder_paths(folders.KEY)[0]
    for path, folder in ((Path(root) / name, root), (_runs(name), folder_paths.get_output_directory())):
        if not folders.inside(path, folder):
            raise CoDiError(f"{path} is a link that leads out of {folder}: give another name")
    return Path(root) / name


def _runs(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / RUNS / name


def _train(what: Any) -> list[float]:
    """Train (a Finetune) with the host's progress bar, loss plot and stop button; returns the losses."""
    from accelerate import Accelerator

    from ..codi_models.training.finetune import finetune

    device = mm.get_torch_device()
    if device.type != "cpu":
        mm.unload_all_models()
        mm.soft_empty_cache()
    losses: list[float] = []
    bar = comfy.utils.ProgressBar(what.steps)
    shown = 0.0

    def encoding(done: int, count: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, max(count, 1))

    def progress(step: int, loss: float) -> None:
        nonlocal shown
        losses.append(loss)
        preview, moment = None, time.monotonic()
        if moment - shown > _PREVIEW_EVERY:
            shown, preview = moment, ("JPEG", draw_curve(losses, f"{what.name}, step {step}"), 640)
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(step, what.steps, preview)

    # The host runs nodes in inference mode, whose tensors cannot be trained.
    with torch.inference_mode(False), torch.enable_grad():
        finetune(what, accelerator=Accelerator(cpu=device.type == "cpu"), say=logging.info, encoding=encoding, progress=progress)
    return losses

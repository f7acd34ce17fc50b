"""Which outputs belong together: encoded back, compared in the shared space, and the best of a batch picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..codi_models.coherence import AMONG, best, principal_axes, scores, similarities
from ..codi_models.errors import CoDiError
from ..codi_models.figures import draw_matrix, draw_points, to_image
from ..codi_models.modalities import MODALITIES
from .host import shared
from .host.handle import CoDiHandle
from .host.unconditional import marked
from .schema import PROMPTS, TOOLS, CodiModel, Node, schema

_SHOWN = 16  # matrices of a batch that are drawn


def _prompts() -> Any:
    prompt = io.Conditioning.Input("prompt", tooltip="A prompt or a mixture from CoDi's nodes, to compare with.")
    return io.Autogrow.Input(
        "prompts",
        tooltip="Prompts to compare with; an input appears when the last is connected.",
        template=io.Autogrow.TemplatePrefix(prompt, prefix="prompt", min=0, max=12),
    )


def compared(codi: str) -> list[Any]:
    return [
        CodiModel.Input("codi", tooltip=codi),
        io.Latent.Input("latent", optional=True, tooltip="Sampled joint LATENT; every part of it is decoded and encoded back."),
        _prompts(),
        io.String.Input(
            "names",
            default="",
            optional=True,
            tooltip="Names of the prompts in the figure, separated by commas; empty: as found in the graph.",
        ),
    ]


class EncodeOutputs(Node):
    """Parts of a LATENT as prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiEncodeOutputs",
            display_name="CoDi Encode Outputs",
            category=PROMPTS,
            description="Decodes every part of a joint LATENT and encodes it back to the shared space: outputs as prompts.",
            search_aliases=["encode outputs", "re-encode", "cycle", "embedding of output"],
            inputs=[
                CodiModel.Input("codi", tooltip="The model that made the LATENT."),
                io.Latent.Input("latent", tooltip="Sampled joint LATENT."),
            ],
            outputs=[
                io.Conditioning.Output(display_name=m, tooltip=f"The made {m} as a prompt; nothing runs on it where the LATENT has none.")
                for m in MODALITIES
            ],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict) -> io.NodeOutput:
        from comfy_execution.graph_utils import ExecutionBlocker

        found = shared.encode_parts(codi, latent)
        return io.NodeOutput(*(marked(codi, found[m], m) if m in found else ExecutionBlocker(None) for m in MODALITIES))


class Coherence(Node):
    """Matrix of similarities."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiCoherence",
            display_name="CoDi Coherence",
            category=TOOLS,
            description="Similarities of prompts and outputs in the shared space, as numbers, as a matrix and as a map: what belongs "
            "together.",
            search_aliases=["similarity", "clip score", "agreement", "matrix", "shared space", "embedding map", "pca"],
            is_output_node=True,
            inputs=compared("The model that made prompts and LATENT."),
            outputs=[
                io.Image.Output(display_name="matrix", tooltip="Figure of the similarities, one per item of the batch (the first 16)."),
                io.Float.Output(display_name="score", tooltip="Mean similarity over the batch, -1 to 1."),
                io.String.Output(display_name="table", tooltip="All similarities as lines of text."),
                io.Image.Output(display_name="map", tooltip="Prompts, mixture and outputs on the two main axes of the shared space."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict | None = None, prompts: dict | None = None, names: str = "") -> io.NodeOutput:
        asked = shared.prompt_points(prompts, names, cls.hidden.prompt, cls.hidden.unique_id)
        points = asked + shared.output_points(codi, latent)
        matrix = similarities([p.embedding for p in points])  # (B, n, n)
        made = len(points) - len(asked)
        score = scores(matrix, made or len(points))
        labels, kinds = [p.label for p in points], [p.kind for p in points]
        pictures = []
        for row, one in enumerate(matrix[:_SHOWN]):
            title = f"coherence {float(score[row]):.2f}" + (f", item {row + 1} of {len(matrix)}" if len(matrix) > 1 else "")
            pictures.append(to_image(draw_matrix(one, labels, kinds, title)))
        image = torch.stack(pictures)  # (B, H, W, 3)
        table = "\n".join(_lines(matrix, score, labels))
        plot = shared_map(points)
        figures = [entry for figure in (image, plot) for entry in ui.PreviewImage(figure, cls=cls).as_dict()["images"]]
        return io.NodeOutput(image, float(score.mean()), table, plot, ui={"images": figures, **ui.PreviewText(table).as_dict()})


def shared_map(points: Sequence[shared.Point]) -> torch.Tensor:
    """Points of the shared space on its two main axes, each item of a batch by itself: an IMAGE (1, H, W, 3)."""
    rows, labels, kinds = [], [], []
    for point in points:
        many = len(point.embedding) > 1
        for i, row in enumerate(point.embedding[:, 0].float().cpu()):
            rows.append(row)
            labels.append(f"{point.label} {i + 1}" if many else point.label)
            kinds.append(point.kind)
    coordinates, variance = principal_axes(torch.stack(rows))
    return to_image(draw_points(coordinates, labels, kinds, variance))[None]


def _lines(matrix: torch.Tensor, score: torch.Tensor, labels: list[str]) -> list[str]:
    lines = []
    for row, one in enumerate(matrix):
        lines.append(f"item {row + 1}: {float(score[row]):.3f}")
        pairs = [(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))]
        lines += [f"  {labels[i]} - {labels[j]}: {float(one[i, j]):.3f}" for i, j in pairs]
    return lines


class PickBest(Node):
    """Best of a batch by coherence."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiPickBest",
            display_name="CoDi Pick Best",
            category=TOOLS,
            description="Keeps the items of a batch whose outputs fit each other and the prompt best.",
            search_aliases=["best of n", "rank", "select", "rerank"],
            is_output_node=True,
            inputs=[
                CodiModel.Input("codi", tooltip="The model that made the LATENT."),
                io.Latent.Input("latent", tooltip="Sampled joint LATENT with a batch."),
                io.Conditioning.Input("prompt", optional=True, tooltip="What the outputs should fit; without it, only each other."),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="How many to keep, best first."),
                io.Combo.Input(
                    "by",
                    options=list(AMONG),
                    default="all",
                    tooltip="all: outputs with each other and the prompt. prompts: only with the prompt. outputs: only with each other.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The best items, best first."),
                io.Float.Output(display_name="score", tooltip="Score of the best item, -1 to 1."),
                io.String.Output(display_name="ranking", tooltip="Scores of all items, best first."),
            ],
        )

    @classmethod
    def execute(cls, codi: CoDiHandle, latent: dict, count: int, by: str, prompt: Any = None) -> io.NodeOutput:
        asked = [shared.point_of(entry) for entry in prompt or []]
        made = [p.embedding for p in shared.output_points(codi, latent)]
        if many := [len(p) for p in asked if len(p) not in (1, len(made[0]))]:
            raise CoDiError(f"{many[0]} prompts do not go with a LATENT of {len(made[0])} samples: give one, or one for every sample")
        score = scores(similarities([*asked, *made]), len(made), among=by)
        rows = best(score, count)
        ranking = "\n".join(f"item {row + 1}: {float(score[row]):.3f}" for row in best(score, len(score)))
        return io.NodeOutput(shared.select(latent, rows), float(score[rows[0]]), ranking, ui=ui.PreviewText(ranking))

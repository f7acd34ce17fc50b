"""Every node with inputs that suit it, to change one at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from host.bad_values import Embeds
from host.graph import base_graph, node, outputs
from host.session import Session

SOURCES = {
    "CODI_MODEL": ["load", 1], "MODEL": ["load", 0], "LATENT": ["empty", 0], "CONDITIONING": ["yes", 0], "IMAGE": ["scene", 0],
    "VIDEO,IMAGE": ["scene", 2], "AUDIO": ["scene", 1], "MASK": ["mask", 0], "CLIP_VISION_OUTPUT": ["vision", 0], "CLIP": ["clip", 0],
}  # fmt: skip
CHOSEN: dict[str, dict[str, Any]] = {
    "CoDiLoadJoint": outputs("text"), "CoDiEmptyJointLatent": outputs("image", "audio"), "CoDiCompose": {"models.model0": ["member", 0]},
    "CoDiMask": outputs("image"), "CoDiJointSampler": {"steps": 1, "sampler_name": "euler", "scheduler": "normal"},
    "CoDiPromptWeight": {"floats": ["fed", 0]}, "CoDiDenoiser": {"denoiser": "text_denoiser"},
    "CoDiConditionMixer": {"prompts.prompt1": ["no", 0]},
}  # fmt: skip
"""Values that differ from the defaults, or that cannot be told from the schema."""
REFUSES = {"CoDiFromCLIP": "no CLIP ViT-L/14", "CoDiTrain": "no data named"}
"""Nodes that refuse even the usual here, for want of a CLIP and of data; and how."""
PLAIN = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
"""Types of widgets."""


class Rig:
    """A graph with a source of each type, run once, and a node `TestFeed` that hands on any value of `given` by its key."""

    def __init__(self, session: Session) -> None:
        from comfy_api.latest import io

        given: dict[str, Any] = {"floats": [0.0, 1.0], "vision": Embeds(torch.randn(1, 128)), "none": None}
        given["clip"] = SimpleNamespace(cond_stage_model=torch.nn.Linear(1, 1))

        class TestFeed(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                return io.Schema(node_id="TestFeed", category="test", inputs=[io.String.Input("key")], outputs=[io.AnyType.Output()])

            @classmethod
            def execute(cls, key):
                return io.NodeOutput(given[key])

        self.session, self.classes = session, session.classes
        self.classes["TestFeed"] = TestFeed
        graph = base_graph("video", "image", "text", "audio")
        graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
        graph["mask"] = node("SolidMask", value=1.0, width=64, height=64)
        graph["member"] = node("CoDiDenoiser", codi=["load", 1], denoiser="vision_denoiser", dtype="auto")
        graph.update({name: node("TestFeed", key=key) for name, key in (("fed", "floats"), ("vision", "vision"), ("clip", "clip"))})
        self.graph = graph
        save = node("CoDiSaveLatent", codi=["load", 1], latent=["empty", 0], filename_prefix="rig/latent")
        session.forget()
        shown = session.run({**graph, "save": save, **{f"end {name}": node("PreviewAny", source=[name, 0]) for name in graph}})
        self.file = "rig/{filename} [output]".format(**shown["save"]["latents"][0])
        slots = {name: range(len(self.classes[entry["class_type"]].RETURN_TYPES)) for name, entry in graph.items()}
        self.values = {(name, slot): session.value(name, slot) for name in graph for slot in slots[name]}

    def declared(self, kind: str) -> dict[str, Any]:
        """Inputs of a node by the name that a prompt gives them; of those that grow, the first."""
        found = {}
        for entry in self.classes[kind].GET_SCHEMA().inputs:
            template = getattr(entry, "template", None)
            found.update({entry.id: entry} if template is None else {f"{entry.id}.{template.names[0]}": template.input})
        return found

    def usual(self, kind: str) -> dict[str, Any]:
        """Inputs with which a node runs."""
        inputs: dict[str, Any] = {}
        for name, entry in self.declared(kind).items():
            io_type = entry.get_io_type()
            if io_type in SOURCES:
                inputs[name] = SOURCES[io_type]
            elif io_type == "STRING" and entry.force_input:
                inputs[name] = ["scene", 3]
            elif io_type == "COMBO":
                files = {"name": "tiny", "file": self.file}
                inputs[name] = files.get(name) or entry.default or next(iter(entry.options), "")
            elif io_type in PLAIN:
                inputs[name] = entry.default if entry.default is not None else ""
        return {**inputs, **CHOSEN.get(kind, {})}

    def prompt(self, kind: str, inputs: dict[str, Any], **more: dict) -> dict:
        """The graph with the node in it as "it", and an output node where it is none."""
        end = {} if self.classes[kind].OUTPUT_NODE else {"show": node("PreviewAny", source=["it", 0])}
        return {**self.graph, **more, "it": node(kind, **inputs), **end}

    def called(self, kind: str, inputs: dict[str, Any]) -> Any:
        """The node, called as the host calls it: links followed, lists for nodes that take lists, inputs that grow in a dictionary."""
        schema, given = self.classes[kind].GET_SCHEMA(), dict[str, Any]()
        for name, value in inputs.items():
            linked = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and tuple(value) in self.values
            value = self.values[tuple(value)] if linked else value
            head, _, tail = name.partition(".")
            if tail:
                given.setdefault(head, {})[tail] = value
            else:
                given[head] = [value] if schema.is_input_list else value
        with torch.inference_mode():
            return self.classes[kind].PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(**given).result

    def judged(self, kind: str, inputs: dict[str, Any], what: str) -> str | None:
        """What is wrong with the node's answer; None where it is a CoDiError that says something, or a sound result."""
        try:
            result = self.called(kind, inputs)
        except self.session.pack.codi_models.errors.CoDiError as error:
            return None if len(str(error)) > 20 else f"{what}: {error}"
        except Exception as error:
            return f"{what}: {type(error).__name__}: {str(error)[:200]}"
        return None if sound(result) else f"{what}: a result that is not finite"


def sound(value: Any) -> bool:
    """Whether all numbers in it are finite."""
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value.float()).all())
    if getattr(value, "is_nested", False):
        return all(map(sound, value.unbind()))
    if isinstance(value, dict):
        return all(map(sound, value.values()))
    return all(map(sound, value)) if isinstance(value, (list, tuple)) else True

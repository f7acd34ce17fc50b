"""Values that no input should get, by the type that its schema names: each thunk gives one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAN, INF = float("nan"), float("inf")


class Clip:
    """A VIDEO whose file is broken, or that has no frames."""

    def __init__(self, images: Any = None) -> None:
        self.images = images

    def get_duration(self) -> float:
        return 1.0

    def get_components(self) -> Clip:
        if self.images is None:
            raise ValueError("no video stream found in the file")
        return self


class Embeds:
    """A CLIP_VISION_OUTPUT."""

    def __init__(self, image_embeds: Any) -> None:
        self.image_embeds = image_embeds


def nested(*shapes: tuple[int, ...]) -> Any:
    from comfy.nested_tensor import NestedTensor

    return NestedTensor([torch.zeros(shape) for shape in shapes])


def foreign_model() -> Any:
    """A MODEL of another family, as far as a node can see."""
    import comfy.model_patcher

    place = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(torch.nn.Linear(2, 2), load_device=place, offload_device=place)


def sound(wave: Any, rate: Any = 16000) -> dict[str, Any]:
    return {"waveform": wave, "sample_rate": rate}


_PICTURES: list[Callable[[], Any]] = [
    lambda: "text", lambda: 3, lambda: [], lambda: {},
    lambda: torch.zeros(0, 8, 8, 3), lambda: torch.zeros(8, 8, 3), lambda: torch.zeros(1, 8, 8, 2), lambda: torch.zeros(1, 8, 0, 3),
    lambda: torch.zeros(1, 8, 8, 3, dtype=torch.int64), lambda: torch.full((1, 64, 64, 3), NAN), lambda: torch.full((1, 64, 64, 3), INF),
    lambda: torch.full((1, 64, 64, 3), -7.0), lambda: torch.rand(1, 1, 1, 3), lambda: torch.rand(3, 64, 64, 3),
]  # fmt: skip
_NUMBERS: list[Callable[[], Any]] = [lambda: "x", lambda: NAN, lambda: 1e30, lambda: -INF, lambda: torch.zeros(3), lambda: [], lambda: {}]

BAD: dict[str, list[Callable[[], Any]]] = {
    "IMAGE": _PICTURES,
    "VIDEO,IMAGE": [*_PICTURES, object, Clip, lambda: Clip(torch.zeros(0, 8, 8, 3)), lambda: Clip(torch.full((2, 64, 64, 3), NAN))],
    "AUDIO": [
        lambda: "x", dict, lambda: sound(None), lambda: sound(torch.zeros(1, 1, 0)), lambda: sound(torch.zeros(100)),
        lambda: sound(torch.full((1, 1, 9000), NAN)), lambda: sound(torch.zeros(1, 1, 9000, dtype=torch.int16)),
        lambda: sound(torch.rand(3, 1, 9000)), lambda: sound(torch.rand(1, 1, 1)),
        *[(lambda r=rate: sound(torch.zeros(1, 1, 9000), r)) for rate in (0, None, "x", NAN, -1, 10**9)],
    ],
    "MASK": [
        lambda: "x", lambda: 3, lambda: torch.zeros(0, 8, 8), lambda: torch.full((1, 8, 8), NAN), lambda: torch.zeros(5),
        lambda: torch.ones(7, 8, 8), lambda: torch.zeros(1, 8, 8),
    ],
    "LATENT": [
        dict, lambda: "x", lambda: {"samples": None}, lambda: {"samples": torch.zeros(0, 4, 8, 8)}, lambda: {"samples": "x"},
        lambda: {"samples": torch.full((1, 4, 8, 8), NAN)}, lambda: {"samples": torch.zeros(1, 16, 8, 8)},
        lambda: {"samples": torch.zeros(1, 4)}, lambda: {"samples": nested((1, 4, 8, 8), (2, 8, 16, 8))},
        lambda: {"samples": nested((1, 4, 8, 8), (1, 4, 8, 8))}, lambda: {"samples": torch.zeros(3, 4, 8, 8)},
        lambda: {"samples": torch.zeros(1, 4, 8, 8), "noise_mask": torch.full((1, 1, 8, 8), NAN)},
        lambda: {"samples": torch.zeros(1, 8, 16, 8), "noise_mask": torch.zeros(3, 1, 5, 5)},
        *[(lambda n=n: {"samples": torch.zeros(1, 4, 8, 8), "batch_index": n}) for n in ("x", {}, 3, [10**12], [-1], [0.5], [[0]])],
    ],
    "CONDITIONING": [
        lambda: "x", list, dict, lambda: [[None, {}]], lambda: [[torch.zeros(1, 1, 128)]], lambda: [[torch.zeros(1, 1, 128), {}, 1]],
        lambda: [[torch.zeros(1, 77, 768), {}]], lambda: [[torch.full((1, 1, 128), NAN), {}]], lambda: [[torch.zeros(0, 1, 128), {}]],
        lambda: [[torch.randn(3, 1, 128), {}]], lambda: [[torch.zeros(1, 1, 128), {}]], lambda: [[torch.zeros(128), {}]],
        lambda: [[torch.randn(1, 1, 128), {}]] * 2, lambda: [[torch.randn(1, 1, 128), {"codi_frames": torch.randn(1, 5, 1, 128)}]],
    ],
    "MODEL": [lambda: "x", object, foreign_model],
    "CODI_MODEL": [lambda: "x", dict, object],
    "CLIP": [lambda: "x", object, lambda: Embeds(None)],
    "CLIP_VISION_OUTPUT": [
        lambda: "x", object, lambda: Embeds(None), lambda: Embeds(torch.full((1, 128), NAN)), lambda: Embeds(torch.zeros(1, 5)),
        lambda: Embeds(torch.zeros(0, 128)),
    ],
    "STRING": [list, dict, object, lambda: 3, lambda: "\x00../../x", lambda: "y" * 3000],
    "INT": [*_NUMBERS, lambda: 1.5],
    "FLOAT": _NUMBERS,
    "BOOLEAN": [lambda: "x", list, object],
    "COMBO": [lambda: "nope", lambda: 3, list, lambda: "../x"],
    "FLOAT,FLOATS": [lambda: "abc", lambda: NAN, lambda: [NAN], list, lambda: [[]], lambda: ["x"], object, lambda: [[1.0], [INF]]],
    "CURVE": [
        lambda: "x", dict, lambda: 5, lambda: {"points": []}, lambda: {"points": [[1, 0], [0, 1]]}, lambda: {"points": [[0, NAN]]},
        lambda: {"points": [[0, 0], [0, 1], [0, 2]]}, lambda: {"points": "x"},
    ],
}  # fmt: skip
"""What links may hand over, None besides."""

WIDGETS: dict[str, list[Any]] = {
    "INT": [None, [], {"a": 1}, "abc", 1e308, -5, 10**30, "1"],
    "FLOAT": [None, [], {"a": 1}, "abc", NAN, INF, -INF, "1"],
    "STRING": [None, ["a"], {"a": 1}, "\x00../../x", "y" * 3000, True, "0.5:1, 0.2:0", "0:nan, 2:inf", ":,;=<"],
    "BOOLEAN": [None, [], "false", 7],
    "COMBO": [None, [], {"a": 1}, "nope", 3],
}
"""What a prompt in JSON may hold in place of a widget's value."""

"""Nodes with inputs of every origin: what other nodes made, values of wrong types, numbers at the ends of their ranges."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from outcomes import Obscure, Stopped

POOL = 24  # values of a type that are kept for later nodes
LONG = 15.0  # seconds after which a user would interrupt: a large latent takes its time, and must let itself be stopped
_LIMIT = 48 << 20  # elements of a result that is kept


def tries(seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls of nodes, as the host makes them. Results go into a pool that later calls draw from, so that graphs of any depth arise."""
    from host.bad_values import BAD
    from host.rig import REFUSES, SOURCES, Rig
    from host.session import Session
    from host.setting import HOST, PACK, make_base

    if HOST is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder")
    rig, dice = Rig(Session(HOST, make_base(Path(tempfile.mkdtemp())), PACK)), random.Random(seed)
    nodes = [name for name in sorted(rig.classes) if name.startswith("CoDi") and name not in REFUSES]
    pool: dict[str, list[Any]] = {}
    for kind, link in SOURCES.items():
        pool[kind] = [rig.values[tuple(link)]]

    def value(entry: Any) -> Any:
        io_type = entry.get_io_type()
        chance = dice.random()
        if io_type in ("INT", "FLOAT"):
            low, high = (getattr(entry, n, None) for n in ("min", "max"))
            low, high = -1000 if low is None else low, 1000 if high is None else high
            near = dice.choice([low, high, dice.uniform(low, min(high, low + 16)), dice.uniform(low, high), entry.default or low])
            return int(near) if io_type == "INT" else float(near)
        if io_type == "COMBO" and chance < 0.9:
            return dice.choice(list(entry.options) or [""])
        if io_type == "BOOLEAN":
            return dice.random() < 0.5
        if io_type == "STRING":
            return dice.choice(_TEXTS)(dice)
        if chance < 0.75 and pool.get(io_type):
            return dice.choice(pool[io_type])
        if chance < 0.9 and io_type in BAD:
            return dice.choice(BAD[io_type])()
        return dice.choice(dice.choice([values for values in pool.values() if values]))

    def keep(kind: str, result: Any) -> None:
        for output, made in zip(rig.classes[kind].GET_SCHEMA().outputs, result or (), strict=False):
            values = pool.setdefault(output.get_io_type(), [])
            if _elements(made) < _LIMIT:
                values.append(made)
                if len(values) > POOL:
                    values.pop(1 + dice.randrange(POOL - 1))

    while True:
        kind = dice.choice(nodes)
        inputs = rig.usual(kind)
        declared = rig.declared(kind)
        bounded = {"steps": dice.randint(1, 4)} if "steps" in declared else {}  # a thousand steps are slow, not wrong
        for name in dice.sample(sorted(declared), min(len(declared), dice.choice((1, 1, 2, 3, 9)))):
            inputs[name] = value(declared[name])
            if dice.random() < 0.05:
                inputs.pop(name)
        inputs |= bounded

        def attempt(kind: str = kind, inputs: dict[str, Any] = inputs) -> None:
            from host.rig import sound

            missing = [n for n, entry in rig.declared(kind).items() if n not in inputs and not entry.optional]
            if missing or not _admitted(rig.declared(kind), inputs):
                return  # the host refuses this before the node is called
            with _interrupted_after(LONG):
                result = rig.called(kind, inputs)
            if not sound(result):
                raise Obscure("a result that is not finite")
            keep(kind, result)

        yield f"{kind}({', '.join(f'{n}={_short(v)}' for n, v in inputs.items())})", attempt


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Press the host's interrupt then. Raises Stopped where it ended the work."""
    import comfy.model_management as mm

    timer = threading.Timer(seconds, mm.interrupt_current_processing)
    timer.start()
    try:
        yield
    except mm.InterruptProcessingException as error:
        raise Stopped from error
    finally:
        timer.cancel()
        timer.join()
        mm.interrupt_current_processing(False)


def _admitted(declared: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Whether the host's own checks of widgets let the values through."""
    for name, entry in declared.items():
        if (
            name in inputs
            and entry.get_io_type() == "COMBO"
            and isinstance(inputs[name], str)
            and inputs[name] not in (entry.options or [])
        ):
            return False
    return True


_TEXTS: list[Callable[[random.Random], str]] = [
    lambda dice: dice.choice(("", "a red star", "0:1, 0.5:0.2, 1:0", "1, 2, nan", "1e400, -1", "video<audio=0.5", "video, audio+text")),
    lambda dice: dice.choice(("../../etc/passwd", "\0\x1b[31m", "con.", "é😀\u202e")),
    lambda dice: "x" * dice.choice((100, 10_000, 300_000)),
    lambda dice: "1," * dice.choice((100, 50_000)),
    lambda dice: "".join(chr(dice.randrange(32, 0x2FF)) for _ in range(dice.randrange(1, 60))),
]


def _elements(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    if getattr(value, "is_nested", False):
        return sum(map(_elements, value.unbind()))
    if isinstance(value, dict):
        return sum(map(_elements, value.values()))
    return sum(map(_elements, value)) if isinstance(value, (list, tuple)) else 0


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}"
    text = repr(value) if isinstance(value, str | int | float | bool | list) else type(value).__name__
    return text[:60]

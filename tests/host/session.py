"""A ComfyUI in this process, without sockets: the real node loader, validator and executor."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
import uuid
from pathlib import Path
from typing import Any


class Failed(Exception):
    """A prompt that the host refused or that stopped with an error; `node` is the failing node's class, `kind` the exception's."""

    def __init__(self, text: str, node: str | None = None, kind: str = "") -> None:
        super().__init__(text)
        self.node, self.kind = node, kind


class Session:
    """One host for the whole test run: `run` a prompt in API format, read any node's outputs with `value`."""

    def __init__(self, host: Path, base: Path, pack: Path) -> None:
        sys.path.insert(0, str(host))
        self._start(base)
        import execution
        import server

        import nodes

        self.execution, self.events = execution, []
        self.loop = asyncio.new_event_loop()
        self.server = server.PromptServer(self.loop)
        self.server.send_sync = lambda event, data, sid=None: self.events.append((event, data))
        self._hook_progress()
        self._wait(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        if not self._wait(nodes.load_custom_node(str(pack), module_parent="custom_nodes")):
            raise RuntimeError(f"the host could not load {pack}")
        self.classes = nodes.NODE_CLASS_MAPPINGS
        self.pack = sys.modules[self.classes["CoDiLoad"].__module__.removesuffix(".nodes.load")]
        self.executor = execution.PromptExecutor(
            self.server, cache_type=execution.CacheType.CLASSIC, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        )

    @staticmethod
    def _start(base: Path) -> None:
        """Parse the host's command line, then import in the order that keeps its `utils` and `nodes` importable."""
        import torch

        saved, sys.argv = sys.argv, ["main.py", "--base-directory", str(base)]
        if not torch.cuda.is_available():
            sys.argv.append("--cpu")
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args

        sys.argv = saved
        import utils.extra_config  # noqa: F401

    def _hook_progress(self) -> None:
        import comfy.model_management as mm
        import comfy.utils

        def bar(value: int, total: int, preview: Any, node_id: str | None = None) -> None:
            mm.throw_exception_if_processing_interrupted()
            self.events.append(("progress", {"value": value, "max": total, "preview": preview}))

        comfy.utils.set_progress_bar_global_hook(bar)

    def _wait(self, thing: Any) -> Any:
        return self.loop.run_until_complete(thing)

    def run(self, prompt: dict, **extra: Any) -> dict:
        """UI outputs of a prompt by node id. Raises Failed with the host's message."""
        pid, prompt = uuid.uuid4().hex, copy.deepcopy(prompt)  # the host writes into the prompt
        self.events.clear()
        ok, error, outputs, node_errors = self._wait(self.execution.validate_prompt(pid, prompt, None))
        if not ok:
            raise Failed(json.dumps([error, node_errors], default=str))
        self.executor.execute(prompt, pid, {"client_id": "test", **extra}, outputs)
        if not self.executor.success:
            kind, data = [e for e in self.executor.status_messages if e[0] in ("execution_error", "execution_interrupted")][-1]
            raise Failed(data.get("exception_message", kind), data["node_type"], data.get("exception_type", ""))
        return self.executor.history_result["outputs"]

    def value(self, node: str, slot: int = 0) -> Any:
        """What a node of the last prompt handed on."""
        entry = self.executor.caches.outputs.get(node)
        if asyncio.iscoroutine(entry):
            entry = self._wait(entry)
        return entry.outputs[slot][0]

    def forget(self) -> None:
        """Empty the executor's caches."""
        self.executor.reset()

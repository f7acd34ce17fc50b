"""Importing the pack imports nothing heavy: a host that starts with it starts as fast as without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from host.setting import PACK

HEAVY = (
    "diffusers", "open_clip", "accelerate", "torchaudio", "torchvision", "transformers", "tokenizers", "scipy", "matplotlib",
    "tensorboard", "ray", "sklearn", "pandas",
)  # fmt: skip
BROUGHT_BY_A_HOST = ("av", "PIL", "tqdm")  # every ComfyUI has them loaded before any pack

# Notes what modules of the pack ask for, whether it is loaded already or not, and what is loaded on the way.
_WATCH = """
import builtins, json, sys
asked, plain = set(), builtins.__import__
def watched(name, globals=None, *rest, **more):
    if {mark!r} in str((globals or {{}}).get("__name__")) and not (rest[2:] and rest[2]) and not more.get("level"):
        asked.add(name.split(".")[0])
    return plain(name, globals, *rest, **more)
builtins.__import__ = watched
before = set(sys.modules)
{load}
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print("RESULT" + json.dumps(sorted((asked | new) & set({heavy!r}))))
"""

_HEADLESS = "import codi_models.pipeline, codi_models.cli.generate, codi_models.__main__"
_HOST = """
import asyncio
loop = asyncio.new_event_loop()
assert loop.run_until_complete(host_nodes.load_custom_node({pack!r}, module_parent="custom_nodes"))
assert "CoDiJointSampler" in host_nodes.NODE_CLASS_MAPPINGS
"""
_START_HOST = """
import sys
sys.argv = ["main.py", "--cpu", "--base-directory", {base!r}]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.cli_args, utils.extra_config
import nodes as host_nodes, comfy.samplers, comfy_api.latest
"""


def _heavy(code: str, cwd: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ""}
    )
    assert "RESULT" in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("RESULT")[2])


def test_headless_imports():
    assert _heavy("import torch, numpy\n" + _WATCH.format(mark="codi_models", load=_HEADLESS, heavy=HEAVY + BROUGHT_BY_A_HOST), PACK) == []


def test_the_watch_sees_what_it_should():
    found = _heavy("import torch\n" + _WATCH.format(mark="codi_models", load="import codi_models.media, scipy.signal", heavy=HEAVY), PACK)
    assert found == ["scipy"]


def test_imports_in_a_host(host, tmp_path):
    code = _START_HOST.format(base=str(tmp_path)) + _WATCH.format(mark=str(PACK), load=_HOST.format(pack=str(PACK)), heavy=HEAVY)
    assert _heavy(code, host) == []

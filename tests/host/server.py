"""A ComfyUI of its own process, spoken to over HTTP and websocket as the front end does."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import torch

from .setting import find_front_end

BOOT_SECONDS = 180


class Server:
    """`main.py` on a free port with the pack in custom_nodes of its base directory."""

    def __init__(self, host: Path, base: Path, pack: Path, *options: str) -> None:
        packs = base / "custom_nodes"
        packs.mkdir(exist_ok=True)
        link = packs / "ComfyUI-CoDi"
        if not link.exists():
            link.symlink_to(pack, target_is_directory=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log_file = f"http://127.0.0.1:{port}", base / "server.log"
        command = [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
        command += ["--database-url", f"sqlite:///{base}/comfy.sqlite", "--disable-api-nodes", *options]
        if front_end := find_front_end():
            command += ["--front-end-root", str(front_end)]
        if not torch.cuda.is_available():
            command.append("--cpu")
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(command, cwd=host, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": ""})
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        end = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < end:
            try:
                self.get("/system_stats")
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"the host did not start:\n{self.log()[-3000:]}")

    def log(self) -> str:
        """What the server printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> bytes:
        """Body of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def json(self, path: str) -> Any:
        """Body of a GET request, parsed."""
        return json.loads(self.get(path))

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        """Status and parsed body of a POST request; an empty body is None."""
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                body, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            body, status = error.read(), error.code
        return status, json.loads(body) if body else None

    def run(self, prompt: dict, *, at: Any = None, seconds: float = 120, **extra: Any) -> Run:
        """Queue a prompt and follow it on the websocket until it ends. `at(kind, data)` is called for every event."""
        run = Run()
        asyncio.run(asyncio.wait_for(self._follow(run, prompt, at, extra), seconds))
        return run

    async def _follow(self, run: Run, prompt: dict, at: Any, extra: dict) -> None:
        import aiohttp

        client = uuid.uuid4().hex
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket_:
            status, answer = self.post("/prompt", {"prompt": prompt, "client_id": client, "extra_data": extra})
            if status != 200:
                run.end, run.error = "refused", json.dumps(answer)
                return
            run.id = answer["prompt_id"]
            async for message in socket_:
                if message.type == aiohttp.WSMsgType.BINARY:
                    run.binary.append(message.data)
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                run.events.append((kind, data))
                if at:
                    at(kind, data)
                if kind in ("execution_success", "execution_error", "execution_interrupted") and data["prompt_id"] == run.id:
                    run.end, run.error = kind, data.get("exception_message", "")
                    break
        for _ in range(100):  # the host writes its history just after it says that a run has ended
            if entry := self.json(f"/history/{run.id}").get(run.id):
                run.outputs = entry["outputs"]
                break
            await asyncio.sleep(0.1)

    def file(self, shown: dict) -> bytes:
        """Contents of a file that a node showed."""
        return self.get(f"/view?filename={shown['filename']}&subfolder={shown['subfolder']}&type={shown['type']}")

    def stop(self) -> None:
        """End the server's process."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Run:
    """How a queued prompt ended, and what was seen on the way."""

    def __init__(self) -> None:
        self.id, self.end, self.error = "", "", ""
        self.events: list[tuple[str, Any]] = []
        self.binary: list[bytes] = []
        self.outputs: dict[str, Any] = {}

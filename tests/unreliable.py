"""A hub on localhost that breaks, stalls, cuts short, redirects, refuses and forgets ranges, as it is told."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMITS = {"main": "a" * 40, "other": "b" * 40}


class UnreliableHub:
    """`files`: repository -> path -> bytes. `faults`: what happens to the next requests of files, in order; then all goes well.

    `asked` lists path@commit of every file request, `ranges` the Range headers, `tokens` the Authorization headers by server."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(i)) for i in range(2)]  # the second stores large files
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.reset()

    def reset(self, files: dict[str, dict[str, bytes]] | None = None) -> None:
        """Other content, no faults, no memory."""
        self.files = {name: dict(content) for name, content in (files or {}).items()}
        self.commits = dict(COMMITS)
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.tokens: list[list[str]] = [[], []]
        self.always = ""
        self.stall_seconds = 2.0

    def stop(self) -> None:
        """End both servers."""
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def _handler(hub, number: int) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                hub.tokens[number].append(self.headers.get("Authorization", ""))
                hub._answer(self)

            def log_message(self, *_) -> None:
                pass

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = request.path.partition("?")[0].strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        repository, revision = "/".join(parts[2:4] if listing else parts[:2]), parts[5 if listing else 3]
        commit = self.commits.get(revision, revision)
        files, name = self.files.get(repository, {}), "/".join(parts[4:])
        if listing and commit in self.commits.values():
            lfs = {path: {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d)} for path, d in files.items()}
            siblings = [{"rfilename": path, "size": len(d), "lfs": lfs[path]} for path, d in files.items()]
            return self._send(request, json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode())
        if listing or name not in files:
            return self._send(request, b"", 404)
        fault = self.always or (self.faults.pop(0) if self.faults else "")
        if fault == "redirect":
            return self._send(request, b"", 302, Location=f"{self.storage}{request.path}")
        self.asked.append(f"{name}@{commit}")
        self.ranges.append(request.headers.get("Range", ""))
        data, status, headers = files[name], 200, {}
        if fault == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault == "longer":
            data += b"more"
        if fault in ("401", "404", "416", "500", "503"):
            return self._send(request, b"", int(fault))
        if fault != "no-ranges" and (asked := re.match(r"bytes=(\d+)-", request.headers.get("Range", ""))):
            start = int(asked[1])
            if start >= len(data):
                return self._send(request, b"", 416)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        self._send(request, data, status, fault, **headers)

    def _send(self, request: BaseHTTPRequestHandler, data: bytes, status: int = 200, fault: str = "", **headers: str) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key.replace("_", "-"), value)
        if fault != "no-length":
            request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        half = len(data) // 2
        if fault in ("break", "stall", "nothing"):
            request.wfile.write(data[: 0 if fault == "nothing" else half])
            request.wfile.flush()
            if fault == "stall":
                time.sleep(self.stall_seconds)
            return
        try:
            request.wfile.write(data)
        except OSError:  # the client has left
            pass

"""The real front end in a headless Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((p for p in (shutil.which("chromium"), shutil.which("chromium-browser"), shutil.which("google-chrome")) if p), None)
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
_COUNT_LOADS = """() => {
  let app
  window.loads = 0
  Object.defineProperty(window, 'app', {
    configurable: true,
    get: () => app,
    set: value => {
      const load = value.loadGraphData
      value.loadGraphData = async function (...given) {
        try { return await load.apply(this, given) } finally { window.loads++ }
      }
      app = value
    },
  })
}"""
_EMPTY = {"nodes": [], "links": [], "groups": [], "config": {}, "extra": {}, "last_node_id": 0, "last_link_id": 0, "version": 0.4}


class Page:
    """A loaded front end: open a workflow, run it, see what it shows.

    `queued` collects the prompts that it sent in API format, `crashes` and `missing` what went wrong."""

    def __init__(self, page: Any, url: str, nodes2: bool = False) -> None:
        self.page, self.nodes2 = page, nodes2
        self.queued: list[dict] = []
        self.crashes: list[str] = []
        self.missing: list[str] = []
        # The front end itself asks servers outside, which a machine for tests may not reach.
        page.on("pageerror", lambda error: None if str(error) == "Failed to fetch" else self.crashes.append(str(error)))
        page.on("response", lambda r: self.missing.append(r.url) if r.status >= 400 and "/extensions/" in r.url else None)
        page.on(
            "request",
            lambda r: self.queued.append(r.post_data_json["prompt"]) if r.method == "POST" and r.url.endswith("/prompt") else None,
        )
        page.request.post(url + "/settings", data={"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": nodes2})
        page.add_init_script(f"({_COUNT_LOADS})()")
        page.goto(url, timeout=120_000)
        self.ready()

    def ready(self) -> None:
        """Wait until the front end has loaded, at first or again, and with it the graph that it opens by itself: its own first one, whose
        models are missing here, or the one that was open before."""
        loaded = "() => window.app?.graph && window.loads && window.LiteGraph?.registered_node_types?.CoDiDecodeText"
        self.page.wait_for_function(loaded, timeout=120_000)
        self.page.evaluate(
            "() => { window.ends = []; for (const k of ['execution_success', 'execution_error'])"
            " app.api.addEventListener(k, () => window.ends.push(k)) }"
        )

    def open(self, workflow: dict, wait: int = 1500) -> None:
        """Open a workflow in UI format, and wait some milliseconds."""
        self.page.evaluate("w => app.loadGraphData(w)", workflow)
        self.page.wait_for_timeout(wait)

    def open_api(self, prompt: dict, name: str) -> None:
        """Open a workflow in API format, after an empty one: `loadApiJson` lets the search for what the last graph misses go on."""
        self.page.evaluate("w => app.loadGraphData(w)", _EMPTY)
        self.page.evaluate("([w, n]) => app.loadApiJson(w, n)", [prompt, name])
        self.page.wait_for_timeout(1500)

    def run(self, seconds: float = 180) -> str:
        """Press the run button and wait for the end: execution_success or execution_error."""
        seen = self.page.evaluate("() => window.ends.length")
        self.page.locator("button[data-testid='queue-button'], [data-testid='queue-button'] button").first.click()
        self.page.wait_for_function("n => window.ends.length > n", arg=seen, timeout=seconds * 1000)
        self.page.wait_for_timeout(1500)
        return self.page.evaluate("() => window.ends.at(-1)")

    def complaints(self) -> list[str]:
        """Texts of toasts and error overlays that stay."""
        for _ in range(80):
            texts = self.page.locator(".p-toast-message, [data-testid='error-overlay-messages'], .p-dialog").all_inner_texts()
            if not (stay := [t for t in texts if t.strip()]):
                return []
            self.page.wait_for_timeout(250)
        return stay

    def focus(self, kind: str, scale: float = 0.9) -> None:
        """Bring the first node of a kind, or the first of all, to the middle."""
        self.page.evaluate(
            """([kind, scale]) => {
              const node = app.graph._nodes.find(n => n.type == kind) ?? app.graph._nodes[0];
              app.canvas.ds.scale = scale;
              app.canvas.ds.offset = [450 / scale - node.pos[0], 150 / scale - node.pos[1]];
              app.graph.setDirtyCanvas(true, true);
            }""",
            [kind, scale],
        )
        self.page.wait_for_timeout(1000)

    def shoot(self, name: str) -> None:
        """A screenshot, where CODI_SCREENSHOTS names a folder for them."""
        if folder := os.environ.get("CODI_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}_{'nodes2' if self.nodes2 else 'classic'}.png")

    def assert_no_trouble(self) -> None:
        """Nothing crashed, nothing of ours was missing, nothing complains."""
        assert self.complaints() == [] and self.crashes == [] and self.missing == []


@contextmanager
def open_page(url: str, *, nodes2: bool = False) -> Iterator[Page]:
    """Page of a running server, in the classic canvas or in Nodes 2.0; skips the test where there is no Chromium or no playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        try:
            yield Page(browser.new_page(viewport={"width": 1920, "height": 1080}), url, nodes2)
        finally:
            browser.close()

"""The real front end in a headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next((p for p in (shutil.which("chromium"), shutil.which("chromium-browser"), shutil.which("google-chrome")) if p), None)
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


class Page:
    """A loaded front end: open a workflow, run it, see what it shows. `crashes` and `missing` collect what went wrong."""

    def __init__(self, page: Any, url: str, nodes2: bool = False) -> None:
        self.page, self.crashes, self.missing = page, [], []
        # The front end itself asks servers outside, which a machine for tests may not reach.
        page.on("pageerror", lambda error: None if str(error) == "Failed to fetch" else self.crashes.append(str(error)))
        page.on("response", lambda r: self.missing.append(r.url) if r.status >= 400 and "/extensions/" in r.url else None)
        page.request.post(url + "/settings", data={"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": nodes2})
        page.goto(url, timeout=120_000)
        page.wait_for_function("() => window.app?.graph && window.LiteGraph?.registered_node_types?.CoDiDecodeText", timeout=120_000)
        page.evaluate(
            "() => { window.ends = []; for (const k of ['execution_success', 'execution_error'])"
            " app.api.addEventListener(k, () => window.ends.push(k)) }"
        )

    def open(self, workflow: dict) -> None:
        """Open a workflow in UI format."""
        self.page.evaluate("w => app.loadGraphData(w)", workflow)
        self.page.wait_for_timeout(1500)

    def open_api(self, prompt: dict, name: str) -> None:
        """Open a workflow in API format."""
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
        """Texts of toasts and error overlays."""
        texts = self.page.locator(".p-toast-message, [data-testid='error-overlay-messages'], .p-dialog").all_inner_texts()
        return [t for t in texts if t.strip()]


@contextmanager
def open_page(url: str, *, nodes2: bool = False) -> Iterator[Page]:
    """Page of a running server, in the classic canvas or in Nodes 2.0; skips the test where there is no Chromium or no playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        try:
            yield Page(browser.new_page(viewport={"width": 1600, "height": 1000}), url, nodes2)
        finally:
            browser.close()

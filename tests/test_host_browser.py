"""A shipped workflow in the real front end."""

from __future__ import annotations

import json

from host.browser import open_page
from host.setting import PACK

_MEDIA = "() => [...document.querySelectorAll('{0}')].filter(e => e.checkVisibility() && e.readyState >= 1 && e.duration > 1).length"


def test_text_to_everything_is_shown(server):
    workflow = json.loads((PACK / "example_workflows" / "text_to_everything.json").read_text(encoding="utf-8"))
    with open_page(server.url) as page:
        page.open(workflow)
        assert page.page.evaluate("() => app.graph._nodes.length") == len(workflow["nodes"])
        assert page.complaints() == []
        assert page.run() == "execution_success"
        page.page.evaluate("() => { app.canvas.ds.scale = 0.7; app.canvas.ds.offset = [40, 120]; app.graph.setDirtyCanvas(true, true) }")
        page.page.wait_for_timeout(1500)
        pictures = page.page.evaluate(
            "() => app.graph._nodes.filter(n => n.type == 'CoDiDecodeImage')"
            ".flatMap(n => n.imgs ?? []).map(i => [i.naturalWidth, i.naturalHeight])"
        )
        assert pictures == [[64, 64]]
        page.page.wait_for_function(_MEDIA.format("video"), timeout=20_000)
        page.page.wait_for_function(_MEDIA.format("audio"), timeout=20_000)
        caption = page.page.locator(".codi-text").first
        assert caption.is_visible() and caption.text_content().strip()
        assert page.complaints() == [] and page.crashes == [] and page.missing == []

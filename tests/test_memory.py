"""The computation of device memory: what it counts, and the targets at official sizes."""

from __future__ import annotations

import sys

import pytest
import torch
from host.setting import PACK

sys.path.append(str(PACK / "benchmarks"))
import memory  # noqa: E402


def test_counts_what_is_alive_at_once():
    x = torch.empty(1000, device="meta")

    def run():
        y = x + 1  # 4000
        z = (y * 2).view(10, 100)  # 8000, a view adds nothing
        del y  # 4000
        z.add_(1)
        return torch.cat([z, z])  # 12000

    assert memory.peak_of(run) == 12000
    heads = torch.empty(1, 2, 500, 4, device="meta")
    assert memory.peak_of(lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)) == 16000


@pytest.fixture(scope="module")
def official():
    return memory.Official(torch.float16)


def test_weights_of_the_official_model(official):
    assert sum(official.weights(name) for name in ("vision_denoiser", "audio_denoiser")) == pytest.approx(4.41e9, rel=0.01)
    assert official.weights("vocoder") == pytest.approx(4 * 55.26e6, rel=0.01)


@pytest.mark.parametrize("run", memory.RUNS)
def test_targets(official, run):
    result = memory.measure(official, *memory.RUNS[run], size=512, video_size=256, frames=8)
    assert result["alone"] <= result["together"] < memory.TARGETS[run]
    denoise = next(row for row in result["rows"] if row["stage"] == "denoise")
    assert denoise["activations"] > 1e8


def test_the_table_of_templates_is_what_is_computed(official):
    table = memory.template_table(official)
    assert len(table.splitlines()) == 8
    assert table in (memory.WORKFLOWS.parents[1] / "docs" / "official.md").read_text(encoding="utf-8"), "run memory.py --templates"

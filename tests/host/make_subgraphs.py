"""Writes subgraphs/ from small prompts: the ready-made subgraphs that the host offers in its node library.

    python tests/host/make_subgraphs.py [name ...]

Each is folded in the real front end. The nodes of `OUTSIDE` stand for what users connect; they are left out."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from host.browser import open_page  # noqa: E402
from host.graph import node, outputs  # noqa: E402
from host.picture import lay_out  # noqa: E402
from host.server import Server  # noqa: E402
from host.setting import HOST, PACK, import_pack, make_base  # noqa: E402

TARGET = PACK / "subgraphs"
OWN = "model's own"


@dataclass(frozen=True)
class Blueprint:
    """Name and description of a subgraph, the prompt that it is folded from, and the widgets shown outside (node, widget)."""

    name: str
    description: str
    prompt: dict[str, dict]
    shown: tuple[tuple[str, str], ...]


def _core(*names: str, positive: str, latent: str = "3", cfg: float = -1.0) -> dict[str, dict]:
    """Loader to sampler for the named outputs; the positive prompt is the node `positive`, the start the node `latent`."""
    return {
        "1": node("CoDiLoadJoint", name="codi-mini", dtype="auto", **outputs(*names)),
        **({"2": node("CoDiEncodeText", codi=["1", 1], text="")} if positive == "2" else {}),
        "3": node("CoDiEmptyJointLatent", codi=["1", 1], **outputs(*names), width=0, height=0, frames=0, seconds=0.0, batch_size=1),
        "4": node(
            "CoDiJointSampler",
            model=["1", 0],
            positive=[positive, 0],
            latent=[latent, 0],
            seed=1,
            steps=-1,
            cfg=cfg,
            sampler_name=OWN,
            scheduler=OWN,
            denoise=1.0,
            wiring=OWN,
            alignment=-1.0,
            alignment_guidance=-1.0,
        ),
        "5": node("CoDiPreview", codi=["1", 1], latent=["4", 0]),
    }


_SAVE = {
    "image": ("SaveImage", "images", {"filename_prefix": "codi"}),
    "video": ("SaveVideo", "video", {"filename_prefix": "codi", "format": "auto", "codec": "auto"}),
    "audio": ("SaveAudio", "audio", {"filename_prefix": "codi"}),
    "text": ("PreviewAny", "source", {}),
}


def _ends(*names: str) -> dict[str, dict]:
    slots = ("image", "video", "audio", "text")
    ends = {}
    for number, name in enumerate(names):
        kind, field, more = _SAVE[name]
        ends[f"9{number}"] = node(kind, **{field: ["5", slots.index(name)], **more})
    return ends


def _scene() -> dict:
    return node("CoDiBounceScene", shape="star", colour="blue", beats="2", seed=1)


OUTSIDE = {kind for kind, _, _ in _SAVE.values()} | {"CoDiBounceScene"}
_COMMON = (("4", "seed"), ("4", "steps"), ("4", "cfg"), ("1", "name"))
BLUEPRINTS = (
    Blueprint(
        "Text to Everything (CoDi)",
        "One sentence to image, video with its audio, and caption, generated together.",
        {
            **_core("video", "image", "text", "audio", positive="6"),
            "6": node("CoDiEncodeText", codi=["1", 1], text="a red square bounces twice"),
            **_ends("image", "video", "audio", "text"),
        },
        (("6", "text"), *_COMMON),
    ),
    Blueprint(
        "Audio to Image (CoDi)",
        "An audio prompt to an image.",
        {**_core("image", positive="6"), "80": _scene(), "6": node("CoDiEncodeAudio", codi=["1", 1], audio=["80", 1]), **_ends("image")},
        _COMMON,
    ),
    Blueprint(
        "Image and Audio to Video (CoDi)",
        "An image prompt and an audio prompt, mixed, to a video with its audio.",
        {
            **_core("video", "audio", positive="8"),
            "80": _scene(),
            "6": node("CoDiEncodeImage", codi=["1", 1], image=["80", 0]),
            "7": node("CoDiEncodeAudio", codi=["1", 1], audio=["80", 1]),
            "8": node(
                "CoDiConditionMixer", **{"prompts.prompt0": ["6", 0], "prompts.prompt1": ["7", 0]}, weights="1, 1", method="renormalised"
            ),
            **_ends("video", "audio"),
        },
        (("8", "weights"), *_COMMON),
    ),
    Blueprint(
        "Video to Text (CoDi)",
        "A video to a caption.",
        {**_core("text", positive="6"), "80": _scene(), "6": node("CoDiEncodeVideo", codi=["1", 1], video=["80", 2]), **_ends("text")},
        _COMMON,
    ),
    Blueprint(
        "Video to Audio (CoDi)",
        "Audio and caption that fit a video, without a prompt; the video stays as it is.",
        {
            **_core("video", "text", "audio", positive="2", latent="6", cfg=1.0),
            "80": _scene(),
            "6": node("CoDiKeep", codi=["1", 1], latent=["3", 0], video=["80", 2]),
            **_ends("video", "audio", "text"),
        },
        (("4", "seed"), ("4", "steps"), ("1", "name")),
    ),
    Blueprint(
        "Extend Video (CoDi)",
        "A video goes on from its last frames, with audio.",
        {
            **_core("video", "audio", positive="7", latent="6"),
            "80": _scene(),
            "6": node("CoDiKeep", codi=["1", 1], latent=["3", 0], video=["80", 2], last_frames=3),
            "7": node("CoDiEncodeText", codi=["1", 1], text=""),
            **_ends("video", "audio"),
        },
        (("6", "last_frames"), ("7", "text"), *_COMMON),
    ),
)

_FOLD = """([name, description, outside, shown]) => {
  const inner = app.graph._nodes.filter(n => !outside.includes(n.type));
  const { subgraph, node } = app.graph.convertToSubgraph(new Set(inner));
  subgraph.name = name;
  node.title = name;
  for (const other of [...app.graph._nodes]) if (other !== node) app.graph.remove(other);
  // The front end makes inputs of some widgets by itself: what is shown outside is said by `shown` alone.
  const links = ['MODEL', 'CODI_MODEL', 'CONDITIONING', 'LATENT', 'IMAGE', 'AUDIO', 'VIDEO', 'VIDEO,IMAGE', 'IMAGE,VIDEO'];
  for (const input of [...subgraph.inputs]) if (!links.includes(input.type)) subgraph.removeInput(input);
  node.properties.proxyWidgets = shown;
  node.pos = [0, 0];
  node.size = [340, 60 + 30 * (shown.length + Math.max(node.inputs.length, node.outputs.length))];
  const graph = JSON.parse(JSON.stringify(app.graph.serialize()));
  Object.assign(graph.definitions.subgraphs[0], { name, description, category: "CoDi" });
  for (const input of graph.nodes[0].inputs) input.link = null;
  for (const output of graph.nodes[0].outputs) output.links = [];
  graph.nodes[0].widgets_values = [];  // the inner nodes hold the values
  delete graph.nodes[0].widgets_values_named;
  graph.extra = {};
  return JSON.stringify(graph);
}"""


def make(page: Any, blueprint: Blueprint) -> dict:
    """One subgraph, in the form of the host's own blueprints."""
    page.open_api(blueprint.prompt, "blueprint")
    lay_out(page)
    shown = [list(pair) for pair in blueprint.shown]
    return json.loads(page.page.evaluate(_FOLD, [blueprint.name, blueprint.description, sorted(OUTSIDE), shown]))


def main() -> None:
    """Command line."""
    import_pack()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=[blueprint.name for blueprint in BLUEPRINTS])
    names = parser.parse_args().names
    if HOST is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder")
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(HOST, make_base(Path(folder)), PACK)
        try:
            with open_page(server.url) as page:
                for blueprint in (b for b in BLUEPRINTS if b.name in names):
                    graph = make(page, blueprint)
                    (TARGET / f"{blueprint.name}.json").write_text(json.dumps(graph, separators=(",", ":")) + "\n", encoding="utf-8")
                    print(blueprint.name)
        finally:
            server.stop()


if __name__ == "__main__":
    main()

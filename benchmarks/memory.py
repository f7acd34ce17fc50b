"""Device memory of the official model, computed: weights by dtype, and the activations that are alive at once, without any data.

python benchmarks/memory.py [--dtype fp16|bf16|fp32] [--size 512] [--video-size 256] [--frames 8] [--json FILE] [--templates]

Networks are built on the meta device at official sizes and run on inputs of true sizes, a batch of two as guidance needs; every
storage that an operation makes is counted from its birth to its release, and the largest sum is the peak. Attention counts as fused
(its result only), as the host's attention on a GPU is. Not counted: what CUDA itself takes (0.3 to 0.6 GB), workspaces of
convolution kernels, and what the allocator holds in reserve.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from codi_models.components import COMPONENTS, build_component  # noqa: E402
from codi_models.config import CoDiConfig  # noqa: E402
from codi_models.joint import JointDenoiser  # noqa: E402
from codi_models.modalities import MODALITIES, denoisers_of  # noqa: E402
from codi_models.model import DTYPES  # noqa: E402
from codi_models.settings import Settings, latent_shapes  # noqa: E402

FULL = ("audio_autoencoder", "vocoder")  # the host keeps them in float32
GUIDED = 2  # rows of a batch under guidance


class Peak(TorchDispatchMode):
    """Largest sum of the bytes of all storages made inside the block that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive and storage._cdata not in given:
                    self._alive.add(storage._cdata)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._released, storage._cdata, storage.nbytes())
        return out

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)

    def _released(self, identity: int, size: int) -> None:
        self._alive.discard(identity)
        self.now -= size


class Fused(TorchFunctionMode):
    """Attention makes nothing but its result."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes of activations at the peak of `run`, inference mode; its inputs, made before, do not count."""
    with torch.inference_mode(), Fused(), Peak() as peak:
        result = run()
        del result
    return peak.most


class Official:
    """The official networks without data, and what running them takes."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.config, self.dtype = CoDiConfig.official(), dtype
        self.networks = {
            name: build_component(name, self.config, dtype=self.dtype_of(name), device="meta").eval().requires_grad_(False)
            for name in COMPONENTS
        }

    def dtype_of(self, name: str) -> torch.dtype:
        """Dtype that a component is kept in on a GPU."""
        return torch.float32 if name in FULL else self.dtype

    def weights(self, name: str) -> int:
        """Bytes of a component's weights."""
        return sum(t.nbytes for t in self.networks[name].state_dict().values())

    def empty(self, *shape: int, like: str = "clip", dtype: torch.dtype | None = None) -> torch.Tensor:
        """An input without data, in the dtype of a component."""
        return torch.empty(*shape, dtype=dtype or self.dtype_of(like), device="meta")

    def encode(self, kind: str) -> int:
        """Activations of one prompt."""
        size = self.config.clip.image_size
        if kind == "audio":
            clap: Any = self.networks["clap"].to("meta")  # its constant filters too
            with mock.patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()):  # which does not know the meta device
                return peak_of(lambda: clap.encode_audio(self.empty(1, clap.clip_samples, dtype=torch.float32)))
        calls: dict[str, Callable[[Any], Any]] = {
            "text": lambda clip: clip.encode_text(self.empty(1, self.config.clip.text_positions, dtype=torch.int64)),
            "image": lambda clip: clip.encode_image(self.empty(1, 3, size, size)),
            "video": lambda clip: clip.encode_video(self.empty(1, self.config.sampling.frames, 3, size, size)),
        }
        return peak_of(lambda: calls[kind](self.networks["clip"]))

    def denoise(self, settings: Settings) -> int:
        """Activations of one joint step under guidance, its latents included."""
        networks = {name: self.networks[name] for name in denoisers_of(settings.outputs)}
        joint = JointDenoiser(networks, register=False)
        context = self.empty(GUIDED, 1, self.config.vision_denoiser.context_dim)
        timesteps = self.empty(GUIDED, dtype=torch.float32)

        def step() -> Any:
            latents = {m: self.empty(GUIDED, *shape) for m, shape in latent_shapes(self.config, settings).items()}
            return joint(latents, timesteps, context)

        return peak_of(step)

    def decode(self, output: str, settings: Settings) -> int:
        """Activations of decoding one sample."""
        shape = latent_shapes(self.config, settings)[output]
        if output == "audio":
            z = self.empty(1, *shape, like="audio_autoencoder")
            return peak_of(lambda: self.networks["vocoder"](self.networks["audio_autoencoder"].decode(z)))  # type: ignore[operator]
        if output == "text":
            text, z = self.networks["text_autoencoder"], self.empty(1, *shape)
            ids = self.empty(1, self.config.text_autoencoder.max_tokens, dtype=torch.int64)
            return peak_of(lambda: text.logits(z, ids))  # type: ignore[operator]
        return peak_of(lambda: self.networks["image_autoencoder"].decode(self.empty(1, *shape)))  # type: ignore[operator]


def stages(official: Official, prompts: tuple[str, ...], settings: Settings) -> list[tuple[str, tuple[str, ...], int]]:
    """What the host runs, in its order: name, components used, bytes of activations."""
    found: list[tuple[str, tuple[str, ...], int]] = []
    for kind in prompts:
        found.append((f"encode {kind}", ("clap" if kind == "audio" else "clip",), official.encode(kind)))
    found.append(("denoise", tuple(denoisers_of(settings.outputs)), official.denoise(settings)))
    for output in settings.outputs:
        found.append((f"decode {output}", MODALITIES[output].decoders, official.decode(output, settings)))
    return found


def measure(official: Official, prompts: tuple[str, ...], outputs: tuple[str, ...], *, size: int, video_size: int, frames: int) -> dict:
    """Bytes by stage. `alone`: weights of the stage and its activations, the least that it can run in. `together`: as `alone`, but
    nothing that earlier stages loaded has been offloaded, which is what the host does while there is room."""
    settings = Settings.resolve(official.config, outputs, frames=frames, size=size)
    if size != video_size:
        settings = replace(settings, video_size=video_size)
    rows, resident = [], set[str]()
    for name, components, activations in stages(official, prompts, settings):
        weights = sum(official.weights(c) for c in components)
        resident.update(components)
        everything = sum(official.weights(c) for c in resident) + activations
        rows.append({"stage": name, "weights": weights, "activations": activations, "alone": weights + activations, "together": everything})
    return {"rows": rows, "alone": max(r["alone"] for r in rows), "together": max(r["together"] for r in rows)}


RUNS = {
    "text to video and audio": (("text",), ("video", "audio")),
    "any to any: four prompts to four outputs": (("text", "image", "audio", "video"), ("video", "image", "text", "audio")),
}
TARGETS = {"text to video and audio": 8e9, "any to any: four prompts to four outputs": 12e9}


WORKFLOWS = Path(__file__).resolve().parent.parent / "tests" / "workflows"


def templates() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Prompts and outputs of the templates of the official model, by their headings."""
    found = {}
    for file in sorted(WORKFLOWS.glob("official_*.json")):
        graph = [entry.values() for entry in json.loads(file.read_text(encoding="utf-8")).values()]
        prompts = tuple(kind.removeprefix("CoDiEncode").lower() for kind, *_ in graph if kind.startswith("CoDiEncode"))
        (made,) = (inputs for kind, inputs, *_ in graph if kind == "CoDiEmptyJointLatent")
        heading = (WORKFLOWS / "notes" / f"{file.stem}.md").read_text(encoding="utf-8").splitlines()[0]
        found[heading.removeprefix("## ")] = prompts, tuple(m for m in MODALITIES if made[m])
    return found


def template_table(official: Official) -> str:
    """What each template of the official model takes, at the model's own sizes: files of its components, their weights in memory, and
    on the device where the host offloads what is not in use and where it keeps everything."""
    usual = official.config.sampling
    lines = ["| template | disk | RAM | device, offloading | device, all kept |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, (prompts, outputs) in templates().items():
        run = measure(official, prompts, outputs, size=usual.image_size, video_size=usual.video_size, frames=usual.frames)
        settings = Settings.resolve(official.config, outputs)
        used = {component for _, components, _ in stages(official, prompts, settings) for component in components}
        disk = sum(sum(t.numel() for t in official.networks[c].state_dict().values()) * official.dtype.itemsize for c in used)
        sizes = disk, sum(map(official.weights, used)), run["alone"], run["together"]
        lines.append(" | ".join([f"| {name}", *(f"{size / 1e9:.1f} GB" for size in sizes)]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="fp16", choices=list(DTYPES))
    parser.add_argument("--size", type=int, default=512, help="edge of images in pixels")
    parser.add_argument("--video-size", type=int, default=256, help="edge of videos in pixels")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--json", metavar="FILE", help="also write the numbers")
    parser.add_argument("--templates", action="store_true", help="only what each template of the official model takes")
    args = parser.parse_args()
    official = Official(DTYPES[args.dtype])
    if args.templates:
        print(template_table(official))
        return
    sizes = f"images {args.size} px, videos {args.frames} x {args.video_size} px"
    print(f"computed from allocated tensors, {args.dtype}, {sizes}; GB = 1e9 bytes")
    print("\n| component | weights, GB |\n| --- | ---: |")
    for name in COMPONENTS:
        print(f"| {name}{' (float32)' if name in FULL else ''} | {official.weights(name) / 1e9:.2f} |")
    results = {}
    for name, (prompts, outputs) in RUNS.items():
        result = results[name] = measure(official, prompts, outputs, size=args.size, video_size=args.video_size, frames=args.frames)
        print(
            f"\n{name}:\n\n| stage | weights | activations | alone | with all before it still loaded |\n| --- | ---: | ---: | ---: | ---: |"
        )
        for row in result["rows"]:
            print(
                "| " + " | ".join([row["stage"], *(f"{row[k] / 1e9:.2f}" for k in ("weights", "activations", "alone", "together"))]) + " |"
            )
        print(
            f"\npeak {result['alone'] / 1e9:.2f} GB where the host offloads what is not in use, {result['together'] / 1e9:.2f} GB where it "
            f"keeps everything; target {TARGETS[name] / 1e9:.0f} GB in fp16"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

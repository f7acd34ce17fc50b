"""Runs every node of the host that takes a MODEL and gives one, on CoDi's MODELs, and writes docs/stock_nodes.md.

    python tests/host/make_stock_nodes.py [NODE ...]

With names of nodes only these are run, and their rows printed. Each is sampled with and without the node, from one seed: it works where
the latents are finite and differ."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from host.graph import SAMPLING, base_graph, node, shown  # noqa: E402
from host.session import Failed, Session  # noqa: E402
from host.setting import HOST, PACK, host_version, import_pack, make_base  # noqa: E402

TABLE = PACK / "docs" / "stock_nodes.md"
ALONE, JOINT = ("image",), ("video", "image", "text", "audio")
CHOSEN: dict[str, dict[str, Any]] = {
    "APG": {"momentum": 0.5, "norm_threshold": 1.0},
    "CFGOverride": {"cfg": 9.0}, "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0},
    "LazyCache": {"reuse_threshold": 3.0, "start_percent": 0.0}, "FreSca": {"freq_cutoff": 2}, "RenormCFG": {"renorm_cfg": 0.5},
    "HyperTile": {"tile_size": 1, "max_depth": 2}, "PatchModelAddDownscale": {"block_number": 1, "end_percent": 1.0},
    "SelfAttentionGuidance": {"scale": 2.0}, "Epsilon Scaling": {"scaling_factor": 1.1}, "TemporalScoreRescaling": {"tsr_k": 0.5},
    "ContextWindowsManual": {"context_length": 2, "context_overlap": 1, "dim": 2}, "ModelNoiseScale": {"noise_scale": 1.2},
    "WanContextWindowsManual": {"context_length": 5, "context_overlap": 1},
    "LTXVContextWindows": {"context_length": 9, "context_overlap": 1},
    "ModelMergeBlocks": {"input": 0.2, "middle": 0.2, "out": 0.2}, "ModelMergeSimple": {"ratio": 0.2},
    "ModelMergeSubtract": {"multiplier": 0.5}, "ModelSamplingDiscrete": {"zsnr": True}, "ModelComputeDtype": {"dtype": "bf16"},
    "UNetSelfAttentionMultiply": {"v": 3.0}, "UNetCrossAttentionMultiply": {"v": 3.0}, "DifferentialDiffusion": {"strength": 1.0},
    "UNetTemporalAttentionMultiply": {"self_structural": 3.0, "cross_structural": 3.0}, "VideoLinearCFGGuidance": {"min_cfg": 2.0},
    "SkipLayerGuidanceDiT": {"start_percent": 0.0, "end_percent": 1.0}, "ChromaRadianceOptions": {"nerf_tile_size": 8},
    "ScaleROPE": {"scale_x": 2.0}, "SkipLayerGuidanceDiTSimple": {"start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceSD3": {"start_percent": 0.0, "end_percent": 1.0}, "ModelSamplingSD3": {"shift": 3.0},
    "TomePatchModel": {"ratio": 0.6}, "NAGuidance": {"nag_scale": 5.0, "nag_alpha": 1.0, "nag_tau": 3.0},
    "LTXVModalityGuidance": {"modality_scale": 3.0}, "CFGNorm": {"strength": 0.9},
}  # fmt: skip
"""Values with which a node does something to a latent as small as these."""
NOT_RUN = {"TorchCompileModel": "not run: it compiles for minutes"}
SOURCES = {
    "CONDITIONING": ["middle", 0], "LATENT": ["empty", 0], "LATENT_OPERATION": ["operation", 0], "VAE": ["vae", 0], "IMAGE": ["picture", 0],
    "AUDIO": ["scene", 1],
}  # fmt: skip
SIZE = {"frames": 4, "width": 128, "height": 128}


def files(base: Path) -> None:
    """A LoRA and a hypernetwork for the host's loaders."""
    torch.manual_seed(0)
    for folder in ("loras", "hypernetworks"):
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v"
    lora = {f"{key}.lora_up.weight": torch.randn(32, 4), f"{key}.lora_down.weight": torch.randn(4, 32)}
    save_file(lora, base / "models" / "loras" / "some.safetensors")
    layers = lambda d: {"linear.0.weight": torch.randn(d, d), "linear.0.bias": torch.randn(d)}  # noqa: E731
    network: dict[Any, Any] = {d: [layers(d), layers(d)] for d in (16, 32, 64, 128)}
    torch.save({**network, "layer_structure": [1, 1], "activation_func": "linear"}, base / "models" / "hypernetworks" / "some.pt")


class Survey:
    """Both MODELs, sampled once without any node."""

    def __init__(self, base: Path) -> None:
        assert HOST is not None
        files(base)
        self.session = Session(HOST, base, PACK)
        self.plain = {outputs: self.sampled(outputs, None, {}) for outputs in (ALONE, JOINT)}

    def names(self) -> list[str]:
        """Nodes of the host that take a MODEL and give one."""
        return [k for k in sorted(self.session.classes) if not k.startswith(("CoDi", "Test")) and "MODEL" in self._types(k)
                and "MODEL" in getattr(self.session.classes[k], "RETURN_TYPES", ())]  # fmt: skip

    def _inputs(self, kind: str) -> dict[str, Any]:
        found = self.session.classes[kind].INPUT_TYPES()
        return {**found.get("required", {}), **found.get("optional", {})}

    def _types(self, kind: str) -> list[Any]:
        return [entry[0] for entry in self._inputs(kind).values()]

    def usual(self, kind: str) -> dict[str, Any] | str:
        """Inputs with which a node runs, or the type of the one that there is no source of."""
        inputs: dict[str, Any] = {}
        required = self.session.classes[kind].INPUT_TYPES().get("required", {})
        for name, (io_type, *options) in self._inputs(kind).items():
            more = options[0] if options else {}
            if io_type == "MODEL":
                inputs[name] = ["other" if name == "model2" else "model", 0]
            elif isinstance(io_type, str) and io_type in SOURCES:
                inputs[name] = SOURCES[io_type]
            elif isinstance(io_type, (list, tuple)) or io_type == "COMBO":
                choices = io_type if isinstance(io_type, (list, tuple)) else more.get("options", [])
                if not choices:
                    return name
                inputs[name] = more.get("default", choices[0])
            elif "default" in more:
                inputs[name] = more["default"]
            elif name in required:
                return str(io_type)
        if kind.startswith("ModelMerge"):
            inputs = {name: 0.2 if isinstance(value, float) else value for name, value in inputs.items()}
        return {**inputs, **CHOSEN.get(kind, {})}

    def sampled(self, outputs: tuple[str, ...], kind: str | None, inputs: dict[str, Any]) -> list[torch.Tensor]:
        """Parts of the latent that KSampler makes in four steps."""
        graph = base_graph(*outputs, **SIZE)
        graph["model"] = graph["load"]
        if outputs == ALONE:
            graph["model"] = node("CoDiDenoiser", codi=["load", 1], denoiser="vision_denoiser", dtype="auto")
        graph["other"] = graph["model"]
        if kind is not None and "Merge" in kind:
            graph["other"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name="some.safetensors", strength_model=1.0)
        graph["middle"] = node("CoDiEncodeText", codi=["load", 1], text="a blue star")
        graph["operation"] = node("LatentOperationTonemapReinhard", multiplier=0.3)
        graph["vae"], graph["scene"] = (
            node("CoDiVAE", codi=["load", 1]),
            node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2),
        )
        graph["picture"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0)
        if kind == "DifferentialDiffusion":
            graph["soft"] = node("SolidMask", value=0.5, width=128, height=128)
            graph["empty"] = node("SetLatentNoiseMask", samples=["before", 0], mask=["soft", 0])
            graph["before"] = base_graph(*outputs, **SIZE)["empty"]
        patched = ["model", 0]
        if kind is not None:
            slot = list(self.session.classes[kind].RETURN_TYPES).index("MODEL")
            graph["it"], patched = node(kind, **inputs), ["it", slot]
        links = {"model": patched, "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
        graph["sample"] = node("KSampler", **links, **{**SAMPLING, "cfg": 4.0, "steps": 4})
        torch.manual_seed(0)
        self.session.run(shown(graph, ["sample", 0]))
        samples = self.session.value("sample")["samples"]
        return [p.clone() for p in (samples.unbind() if samples.is_nested else [samples])]

    def outcome(self, kind: str, outputs: tuple[str, ...]) -> str:
        """What came of a node, in a few words."""
        if kind in NOT_RUN:
            return NOT_RUN[kind]
        inputs = self.usual(kind)
        if isinstance(inputs, str):
            return f"not run: needs {'a file' if inputs.islower() else inputs}, for another model"
        with heard() as words:
            try:
                made = self.sampled(outputs, kind, inputs)
                plain = self.sampled(outputs, None, {}) if kind == "DifferentialDiffusion" else self.plain[outputs]
            except Failed as failure:
                if failure.node == kind:
                    return f"the node itself fails: {' '.join(str(failure).split())[:120]}"
                kind_of = "refused" if failure.kind.endswith("CoDiError") else "ERROR"
                return f"{kind_of}: {' '.join(str(failure).split())[:200]}"
            except Exception as failure:
                return f"ERROR: {type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
        if not all(torch.isfinite(p).all() for p in made):
            return "ERROR: not finite"
        pairs = zip(outputs, made, plain, strict=True)
        changed = [m for m, a, b in pairs if (a - b).abs().max() > 1e-4 * b.std()]
        said = "; ".join(word.removeprefix("CoDi: ") for word in words)
        if changed:
            return "works" + (f" ({said})" if said else "")
        return f"no effect: {said or 'nothing to do here, or made for another network'}"


@contextmanager
def heard() -> Iterator[list[str]]:
    """CoDi's own lines in the log."""
    words: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: words.append(text) if (text := record.getMessage()).startswith("CoDi: ") else None  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield words
    finally:
        logging.getLogger().removeHandler(handler)


def main(only: list[str]) -> None:
    survey = Survey(make_base(Path(tempfile.mkdtemp()) / "base"))
    rows = []
    for kind in only or survey.names():
        row = (kind, survey.outcome(kind, ALONE), survey.outcome(kind, JOINT))
        print(" | ".join(row), flush=True)
        rows.append(row)
    if not only:
        TABLE.write_text(page(rows), encoding="utf-8")


def page(rows: list[tuple[str, str, str]]) -> str:
    """The page of the documentation."""
    cells = ["| `" + "` | ".join(row[:1]) + "` | " + " | ".join(cell.replace("|", "/") for cell in row[1:]) + " |" for row in rows]
    tried = [cell for row in rows for cell in row[1:] if not cell.startswith("not run")]
    counts = {what: sum(cell.startswith(what) for cell in tried) for what in ("works", "no effect", "refused", "the node itself", "ERROR")}
    return (
        HEAD.format(host=host_version(HOST), nodes=len(rows), **{k.replace(" ", "_"): v for k, v in counts.items()})
        + "\n".join(cells)
        + "\n"
    )  # type: ignore[arg-type]


HEAD = """# Model-patch nodes of ComfyUI on CoDi's MODELs

Every node of ComfyUI {host} that takes a MODEL and gives one, sampled with and without it from one seed: *alone* is CoDi Denoiser of
pictures, *joint* the MODEL of all four outputs. *works*: the latents are finite and differ. Made
by `python tests/host/make_stock_nodes.py`.

Of {nodes} nodes on two MODELs: {works} work, {no_effect} have no effect, {refused} are refused with a reason, {the_node_itself} fail by
themselves before anything of CoDi's runs (they ask for another model), {ERROR} fail otherwise.

- What guides (RescaleCFG, Perp-Neg, SAG, PAG, APG, ...) is run for each output on its own: frames of a video as a batch of pictures, a text
  as one position, audio as a map of time and pitch. What cannot be done to text or audio leaves it out and says so.
- Patches of blocks (FreeU, HyperTile, ToMe, NAG, Deep Shrink, hypernetworks) go to the vision denoiser, on every frame. Connectors and
  environment encoders have no such places.
- EasyCache and its like see all outputs as one packed latent, and skip steps for all at once.
- Context windows take frames of the video, dim 2; all other outputs take part whole in every window.
- Nodes made for other networks (SkipLayerGuidance, ScaleROPE, ...) have no effect; a line in the log and on the sampler says so.
- ModelSampling nodes work as on Stable Diffusion 1.5 with the official model. A model whose outputs have noise levels of their own
  (codi-mini) refuses them.

| node | alone | joint |
| --- | --- | --- |
"""


if __name__ == "__main__":
    import_pack()
    main(sys.argv[1:])

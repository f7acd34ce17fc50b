"""The published code (microsoft/i-Code, folder i-Code-V3) as it is, importable without a GPU and without what it does not need to run.

Nothing of it is changed: packages that it imports and does not use here are replaced by empty ones, and `.cuda()` goes to the device that
is measured."""

from __future__ import annotations

import contextlib
import copy
import importlib.machinery
import importlib.util
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

IMPORTED_ONLY = ("decord", "pytorch_lightning", "easydict", "librosa", "librosa.util", "librosa.filters", "torchlibrosa", "wget")
"""Packages that the published code imports at the top and that no measured network needs."""


class AttributeDict(dict):
    """A dictionary whose entries are attributes, nested ones too: what the published code takes from easydict."""

    def __init__(self, entries: Any = (), **more: Any) -> None:
        super().__init__()
        for key, value in dict(entries, **more).items():
            self[key] = AttributeDict(value) if isinstance(value, dict) else value

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    __setattr__ = dict.__setitem__

    def __deepcopy__(self, memo: Any) -> AttributeDict:
        return AttributeDict({key: copy.deepcopy(value, memo) for key, value in self.items()})


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Published:
    """A checkout of the published code. `scale` divides the channels of all networks; 1 is the published size."""

    def __init__(self, folder: Path, scale: int = 1, device: torch.device | None = None) -> None:
        root = next((p for p in (folder, folder / "i-Code-V3") if (p / "core" / "models" / "codi.py").is_file()), None)
        if root is None:
            raise FileNotFoundError(f"{folder} is no checkout of the published code: there is no core/models/codi.py in it or in i-Code-V3")
        self.root, self.scale, self.device = root, scale, device or torch.device("cpu")
        for name in IMPORTED_ONLY:
            if importlib.util.find_spec(name.split(".")[0]) is None or name in sys.modules:
                sys.modules[name] = module = _Empty(name)
                module.__spec__ = importlib.machinery.ModuleSpec(name, None)
                module.__path__ = []
        sys.modules["easydict"].EasyDict = AttributeDict  # type: ignore[attr-defined]
        sys.path.insert(0, str(root))
        setattr(Tensor, "cuda", lambda it, *_, **__: it.to(self.device))  # noqa: B010
        setattr(nn.Module, "cuda", lambda it, *_, **__: it.to(self.device))  # noqa: B010

    def config(self, file: str) -> dict[str, Any]:
        """A file of the published configurations, with `scale` applied to its channels."""
        import yaml

        read = yaml.safe_load((self.root / "configs" / "model" / f"{file}.yaml").read_text())
        for entry in read.values():
            arguments = entry.get("args", {})
            if "model_channels" in arguments:
                arguments["model_channels"] = self._scaled(arguments["model_channels"], 64)
            if "ddconfig" in arguments:
                arguments["ddconfig"]["ch"] = self._scaled(arguments["ddconfig"]["ch"], 32)
        return read

    def _scaled(self, channels: int, multiple: int) -> int:
        """Channels divided by `scale`, as norms of 32 groups can have them."""
        return channels if self.scale == 1 else max(1, round(channels / self.scale / multiple)) * multiple

    def unets(self) -> dict[str, dict[str, Any]]:
        """Arguments of the three UNets by their names in the joint class."""
        read = self.config("openai_unet")
        names = {"unet_image": "openai_unet_2d", "unet_text": "openai_unet_0dmd", "unet_audio": "openai_unet_2d_audio"}
        return {ours: read[theirs]["args"] for ours, theirs in names.items()}

    def joint(self) -> nn.Module:
        """The joint UNet without memory: parts get theirs by `load_state_dict(..., assign=True)`."""
        from core.models.common.get_model import get_model  # type: ignore[import-not-found]

        read = self.config("openai_unet")
        parts = {"unet_image": "openai_unet_2d", "unet_text": "openai_unet_0dmd", "unet_audio": "openai_unet_2d_audio"}
        cfg = {f"{ours}_cfg": read[theirs] for ours, theirs in parts.items()}
        joint = AttributeDict(type="openai_unet_codi", args=AttributeDict(model_type=["video", "image", "text", "audio"], **cfg))
        with torch.device("meta"):
            return get_model()(joint).eval().requires_grad_(False)

    def autoencoder(self) -> nn.Module:
        """The autoencoder of pictures, without memory."""
        from core.models.common.get_model import get_model  # type: ignore[import-not-found]

        with torch.device("meta"):
            return get_model()(AttributeDict(self.config("sd")["sd_autoencoder"])).eval().requires_grad_(False)

    def sampler(self, joint: nn.Module, alphas_cumprod: Tensor, betas: Tensor) -> Any:
        """The published DDIM sampler on a joint UNet."""
        from core.models.ddim.ddim_vd import DDIMSampler_VD  # type: ignore[import-not-found]

        class OnThisDevice(DDIMSampler_VD):  # type: ignore[misc]
            def register_buffer(self, name: str, attr: Any) -> None:
                setattr(self, name, attr)

        before = torch.cat([torch.ones(1), alphas_cumprod[:-1]])
        net = types.SimpleNamespace(
            num_timesteps=len(betas), alphas_cumprod=alphas_cumprod, alphas_cumprod_prev=before, betas=betas,
            device=alphas_cumprod.device, model=types.SimpleNamespace(diffusion_model=joint),
        )  # fmt: skip
        return OnThisDevice(net)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress that the published code prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield

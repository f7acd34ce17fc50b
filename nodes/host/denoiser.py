"""One denoiser as a MODEL that samples alone under the stock nodes."""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...codi_models.checkpoints import read_weights
from ...codi_models.components import check_component
from ...codi_models.config import CoDiConfig
from ...codi_models.denoisers.hooks import PLAIN
from ...codi_models.denoisers.unet2d import UNet2D
from ...codi_models.denoisers.unet_text import TextUNet
from ...codi_models.diffusion import NoiseSchedule
from ...codi_models.errors import CoDiError
from ...codi_models.modalities import MODALITIES, denoisers_of, snr_scale
from ...codi_models.model import DTYPES
from .block_patches import block_hooks
from .handle import CoDiHandle, open_handle
from .latent_model import FRAMES, LatentModel, ScheduleConfig
from .lora import denoiser_patcher
from .model_sampling import own_timesteps
from .parts import host_form, modality_of, network_form
from .sampling import wrap_sampling
from .wrappers import through_wrappers

DENOISERS = tuple(denoisers_of(MODALITIES))
_built: weakref.WeakValueDictionary[tuple, Any] = weakref.WeakValueDictionary()


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The host's attention, on (B, tokens, heads * dim)."""
    return optimized_attention(q, k, v, heads)


class _HostCall:
    """Lets the host call a denoiser (list of latents, transformer_options) beside CoDi's own joint step."""

    codi_config: CoDiConfig

    def forward(
        self, x: Any, timesteps: Tensor, context: Any = None, control: Any = None, transformer_options: Any = None, **kw: Any
    ) -> Tensor:
        if transformer_options is None:
            return super().forward(x, timesteps, context, **kw)  # type: ignore[misc]
        x = x[0] if isinstance(x, list) else x
        return through_wrappers(self.alone, x, timesteps, context, control, transformer_options, kw)

    def alone(self, x: Tensor, timesteps: Tensor, context: Any, options: dict[str, Any], **kw: Any) -> Tensor:
        """Latent at unit variance, as the host has it -> prediction, same shape."""
        modality = modality_of(x.shape, self.codi_config)
        scale = snr_scale(self.codi_config, modality)
        timesteps = own_timesteps(NoiseSchedule(self.codi_config.diffusion), scale, timesteps, options)
        context = kw.get(FRAMES, context) if modality == "video" else context
        hooks = PLAIN if modality == "text" else block_hooks(options, lambda: None)
        return host_form(modality, super().forward(network_form(modality, x), timesteps, context, hooks=hooks))  # type: ignore[misc]

    def to(self, *args: Any, memory_format: Any = None, **kw: Any) -> Any:
        """As every module's. Channels last, which a flag of the host asks for, is of 2-D maps: temporal modules stay."""
        if memory_format is not torch.channels_last:
            return super().to(*args, **kw, **({} if memory_format is None else {"memory_format": memory_format}))  # type: ignore[misc]
        for parameter in self.parameters():  # type: ignore[attr-defined]
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=memory_format)
        return super().to(*args, **kw) if args or kw else self  # type: ignore[misc]

    @property
    def in_channels(self) -> int:
        """Channels of the latent, where patches look for them."""
        return self.config.in_channels  # type: ignore[attr-defined]


class HostUNet2D(_HostCall, UNet2D):
    """UNet of pictures and clips, or of sound."""


class HostTextUNet(_HostCall, TextUNet):
    """UNet of text latents."""


def denoiser_model(codi: CoDiHandle, component: str, dtype: str = "auto", *, disable_dynamic: bool = False) -> Any:
    """MODEL of one of DENOISERS. dtype: auto (as the host chooses) or one of fp32, fp16, bf16.

    Raises CoDiError where the component is unknown or its file is missing, truncated or another network's."""
    if component not in DENOISERS:
        raise CoDiError(f"no denoiser named {component!r}: choose one of {', '.join(DENOISERS)}")
    key = (id(codi), component, dtype, disable_dynamic)
    if (patcher := _built.get(key)) is None:
        patcher = _built[key] = _build(codi, component, dtype, disable_dynamic)
    return patcher


def reload_denoiser(name: str, component: str, dtype: str, disable_dynamic: bool = False) -> Any:
    """The same MODEL again, from the model's name: hosts that stream weights clone patchers this way."""
    return denoiser_model(open_handle(name), component, dtype, disable_dynamic=disable_dynamic)


def weight_dtype(dtype: str, parameters: int, stored: torch.dtype | None) -> torch.dtype:
    """Dtype of a denoiser's weights: the one asked for, or with `auto` what the host chooses for that many parameters."""
    return DTYPES.get(dtype) or mm.unet_dtype(
        model_params=parameters, supported_dtypes=list(ScheduleConfig.supported_inference_dtypes), weight_dtype=stored
    )


def _keep_small_weights(network: torch.nn.Module) -> None:
    """In eight bits only matrices: what else there is, is small, needs its digits, and is partly not cast by the host's operations."""
    for name, parameter in network.named_parameters():
        if not (name.endswith(".weight") and parameter.ndim >= 2):
            parameter.data = parameter.data.to(torch.float16)


def _build(codi: CoDiHandle, component: str, dtype: str, disable_dynamic: bool) -> Any:
    config, path = getattr(codi.config, component), codi.model.path(component)
    check_component(component, codi.config, path)  # every key and shape is checked before the host loads leniently
    weights, _ = read_weights(path)
    load, rest = mm.get_torch_device(), mm.unet_offload_device()
    chosen = weight_dtype(dtype, comfy.utils.calculate_parameters(weights), comfy.utils.weight_dtype(weights))

    def network(*, device: Any, operations: Any, **_: Any) -> torch.nn.Module:
        cls: Any = HostTextUNet if component == "text_denoiser" else HostUNet2D
        net = cls(config, operations=operations, dtype=chosen, device=device, attention=attention)
        net.codi_config = codi.config
        if chosen.itemsize == 1:
            _keep_small_weights(net)
        return net

    model = LatentModel(codi, [m for m, row in MODALITIES.items() if row.denoiser == component], network, dtype=chosen, device=rest)
    patcher = denoiser_patcher(model, load=load, rest=rest, plain=disable_dynamic)
    streamed = hasattr(patcher, "is_dynamic") and patcher.is_dynamic()
    model.load_model_weights(weights, "", **({"assign": True} if streamed else {}))
    patcher.cached_patcher_init = (reload_denoiser, (codi.name, component, dtype))
    return wrap_sampling(patcher)

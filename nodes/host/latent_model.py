"""What CoDi's MODELs share: noise schedule, latents of several shapes in one packed tensor, and checks before sampling."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management as mm
import comfy.sample
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor, nn

from ...codi_models import memory
from ...codi_models.alignment import Alignment
from ...codi_models.components import COMPONENTS
from ...codi_models.errors import CoDiError
from ...codi_models.modalities import MODALITIES
from ...codi_models.settings import snr_scales
from .alignment import alignment_of
from .handle import CoDiHandle
from .latent_format import CoDiLatentFormat
from .lora import key_map_config, refuse_others, with_other_names
from .model_sampling import model_sampling, model_type
from .parts import modalities_of, weighted
from .streamwise import Remembered

FRAMES = "codi_frames"
"""Key of CONDITIONING for what each frame of a clip adds to the prompt, (B, F, k, D): sums, so that stock nodes that change the prompt
change every frame. The network gets the prompts of the frames under the same key, (B, F, n, D)."""
GIVEN, GIVEN_EMBEDDINGS = "codi_given", "codi_given_embeddings"


class ScheduleConfig(comfy.supported_models_base.BASE):
    """Published noise schedule: betas linear in their square root from 0.00085 to 0.012 in 1000 steps, the network predicts the noise."""

    unet_config: dict = {}
    unet_extra_config: dict = {}
    memory_usage_factor = 1.0
    sampling_settings = {"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000}


class LatentModel(comfy.model_base.BaseModel):
    """BaseModel of one denoiser, or of several in lock-step.

    `outputs`: modalities it can make. `network` is called by the host with a list of latents and returns noise of the same form."""

    def __init__(
        self, codi: CoDiHandle, outputs: Sequence[str], network: Callable[..., nn.Module], *, dtype: torch.dtype, device: Any
    ) -> None:
        configs = [getattr(codi.config, MODALITIES[m].denoiser) for m in outputs]
        names_of = next(filter(None, map(key_map_config, configs)), {})
        conf = ScheduleConfig({**names_of, "model_channels": configs[0].model_channels})  # FreeU goes by these
        conf.latent_format = CoDiLatentFormat(codi, outputs, weakref.ref(self))
        conf.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, mm.get_torch_device(), conf.supported_inference_dtypes))
        super().__init__(conf, model_type(codi.config.diffusion), device=device, unet_model=network)
        self.codi, self.outputs = codi, tuple(outputs)
        self.snr_scales = snr_scales(codi.config)
        own = weakref.ref(self)
        stock: Any = self.model_sampling  # type: ignore[has-type]
        self.model_sampling = model_sampling(codi.config.diffusion, stock, lambda x: own()._snr_scale(x))  # type: ignore[union-attr]
        self.latent_shapes: list[tuple[int, ...]] | None = None
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._only_keys = False
        self.seen: list[Tensor] | None = None
        """Parts of the sampler's latest guess, in diffusion space, while the host's callback looks at it."""
        self.remembered: Remembered | None = None
        """What model patches keep from call to call, while a run is under way."""
        self._masks: dict[str, Any] = {}  # of that run, as the host hands them to `extra_conds`

    def begin(self, shapes: Sequence[tuple[int, ...]], options: Mapping[str, Any]) -> None:
        """Called once before a run, with the shapes of the parts and the model options."""
        self.latent_shapes, self.remembered, self._masks = list(shapes), Remembered(options), {}

    def end(self) -> None:
        """Called once after a run."""
        if self.remembered is not None:
            self.remembered.of(None)
        self.remembered, self._masks = None, {}

    def apply_model(self, x: Tensor, t: Tensor, *args: Any, **kw: Any) -> Tensor:
        """As the host's; within it `latent_shapes` are those of what is given, which may be a window of the whole."""
        whole, self.latent_shapes = self.latent_shapes, kw.get("latent_shapes") or self.latent_shapes
        try:
            return super().apply_model(x, t, *args, **kw)
        finally:
            self.latent_shapes = whole

    def map_context_window_to_modalities(
        self, primary_indices: list[int], latent_shapes: Sequence[Sequence[int]], dim: int
    ) -> list[list[int]]:
        """What a window of frames takes of every part: of the video these frames, everything of the others, which have no frames.

        Raises CoDiError where the first part is no video, or the window lies along another axis than time."""
        names = modalities_of(latent_shapes, self.codi.config)
        if names[0] != "video" or dim != 2:
            raise CoDiError(f"context windows are made of the frames of a video, dim 2; the LATENT holds {', '.join(names)}, dim is {dim}")
        return [primary_indices, *(list(range(shape[dim])) for shape in latent_shapes[1:])]

    def resize_cond_for_context_window(
        self, cond_key: str, cond_value: Any, window: Any, x_in: Tensor, device: Any, retain_index_list: Sequence[int] = ()
    ) -> Any:
        """Prompts of single frames for a window of them; the other conds have no frames."""
        if cond_key == FRAMES:
            return comfy.conds.CONDRegular(window.get_tensor(cond_value.cond, device, dim=1))
        return cond_value if cond_key in ("c_crossattn", GIVEN_EMBEDDINGS) else None

    def alignment_at(self, sigma: Tensor, model_options: Mapping[str, Any]) -> Alignment:
        """The Alignment that these options carry, as it is in force at a noise level (B,)."""
        alignment = alignment_of(model_options, self.codi.config.sampling)
        if alignment.start <= 0 and alignment.end >= 1:
            return alignment  # asking for the timestep would wait for the device
        return alignment.at(float(self.model_sampling.timestep(sigma).flatten()[0]))

    def _snr_scale(self, x: Tensor) -> Tensor | float:
        """Factor s of every element of a latent as the sampler has it: a number, or (B, 1, N) of a packed one."""
        shapes = self.latent_shapes if self.latent_shapes and len(self.latent_shapes) > 1 else [x.shape]
        scales = [self.snr_scales[m] for m in modalities_of(shapes, self.codi.config)]
        return weighted(shapes, scales, x) if len(shapes) > 1 else scales[0]

    def state_dict(self, *args: Any, **kw: Any) -> dict[str, Any]:  # type: ignore[override]
        """As every module's, and weights by the keys that Stable Diffusion has for them: LoRA loaders go by these."""
        return dict.fromkeys(self.weight_shapes()) if self._only_keys else self._weights(*args, **kw)

    def _weights(self, *args: Any, **kw: Any) -> dict[str, Any]:
        return with_other_names(super().state_dict(*args, **kw))

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights in `state_dict`, gathered once: nodes that merge MODELs add their patches one by one."""
        if self._shapes is None:
            self._shapes = {key: tuple(value.shape) for key, value in self._weights().items()}
        return self._shapes

    @contextmanager
    def keys_only(self) -> Iterator[None]:
        """Within it `state_dict` has keys without weights, for the host's `add_patches`, which asks for it every time."""
        self._only_keys = True
        try:
            yield
        finally:
            self._only_keys = False

    def state_dict_for_saving(self, *given: Any, **others: Any) -> dict[str, Any]:
        """Weights by the keys of the published checkpoint, which `codi.py convert` reads: those given, or ours where the host gives none.

        Raises CoDiError where they are to share a file with other networks."""
        ours = "unet_state_dict" in inspect.signature(super().state_dict_for_saving).parameters
        weights, rest = (given[0], given[1:]) if ours else (None, given)
        refuse_others(*rest, *others.values())
        return self._published(weights)

    def _published(self, weights: dict[str, Any] | None) -> dict[str, Any]:
        component = MODALITIES[self.outputs[0]].denoiser
        weights = self.diffusion_model.state_dict() if weights is None else weights
        return {COMPONENTS[component].published_prefix + key: value for key, value in weights.items()}

    def get_dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.model_config.unet_config["dtype"]

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype that weights are cast to while they compute."""
        return self.manual_cast_dtype or self.get_dtype()

    def check(self, shapes: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Modalities of a latent's parts. Raises CoDiError for shapes of another model and for outputs that are not composed."""
        asked = modalities_of(shapes, self.codi.config)
        if lacking := [m for m in asked if m not in self.outputs]:
            raise CoDiError(
                f"this LATENT asks for {', '.join(asked)}, but the MODEL makes only {', '.join(self.outputs)}: "
                f"compose the denoiser of {', '.join(lacking)} into it, or switch that output off"
            )
        return asked

    def process_latent_in(self, latent: Any) -> Any:
        """Latent space to the space that is sampled in: diffusion space times the factor of the modality, see `modalities.snr_scale`."""
        return self._scaled(latent, lambda part, scale: part * scale)

    def process_latent_out(self, latent: Any) -> Any:
        """The inverse of `process_latent_in`."""
        return self._scaled(latent, lambda part, scale: part / scale)

    def _scaled(self, latent: Any, change: Callable[[Tensor, float], Tensor]) -> Any:
        """Nested in the second output of SamplerCustomAdvanced on newer hosts, packed (B, 1, N) everywhere else."""
        nested = latent.is_nested
        parts = latent.unbind() if nested else comfy.utils.unpack_latents(latent, self.latent_shapes or [latent.shape])
        config = self.codi.config
        names = modalities_of([p.shape for p in parts], config)
        scales = [MODALITIES[m].latent_scale(config) * self.snr_scales[m] for m in names]
        done = [change(part, scale) for part, scale in zip(parts, scales, strict=True)]
        if nested:
            return NestedTensor(done)
        return comfy.utils.pack_latents(done)[0] if len(done) > 1 else done[0]

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Hands the network the prompt, the shapes of the parts, prompts of single frames, which parts are given and their environment.

        Raises CoDiError for prompts of another model, for batches and for frames that do not go with the latent."""
        prompt, width = kwargs.get("cross_attn"), self.codi.config.vision_denoiser.context_dim
        if prompt is not None and prompt.shape[-1] != width:
            raise CoDiError(
                f"this CONDITIONING is {prompt.shape[-1]} wide, {self.codi.name} takes {width}: "
                "make it with CoDi's Encode nodes and the same model"
            )
        if "latent_shapes" in kwargs:
            self._masks = {key: kwargs.get(key) for key in ("denoise_mask", "latent_image")}
        else:  # a model patch encodes a prompt of its own, in the middle of a run
            kwargs |= {"latent_shapes": self.latent_shapes or [kwargs["noise"].shape], **self._masks}
        batch = kwargs["latent_shapes"][0][0]
        if prompt is not None and batch % prompt.shape[0]:
            raise CoDiError(
                f"this CONDITIONING holds {prompt.shape[0]} prompts for a batch of {batch}: give one, or one for every sample of the batch"
            )
        frames = kwargs.get(FRAMES)
        if prompt is not None and frames is not None:
            each = (comfy.utils.repeat_to_batch_size(t, batch) for t in (prompt, frames))
            frames = _frame_prompts(*each)  # (B, F, n, D)
        out = super().extra_conds(**kwargs)
        shapes = kwargs["latent_shapes"]
        out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        asked = self.check(shapes)
        if frames is not None and "video" in asked:
            has, wants = frames.shape[1], shapes[asked.index("video")][2]
            if has != wants:
                raise CoDiError(
                    f"this CONDITIONING has prompts for {has} frames and the video has {wants}: set the same count in both nodes"
                )
            out[FRAMES] = comfy.conds.CONDRegular(frames)
        given = _given(asked, shapes, kwargs.get("denoise_mask"))
        out[GIVEN] = comfy.conds.CONDConstant(given)
        if given and (latent := kwargs.get("latent_image")) is not None:
            parts = comfy.utils.unpack_latents(latent, shapes) if len(shapes) > 1 else [latent]
            clean = {m: part / self.snr_scales[m] for m, part in zip(asked, parts, strict=True) if m in given}
            embeddings = self.environment_embeddings(clean)
            if embeddings is not None:
                out[GIVEN_EMBEDDINGS] = comfy.conds.CONDRegular(embeddings)
        return out

    def environment_embeddings(self, given: Mapping[str, Tensor]) -> Tensor | None:
        """Environment embeddings (B, parts, C) of finished parts (B, ...) in diffusion space; None where nothing attends to them."""
        return None

    def memory_required(self, input_shape: Sequence[int], cond_shapes: Any = None) -> float:
        """Bytes for one call; `input_shape` is packed, (B, 1, N)."""
        shapes = [(input_shape[0], *shape[1:]) for shape in self.latent_shapes or [tuple(input_shape)]]
        return memory.denoising(self.codi.config, shapes, mm.dtype_size(self.compute_dtype))


def _frame_prompts(context: Tensor, frames: Tensor) -> Tensor:
    """Prompt (B, n, D) and what every frame adds to its first tokens, (B, F, k, D) -> (B, F, n, D)."""
    own = context[:, None].expand(-1, frames.shape[1], -1, -1)  # (B, F, n, D)
    k = min(frames.shape[2], own.shape[2])
    return torch.cat([own[:, :, :k] + frames[:, :, :k].to(own), own[:, :, k:]], dim=2)


def _given(names: Sequence[str], shapes: Sequence[Sequence[int]], mask: Tensor | None) -> tuple[str, ...]:
    """Parts of which nothing is to be generated."""
    if mask is None:
        return ()
    masks = comfy.utils.unpack_latents(mask, shapes) if len(shapes) > 1 else [mask]
    return tuple(name for name, part in zip(names, masks, strict=True) if not part.any())

"""The host's patches of a Stable Diffusion UNet (FreeU, PAG, HyperTile, ToMe, NAG, hypernetworks, Deep Shrink) on CoDi's 2-D UNets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...codi_models.denoisers.hooks import PLAIN, Hooks
from ...codi_models.denoisers.layers import CrossAttention, TransformerBlock
from .said import run_patch, say

PATCHES = (
    "input_block_patch", "input_block_patch_after_skip", "middle_block_after_patch", "output_block_patch",
    "attn1_patch", "attn1_output_patch", "middle_patch", "attn2_patch", "attn2_output_patch",
)  # fmt: skip
"""Places of `transformer_options["patches"]` that are run; the order is that of the path."""
REPLACED = ("attn1", "attn2")
"""Attentions of `transformer_options["patches_replace"]`: self-attention, and attention to the prompt."""
KNOWN = {*PATCHES, *REPLACED}
OVERRIDE = "optimized_attention_override"
"""Key of transformer_options for a function that computes all attention."""


def block_hooks(options: Mapping[str, Any], before: Callable[[], None]) -> Hooks:
    """What these transformer_options change in a 2-D UNet; `before` is called as it starts."""
    asked = patched(options)
    if others := asked - KNOWN:
        say(f"model patches of {', '.join(sorted(others))} have no effect: CoDi's UNet has no such blocks, they are for another network")
    return BlockHooks(options, before) if asked - others or options.get(OVERRIDE) else PLAIN


def patched(options: Mapping[str, Any]) -> set[str]:
    """Places that these transformer_options patch."""
    return {name for kind in ("patches", "patches_replace") for name, found in (options.get(kind) or {}).items() if found}


class BlockHooks(Hooks):
    """Calls patches as the host's own UNet does. Frames of a video are rows of the batch, as in the host's models that animate SD."""

    def __init__(self, options: Mapping[str, Any], before: Callable[[], None]) -> None:
        self.options: dict[str, Any] = dict(options)
        self.patches, self.replaced = options.get("patches") or {}, options.get("patches_replace") or {}
        self.unfolded = any(self.patches.get(f"attn2_{k}") for k in ("patch", "output_patch")) or bool(self.replaced.get("attn2"))
        self.before = before

    def start(self, x: Tensor) -> None:
        self.before()
        self.options |= {"original_shape": list(x.shape), "transformer_index": 0, "block_index": 0}

    def enter(self, part: str, index: int) -> None:
        self.options["block"] = (part, index)

    def after_input(self, h: Tensor) -> tuple[Tensor, Tensor]:
        skip = self._run("input_block_patch", h)
        return self._run("input_block_patch_after_skip", skip), skip

    def after_middle(self, h: Tensor) -> Tensor:
        for patch in self.patches.get("middle_block_after_patch", []):
            h = run_patch(patch, {"h": h, "transformer_options": self.options})["h"]
        return h

    def before_output(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.patches.get("output_block_patch", [])
        if patches:
            h = h.clone()  # patches write into it, and after the middle block both are one tensor
        for patch in patches:
            h, skip = run_patch(patch, h, skip, self.options)
        return h, skip

    def transformer(self, block: TransformerBlock, x: Tensor, context: Any, shape: tuple[int, ...]) -> Tensor:
        self.options["activations_shape"] = list(shape)
        # Branches of a one-token prompt are its value at every position, and no patch looks at them.
        x = self._attend(block.attn1, "attn1", x, block.norm1(x), None)
        x = self._run("middle_patch", x, block.attn1)
        if isinstance(context, Tensor):
            tokens = context if context.ndim == 3 else context.flatten(0, 1)  # (B or B*F, n, D)
            x = self._attend(block.attn2, "attn2", x, block.norm2(x), tokens.repeat_interleave(len(x) // len(tokens), dim=0))
        else:
            x = (x.unflatten(0, (context.value.shape[0], -1)) + context.value[:, :, None]).flatten(0, 1)
        self.options["transformer_index"] += 1
        return x + block.ff(block.norm3(x))

    def _attend(self, attention: CrossAttention, name: str, x: Tensor, n: Tensor, context: Tensor | None) -> Tensor:
        """x and what an attention adds to it; n: x, normalised."""
        keys, values = (n, n) if context is None else (context, context)
        extra = self._extra(attention, x)
        for patch in self.patches.get(f"{name}_patch", []):
            n, keys, values = run_patch(patch, n, keys, values, extra, results=3)
        values = keys if values is None else values
        replaced, (part, index) = self.replaced.get(name) or {}, self.options["block"]
        replacement = replaced.get((part, index, 0)) or replaced.get((part, index))  # our transformers are one block deep
        q, k, v = attention.to_q(n), attention.to_k(keys), attention.to_v(values)
        out = run_patch(replacement, q, k, v, extra) if replacement else self._attention(attention, q, k, v)
        out = attention.to_out[0](out)
        return x + self._run(f"{name}_output_patch", out, attention)

    def _attention(self, attention: CrossAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        return optimized_attention(q, k, v, attention.heads, transformer_options=self.options)

    def _run(self, name: str, h: Tensor, attention: CrossAttention | None = None) -> Tensor:
        extra = self.options if attention is None else self._extra(attention, h)
        for patch in self.patches.get(name, []):
            h = run_patch(patch, h, extra)
        return h

    def _extra(self, attention: CrossAttention, x: Tensor) -> dict[str, Any]:
        """What patches of an attention on x (B*F, N, C) are told: the options without the patches themselves."""
        told = {k: v for k, v in self.options.items() if k not in ("patches", "patches_replace")}
        return {**told, "n_heads": attention.heads, "dim_head": x.shape[-1] // attention.heads, "attn_precision": None}

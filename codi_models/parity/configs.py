"""Configurations of the official classes, in the names of their configuration files, as our dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import (
    AutoencoderConfig,
    CLAPConfig,
    CLIPConfig,
    MelConfig,
    OptimusConfig,
    TextUNetConfig,
    UNetConfig,
    VocoderConfig,
)
from ..errors import CoDiError

HTSAT_SIZES = {
    "HTSAT-tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(4, 8, 16, 32)),
    "HTSAT-base": dict(embed_dim=128, depths=(2, 2, 12, 2), num_heads=(4, 8, 16, 32)),
    "HTSAT-large": dict(embed_dim=256, depths=(2, 2, 12, 2), num_heads=(4, 8, 16, 32)),
}


def unet_config(official: Mapping[str, Any], *, norm_groups: int = 32) -> UNetConfig:
    """The arguments of the official 2-D UNet as a UNetConfig. Raises CoDiError for what our UNet has no counterpart of."""
    return UNetConfig(**_shared(official, norm_groups), temporal=bool(official.get("use_video_architecture", False)))


def text_unet_config(official: Mapping[str, Any], *, norm_groups: int = 32) -> TextUNetConfig:
    """The arguments of the official text UNet as a TextUNetConfig. Raises CoDiError where tokens differ between levels."""
    tokens = {int(n) for name in ("second_dim", "second_dim_connector") for n in official.get(name) or ()} or {4}
    if len(tokens) > 1:
        raise CoDiError(f"second_dim {sorted(tokens)}: every level must have the same number of tokens")
    return TextUNetConfig(**_shared(official, norm_groups), tokens=tokens.pop())


def _shared(official: Mapping[str, Any], norm_groups: int) -> dict[str, Any]:
    _only(official, output_channels=official["input_channels"], dropout=0, transformer_depth=1)
    names = dict(
        input_channels="in_channels", model_channels="model_channels", context_dim="context_dim", channel_mult="channel_mult",
        num_noattn_blocks="num_blocks", with_attn="with_attention", with_connector="with_connector",
        channel_mult_connector="connector_mult", num_noattn_blocks_connector="connector_blocks",
        connector_output_channel="connector_dim", num_heads="num_heads",
    )  # fmt: skip
    values: dict[str, Any] = {ours: official[theirs] for theirs, ours in names.items() if official.get(theirs) is not None}
    if isinstance(values.get("num_blocks"), int):
        values["num_blocks"] = [values["num_blocks"]] * len(values["channel_mult"])
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()} | {"norm_groups": norm_groups}


def clip_config(official: Mapping[str, Any]) -> CLIPConfig:
    """Text and vision parts of the official CLIPConfig."""
    text, vision = official["text_config"], official["vision_config"]
    for part in (official, text, vision):
        _only(part, hidden_act="quick_gelu", layer_norm_eps=1e-5)
    return CLIPConfig(
        projection_dim=official["projection_dim"], vocab_size=text["vocab_size"], text_dim=text["hidden_size"],
        text_layers=text["num_hidden_layers"], text_heads=text["num_attention_heads"], text_mlp=text["intermediate_size"],
        text_positions=text["max_position_embeddings"], vision_dim=vision["hidden_size"], vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"], vision_mlp=vision["intermediate_size"], image_size=vision["image_size"],
        patch_size=vision["patch_size"],
    )  # fmt: skip


def clap_config(official: Mapping[str, Any]) -> CLAPConfig:
    """The official HTSAT arguments, or an HTSAT size by name, with the width of the joint space where there is one."""
    sizes = dict(HTSAT_SIZES.get(official.get("amodel", ""), {}))
    sizes |= {name: official[name] for name in ("embed_dim", "depths", "num_heads") if name in official}
    if not sizes:
        raise CoDiError(f"HTSAT size {official.get('amodel')!r} is unknown; known are {', '.join(HTSAT_SIZES)}, or give embed_dim")
    names = dict(
        spec_size="spec_size", window_size="window_size", mel_bins="n_mels", window="n_fft", hop="hop_length",
        sample_rate="sample_rate", fmin="f_min", fmax="f_max", num_classes="num_classes", class_num="num_classes",
        patch_size="patch_size",
    )  # fmt: skip
    values: dict[str, Any] = {ours: official[theirs] for theirs, ours in names.items() if theirs in official}
    values |= {name: tuple(v) if isinstance(v, list | tuple) else v for name, v in sizes.items()}
    if "joint_embed_shape" in official:
        values |= dict(projection_dim=official["joint_embed_shape"], hidden_dim=official["joint_embed_shape"])
    patch = official.get("patch_size", 4)
    _only(official, patch_stride=[patch, patch], mlp_ratio=4, enable_fusion=False)
    return CLAPConfig(**values)


def autoencoder_config(official: Mapping[str, Any]) -> AutoencoderConfig:
    """`ddconfig` and `embed_dim` of the official KL autoencoders, without the factor between latent and diffusion space."""
    dd = official["ddconfig"]
    _only(dd, double_z=True, out_ch=dd["in_channels"], dropout=0, downsample_time=False)
    resolutions = [dd.get("resolution", 256) // 2**level for level in range(len(dd["ch_mult"]))]
    attending = tuple(resolution in (dd.get("attn_resolutions") or ()) for resolution in resolutions)
    return AutoencoderConfig(
        in_channels=dd["in_channels"], latent_channels=official["embed_dim"], inner_channels=dd["z_channels"], model_channels=dd["ch"],
        channel_mult=tuple(dd["ch_mult"]), num_blocks=dd["num_res_blocks"], attention=attending if any(attending) else (), scale=1.0,
    )  # fmt: skip


def mel_config(official: Mapping[str, Any]) -> MelConfig:
    """Arguments of the official STFT front end; what is absent is AudioLDM's."""
    names = dict(filter_length="n_fft", hop_length="hop_length", n_mel_channels="n_mels", sampling_rate="sample_rate",
                 mel_fmin="f_min", mel_fmax="f_max")  # fmt: skip
    values = {ours: official[theirs] for theirs, ours in names.items() if theirs in official}
    config = MelConfig(**values)
    _only(official, win_length=config.n_fft)
    return config


def vocoder_config(official: Mapping[str, Any]) -> VocoderConfig:
    """The official HiFi-GAN configuration; dilations may differ from kernel to kernel."""
    _only(official, resblock="1")
    dilations = tuple(tuple(row) for row in official["resblock_dilation_sizes"])
    return VocoderConfig(
        n_mels=official.get("num_mels", 64), sample_rate=official.get("sampling_rate", 16000),
        initial_channels=official["upsample_initial_channel"], upsample_rates=tuple(official["upsample_rates"]),
        upsample_kernels=tuple(official["upsample_kernel_sizes"]), resblock_kernels=tuple(official["resblock_kernel_sizes"]),
        resblock_dilations=dilations[0] if len(set(dilations)) == 1 else dilations,
    )  # fmt: skip


def optimus_config(official: Mapping[str, Any]) -> OptimusConfig:
    """The official configurations of Optimus' BERT and GPT-2."""
    encoder, decoder = official["encoder"], official["decoder"]
    bert, gpt = encoder.get("config", encoder), decoder.get("config", decoder)
    _only(bert, hidden_act="gelu", layer_norm_eps=1e-12, type_vocab_size=2)
    _only(gpt, layer_norm_epsilon=1e-5, n_inner=None)
    return OptimusConfig(
        latent_dim=gpt["latent_size"], encoder_vocab=bert["vocab_size"], encoder_dim=bert["hidden_size"],
        encoder_layers=bert["num_hidden_layers"], encoder_heads=bert["num_attention_heads"], encoder_mlp=bert["intermediate_size"],
        encoder_positions=bert["max_position_embeddings"], decoder_vocab=gpt["vocab_size"], decoder_dim=gpt["n_embd"],
        decoder_layers=gpt["n_layer"], decoder_heads=gpt["n_head"], decoder_positions=gpt["n_positions"],
    )  # fmt: skip


def _only(official: Mapping[str, Any], **accepted: Any) -> None:
    """Raises CoDiError for a setting that is given and is not the one that our network has."""
    for name, value in accepted.items():
        given = official.get(name, value)
        if (list(given) if isinstance(given, Sequence) and not isinstance(given, str) else given) != value:
            raise CoDiError(f"{name} {given!r}: this network has {name} {value!r} only")

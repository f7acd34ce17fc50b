"""Parity fixtures of our own making, in the published form, for networks of other sizes than the recorded ones.

They are run here by the networks' plain calls, so a fixture that passes says that the parity command reads such a description aright."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from codi.codi_models.alignment import Alignment
from codi.codi_models.autoencoders.image import ImageAutoencoder
from codi.codi_models.autoencoders.mel import LogMel
from codi.codi_models.autoencoders.optimus import TextAutoencoder
from codi.codi_models.autoencoders.vocoder import Vocoder
from codi.codi_models.config import (
    AutoencoderConfig,
    CLAPConfig,
    CLIPConfig,
    MelConfig,
    OptimusConfig,
    TextUNetConfig,
    UNetConfig,
    VocoderConfig,
)
from codi.codi_models.denoisers.layers import SpatialTransformer
from codi.codi_models.denoisers.temporal import TemporalModule, log_distances
from codi.codi_models.denoisers.unet2d import UNet2D
from codi.codi_models.denoisers.unet_text import TextUNet
from codi.codi_models.diffusion import alphas_cumprod
from codi.codi_models.encoders import preprocess
from codi.codi_models.encoders.clap import CLAPEncoder
from codi.codi_models.encoders.clip import CLIPEncoder
from codi.codi_models.joint import JointDenoiser
from codi.codi_models.libraries import stored_state
from codi.codi_models.parity.clap import AudioBranch
from codi.codi_models.parity.recipe import fill
from safetensors.torch import save_file
from torch import Tensor, nn

Made = tuple[dict[str, Any], dict[str, Tensor]]

LEVELS = dict(
    model_channels=64, context_dim=48, num_noattn_blocks=[1, 2, 1], channel_mult=[1, 2, 3], with_attn=[True, False, True],
    channel_mult_connector=[1, 2], num_noattn_blocks_connector=[2, 1], with_connector=[True, False, True], connector_output_channel=96,
    num_heads=2,
)  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "unet_image": dict(LEVELS, input_channels=3, output_channels=3, use_video_architecture=True),
    "unet_audio": dict(LEVELS, input_channels=5, output_channels=5),
    "unet_text": dict(LEVELS, input_channels=40, output_channels=40, second_dim=[2, 2, 2], second_dim_connector=[2, 2]),
}
SHAPES = {"image": (3, 4, 8), "video": (3, 5, 8, 4), "audio": (5, 12, 4), "text": (40,)}
COMPONENT = {"image": "vision_denoiser", "video": "vision_denoiser", "audio": "audio_denoiser", "text": "text_denoiser"}
PART = {"vision_denoiser": "unet_image", "audio_denoiser": "unet_audio", "text_denoiser": "unet_text"}


def write(folder: Path, name: str, made: Made) -> None:
    """Both files of a fixture."""
    info, tensors = made
    facts = {key: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for key, t in tensors.items()}
    (folder / f"{name}.json").write_text(json.dumps(info | ({"tensors": facts} if tensors else {})))
    if tensors:
        save_file({key: t.clone().contiguous() for key, t in tensors.items()}, folder / f"{name}.safetensors")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def keys(network: nn.Module, prefix: str = "") -> list[list[Any]]:
    return [[prefix + key, list(value.shape)] for key, value in stored_state(network).items()]


def described(official_class: str, config: dict[str, Any], network: nn.Module, seed: str, **more: Any) -> dict[str, Any]:
    return dict(official_class=official_class, config=config, seed=seed, keys=keys(network), untouched_keys=[], **more)


@lru_cache
def unets(seed: str) -> dict[str, nn.Module]:
    levels = dict(
        model_channels=64, context_dim=48, num_blocks=(1, 2, 1), channel_mult=(1, 2, 3), with_attention=(True, False, True),
        connector_mult=(1, 2), connector_blocks=(2, 1), with_connector=(True, False, True), connector_dim=96, num_heads=2,
    )  # fmt: skip
    nets = {
        "vision_denoiser": UNet2D(UNetConfig(in_channels=3, temporal=True, **levels)),
        "audio_denoiser": UNet2D(UNetConfig(in_channels=5, **levels)),
        "text_denoiser": TextUNet(TextUNetConfig(in_channels=40, tokens=2, **levels)),
    }
    return {name: fill(net, seed, f"{PART[name]}.").eval() for name, net in nets.items()}


def single(seed: str = "other", batch: int = 3, tokens: int = 4) -> Made:
    """Every output alone, prompts of several tokens, a part of an intermediate."""
    nets = unets(seed)
    t, context = torch.tensor([3, 500, 998])[:batch], noise(batch, tokens, 48)
    tensors = {"in/t": t, "in/context": context}
    for kind, shape in SHAPES.items():
        x = tensors[f"in/x_{kind}"] = noise(batch, *shape, seed=1)
        net = nets[COMPONENT[kind]]
        seen: list[Tensor] = []
        hook = net.middle_block[-1].register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        if kind == "video":
            hook.remove()
            hook = net.middle_block[-1][1].register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        elif kind == "image":
            hook.remove()
            hook = net.middle_block[-1][0].register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        tensors[f"out/{kind}"] = net(x, t, context)
        hook.remove()
        middle = seen[0].unflatten(0, (batch, -1)).transpose(1, 2) if kind == "video" else seen[0]
        tensors[f"mid/{kind}.middle_block"] = middle
        tensors[f"mid/{kind}.middle_block_every3"] = middle[:, ::3]
    listed = [pair for name, net in nets.items() for pair in keys(net, f"{PART[name]}.")]
    return dict(official_class="UNetModelCoDi", config=UNETS, seed=seed, keys=listed, n_keys=len(listed)), tensors


def joint(kinds: list[str], conditions: list[str], seed: str = "other", batch: int = 1) -> Made:
    """Several outputs under any number of conditions."""
    nets = unets(seed)
    weights = {"text": 1.0, "audio": 0.25, "image": 2.0, "video": 3.0}
    tensors = {f"in/x_{kind}": noise(batch, *SHAPES[kind], seed=i) for i, kind in enumerate(kinds)}
    latents = {kind: tensors[f"in/x_{kind}"] for kind in kinds}
    tensors |= {f"in/cond{i}": noise(batch, 1, 48, seed=9 + i) for i in range(len(conditions))} | {"in/t": torch.full((batch,), 321)}
    shares = [weights[kind] for kind in conditions]
    mixed = sum((w / sum(shares) * tensors[f"in/cond{i}"] for i, w in enumerate(shares)), torch.zeros(()))
    model = JointDenoiser({COMPONENT[kind]: nets[COMPONENT[kind]] for kind in kinds})
    tensors["mid/mixed_context"] = mixed
    if len(kinds) > 1:
        tensors |= {f"mid/h_con_{kind}": h for kind, h in model.environment_embeddings(latents, tensors["in/t"]).items()}
    tensors |= {f"out/{kind}": e for kind, e in model(latents, tensors["in/t"], mixed, alignment=Alignment("self")).items()}
    if len(kinds) == 2:
        tensors |= {f"paper_swap/{kind}": e for kind, e in model(latents, tensors["in/t"], mixed, alignment=Alignment("cross")).items()}
    count = sum(len(net.state_dict()) for net in nets.values())
    info = dict(official_class="UNetModelCoDi", config=UNETS, seed=seed, keys="see unet_all.json", n_keys=count,
                xtype=kinds, condition_types=conditions, mix_weight=weights)  # fmt: skip
    return info, tensors


def ddim(kinds: list[str], steps: int, scale: float, seed: str = "other") -> Made:
    """A run of another length and guidance; 7 steps asked for are 8."""
    nets = unets(seed)
    model = JointDenoiser({COMPONENT[kind]: nets[COMPONENT[kind]] for kind in kinds})
    tensors = {f"in/xT_{kind}": noise(1, *SHAPES[kind], seed=i) for i, kind in enumerate(kinds)}
    tensors["in/cond0_uncond_then_cond"] = both = noise(2, 1, 48, seed=5)
    latents = {kind: tensors[f"in/xT_{kind}"] for kind in kinds}
    after: list[dict[str, Tensor]] = []
    table, timesteps = alphas_cumprod().tolist(), range(1, 1000, 1000 // steps)
    for i in reversed(range(len(timesteps))):
        doubled = {kind: torch.cat([x, x]) for kind, x in latents.items()}
        halves = {kind: e.chunk(2) for kind, e in model(doubled, torch.full((2,), timesteps[i]), both, alignment=Alignment("self")).items()}
        eps = {kind: u + scale * (c - u) for kind, (u, c) in halves.items()}
        level, following = table[timesteps[i]], table[timesteps[i - 1] if i else 0]
        clean = {kind: (x - (1 - level) ** 0.5 * eps[kind]) / level**0.5 for kind, x in latents.items()}
        latents = {kind: following**0.5 * clean[kind] + (1 - following) ** 0.5 * eps[kind] for kind in kinds}
        after.append(latents)
    tensors |= {f"out/{kind}": x for kind, x in latents.items()}
    tensors |= {f"mid/x_after_step{i}_{kind}": after[i][kind] for i in (0, len(after) - 1) for kind in kinds}
    info = dict(official_class="UNetModelCoDi", config=UNETS, seed=seed, xtype=kinds, condition_types=["video"],
                mix_weight={"video": 1}, steps_requested=steps, steps_run=len(after), unconditional_guidance_scale=scale, eta=0.0,
                n_keys=sum(len(net.state_dict()) for net in nets.values()))  # fmt: skip
    return info, tensors


def temporal(dim: int = 96, heads: int = 4, head_dim: int = 12, frames: int = 11) -> Made:
    module = fill(TemporalModule(dim, 32, heads=heads, head_dim=head_dim), "other")
    x = noise(1, dim, frames, 2, 3)
    folded = x.transpose(1, 2).flatten(0, 1)

    def run(module: nn.Module, x: Tensor) -> Tensor:
        return module(x, frames, log_distances(frames, x)).unflatten(0, (-1, frames)).transpose(1, 2)

    info = described("SpatioTemporalAttention (UNet version)", dict(dim=dim, dim_head=head_dim, heads=heads), module, "other")
    return info, {
        "in/x": x,
        "out/y": run(module, folded),
        "out/y_bfloat16_weights_and_input": run(module.bfloat16(), folded.bfloat16()).float(),
    }


def picture(attention: tuple[bool, ...] = (False, True)) -> Made:
    """Two levels, one of them with attention, two blocks each."""
    net = fill(ImageAutoencoder(AutoencoderConfig(
        in_channels=3, latent_channels=5, inner_channels=4, model_channels=32, channel_mult=(2, 1), num_blocks=2,
        attention=attention, scale=1.0,
    )), "other")  # fmt: skip
    tensors = {"in/image": noise(1, 3, 12, 20), "in/video": noise(2, 3, 2, 8, 8), "in/z_video": noise(2, 5, 2, 4, 4)}
    for kind in ("image", "video"):
        tensors[f"out/mean_{kind}"], tensors[f"out/logvar_{kind}"] = net.moments(tensors[f"in/{kind}"])
    tensors["out/decoded_video"] = net.decode(tensors["in/z_video"])
    dd = dict(double_z=True, z_channels=4, resolution=64, in_channels=3, out_ch=3, ch=32, ch_mult=[2, 1], num_res_blocks=2,
              attn_resolutions=[64 // 2**i for i, attends in enumerate(attention) if attends], dropout=0.0)  # fmt: skip
    return described("AutoencoderKL", dict(ddconfig=dd, embed_dim=5), net, "other"), tensors


def transformer(depth: int = 2) -> Made:
    """A spatial transformer whose own width is not that of the feature map."""
    net = fill(SpatialTransformer(64, 24, 3, 32, inner=48, depth=depth), "other", "spatial_transformer.")
    x, contexts = noise(2, 64, 3, 5), {"1_token": noise(2, 1, 24), "7_tokens": noise(2, 7, 24)}
    config = {"spatial_transformer": dict(in_channels=64, n_heads=3, d_head=16, depth=depth, context_dim=24)}
    info = dict(official_class="SpatialTransformer", config=config, seed="other", keys=keys(net, "spatial_transformer."))
    tensors = {"in/transformer_x": x} | {f"in/context_{name}": c for name, c in contexts.items()}
    return info, tensors | {f"out/transformer_{name}": net(x, c) for name, c in contexts.items()}


def vocoder() -> Made:
    config = VocoderConfig(n_mels=20, initial_channels=32, upsample_rates=(3, 4), upsample_kernels=(7, 8), resblock_kernels=(3, 5),
                           resblock_dilations=((1, 2), (1, 3, 5)))  # fmt: skip
    net, mel = fill(Vocoder(config), "other"), noise(3, 20, 9)
    official = dict(upsample_rates=[3, 4], upsample_kernel_sizes=[7, 8], upsample_initial_channel=32, resblock_kernel_sizes=[3, 5],
                    resblock_dilation_sizes=[[1, 2], [1, 3, 5]], num_mels=20)  # fmt: skip
    return described("hifigan Generator", official, net, "other"), {
        "in/mel": mel,
        "out/waveform": net(mel.transpose(1, 2), trim=False)[:, None],
    }


def mel() -> Made:
    front, waveform = LogMel(MelConfig(n_mels=40, f_min=30.0, f_max=7000.0)), noise(2, 9000) / 4
    info = dict(official_class="TacotronSTFT + wav_to_fbank", seconds=0.8, seed="none",
                config=dict(filter_length=1024, hop_length=160, win_length=1024, n_mel_channels=40, sampling_rate=16000, mel_fmin=30,
                            mel_fmax=7000))  # fmt: skip
    return info, {"in/waveform_some": waveform, "out/mel_some": front(waveform, frames=81)}


def optimus() -> Made:
    config = OptimusConfig(
        latent_dim=12, encoder_vocab=50, encoder_dim=24, encoder_layers=1, encoder_heads=3, encoder_mlp=40, encoder_positions=20,
        decoder_vocab=60, decoder_dim=32, decoder_layers=3, decoder_heads=2, decoder_positions=16,
    )  # fmt: skip
    net = fill(TextAutoencoder(config), "other").eval()
    ids, z, said = torch.tensor([[3, 4, 5, 0], [7, 1, 0, 0]]), noise(2, 12), torch.tensor([[1, 2, 3], [9, 8, 7]])
    mean, logvar = net.moments(ids)
    greedy = net.generate(z[1:], temperature=0, bos=5, eos=60, max_tokens=8)[0][:7]
    bert = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3, max_position_embeddings=20, vocab_size=50)
    gpt = dict(n_embd=32, n_layer=3, n_head=2, n_positions=16, vocab_size=60, latent_size=12)
    info = described(
        "optimus_bert_connector / optimus_gpt2_connector", dict(encoder=dict(config=bert), decoder=dict(config=gpt)), net, "other"
    )
    info["untouched_keys"] = ["decoder.lm_head.weight", "decoder.transformer.h.2.attn.bias"]
    return info, {
        "in/bert_ids_short": ids, "in/gpt_ids": said, "in/z": z, "out/z_mean_short": mean, "out/z_logvar_half_short": logvar,
        "mid/sequence_short": net.encoder(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state,
        "out/logits": net.logits(z, said),
        "out/greedy_ids_from_5_z1": torch.tensor([greedy]),
    }  # fmt: skip


def clip() -> Made:
    config = CLIPConfig(projection_dim=20, vocab_size=70, text_dim=36, text_layers=1, text_heads=3, text_mlp=50, text_positions=10,
                        vision_dim=32, vision_layers=2, vision_heads=2, vision_mlp=40, image_size=24, patch_size=8)  # fmt: skip
    net = fill(CLIPEncoder(config), "other").eval()
    ids, pixels, clips = torch.tensor([[68, 5, 69, 0]]), noise(2, 3, 24, 24), noise(1, 6, 3, 24, 24)
    official = dict(
        text_config=dict(vocab_size=70, hidden_size=36, intermediate_size=50, num_hidden_layers=1, num_attention_heads=3,
                         max_position_embeddings=10),
        vision_config=dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8),
        projection_dim=20, hidden_act="quick_gelu",
    )  # fmt: skip
    info = described("CLIPModel(add_temporal_attention=True)", official, net, "other")
    info["untouched_keys"] = ["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"]
    return info, {
        "in/token_ids": ids, "in/pixels": pixels, "in/video_pixels_b_f_c_h_w": clips, "out/text_embedding": net.encode_text(ids),
        "out/image_embedding": net.encode_image(pixels), "out/video_embedding": net.encode_video(clips),
        "out/video_first4frames_embedding": net.encode_video(clips[:, :4]),
    }  # fmt: skip


def htsat() -> Made:
    config = CLAPConfig(embed_dim=16, depths=(1, 2, 1), num_heads=(1, 2, 4), window_size=4, spec_size=128, n_mels=32, num_classes=7,
                        sample_rate=24000, n_fft=512, hop_length=240, f_min=20.0, f_max=9000.0)  # fmt: skip
    net, sound = fill(AudioBranch(config), "other").eval(), noise(2, 7001) / 4
    waveform = preprocess.repeat_pad(preprocess.resample(sound, 16000, 24000), 48000)
    official = dict(embed_dim=16, depths=[1, 2, 1], num_heads=[1, 2, 4], spec_size=128, patch_size=4, patch_stride=[4, 4], num_classes=7,
                    window_size=4, mel_bins=32, window=512, hop=240, sample_rate=24000, fmin=20, fmax=9000)  # fmt: skip
    info = described("HTSAT_Swin_Transformer", official, net, "other", info=dict(samples_after_repeatpad=48000))
    return info, {"in/waveform_16k": sound, "out/embedding": net(waveform), "mid/logmel_power_db": net.mel(waveform)[:, None]}


def clap() -> Made:
    config = CLAPConfig(embed_dim=16, depths=(1, 1), num_heads=(1, 2), num_classes=7, projection_dim=24, hidden_dim=24)
    net, sound = fill(CLAPEncoder(config), "other").eval(), noise(1, 1, 30001) / 4
    official = dict(amodel="HTSAT-tiny", joint_embed_shape=24, embed_dim=16, depths=[1, 1], num_heads=[1, 2], class_num=7)
    info = described("CLAPAudioEmbeddingClassifierFreev2(amodel='HTSAT-tiny')", official, net, "other")
    return info, {
        "in/waveform_2s_16k": sound, "out/embedding_2s": preprocess.encode_audio(net, sound, 16000),
        "out/embedding_of_silence": preprocess.encode_audio(net, torch.zeros(1, 500), 16000),
    }  # fmt: skip


TEXTS: Made = (
    {
        "special_ids": {"gpt2_bos": 98, "gpt2_vocab": 100, "bert_cls": 101},
        "bert_encode": [{"text": "Ein Hund", "tokens": ["ein", "hu", "##nd"], "ids": [101, 900, 17, 5, 102]}],
        "gpt2_decode": [{"ids": [98, 3, 4, 5, 99], "decoded_raw": " <BOS> ein Hund bellt <EOS>", "official_final": "ein Hund bellt"}],
        "caption_cleanup": [{"decoded": "so so so", "after_adjacent_merge": "so", "official_final": "so"}],
    },
    {},
)


def schedules() -> Made:
    """Noise levels by the definition, in Python numbers."""
    levels, left = [], 1.0
    for i in range(1000):
        left *= 1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2
        levels.append(left)
    steps = [1, 251, 501, 751]
    before = [levels[i] for i in (0, *steps[:-1])]
    return {"schedules": {"4": dict(timesteps_ascending=steps, alphas=[levels[i] for i in steps], alphas_prev=before)}}, {}


MAKERS = {
    "unets": single,
    "one_output": lambda: joint(["audio"], ["text", "image"]),
    "two_outputs": lambda: joint(["video", "text"], ["video"], batch=2),
    "three_outputs": lambda: joint(["text", "video", "audio"], ["text", "image", "video", "audio"]),
    "run_of_8": lambda: ddim(["image", "audio"], 7, 2.5),
    "run_without_guidance": lambda: ddim(["text"], 2, 1.0),
    "temporal": temporal,
    "kl_attention": picture,
    "kl_plain": lambda: picture((False, False)),
    "transformer": transformer,
    "narrow_transformer": lambda: transformer(1),
    "vocoder": vocoder,
    "mel": mel,
    "optimus": optimus,
    "clip": clip,
    "htsat": htsat,
    "clap": clap,
    "texts": lambda: TEXTS,
    "schedules": schedules,
}

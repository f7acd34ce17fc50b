"""Any-to-any generation without a host: any mix of prompts to any set of outputs, denoised together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .conditioning import mix, shares
from .decoding import DECODERS, decode_audio, decode_pixels, decode_text
from .diffusion import Contexts, Denoise, guided, initial_noise, is_held, keeping, sample
from .errors import CoDiError
from .joint import JointDenoiser, guidance_shares
from .latents import ENCODERS, Note, encode_media, fitted
from .media import Progress
from .model import CoDi
from .prompts import Prompt, encode_prompt, prompted, unconditional
from .settings import Settings, denoisers_of, latent_shapes

Callback = Callable[[int, int], None]
"""Called after every denoising step with the steps done and the steps of the whole run."""


@dataclass
class Sample:
    """One sample; what was not asked for is None. All tensors float32 on the CPU."""

    seed: int
    image: Tensor | None = None  # (3, H, W) in 0..1
    video: Tensor | None = None  # (F, 3, H, W) in 0..1
    audio: Tensor | None = None  # (N,) in -1..1
    text: str | None = None
    frame_rate: float = 0.0
    sample_rate: int = 0


class CoDiPipeline:
    """Prompts in, samples out. Only the encoders of the prompts and the networks of the outputs are loaded."""

    def __init__(self, model: CoDi) -> None:
        self.model = model
        self.seconds: dict[str, float] = {}
        """Wall-clock seconds that the last run spent in each stage."""

    @staticmethod
    def from_pretrained(
        model: str | Path = "codi-mini", *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", operations: Any = nn
    ) -> CoDiPipeline:
        """Open a model folder or a shipped model; arguments and errors as `CoDi.from_pretrained`."""
        return CoDiPipeline(CoDi.from_pretrained(model, device=device, dtype=dtype, operations=operations))

    def __call__(
        self,
        prompts: str | Sequence[Prompt] = (),
        outputs: Sequence[str] = ("image",),
        *,
        keep: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        **settings: Any,
    ) -> list[Sample]:
        """All samples of a run. `prompts`: a sentence, or any number of prompts of any kind; none means unconditional.

        keep: outputs that are given, output -> value as in `Prompt`, for all samples; the others are generated to fit them.
        `settings` as in `Settings.settled`. Raises CoDiError before anything is loaded where the request cannot be met."""
        kept = [Prompt(output, value) for output, value in (keep or {}).items()]
        settled = Settings.settled(self.model.config, outputs, keep=[prompt.kind for prompt in kept], **settings)
        return list(self.stream(prompts, settled, keep=kept, callback=callback))

    def stream(
        self, prompts: str | Sequence[Prompt], settings: Settings, *, keep: Sequence[Prompt] = (), callback: Callback | None = None,
        progress: Progress = lambda _: None, note: Note = lambda _: None,
    ) -> Iterator[Sample]:  # fmt: skip
        """Samples in order, batch by batch. Sample i is drawn from seed `settings.seed + i` whatever batch it is in.

        keep: a value for each output of `settings.keep`. progress: called while a file is read, with the part of it that is done.
        note: called with what a user may not expect, that only a part of a file is taken."""
        self.seconds = {}
        prompts = [Prompt("text", prompts)] if isinstance(prompts, str) else list(prompts)
        if prompts:
            whole = settings.mix != "add-subtract"  # a mistyped weight is told before anything is loaded
            shares([prompt.weight for prompt in prompts], len(prompts), whole=whole)
        with self._stage("read"):
            prompts = [prompt.read(self.model.config, progress) for prompt in prompts]
            keep = self.read_given(keep, settings, progress, note)
        with self._stage("load"):
            self.load(prompts, settings)
        with self._stage("encode"):
            wanted, nothing = self.condition(prompts, settings.mix, settings.composition)
            kept, media = self.given(keep, settings)
        seeds = range(settings.seed, settings.seed + settings.count)
        done = 0
        for start in range(0, settings.count, settings.batch_size):
            batch = seeds[start : start + settings.batch_size]

            def tick(step: int, steps: int, before: int = done) -> None:
                if callback is not None:
                    callback(before + step, steps * -(-settings.count // settings.batch_size))

            own = {output: latent.expand(len(batch), *latent.shape[1:]) for output, latent in kept.items()}
            shown = {output: [value] * len(batch) for output, value in media.items()}
            samples, ran = self.generate(wanted, nothing, settings, batch, keep=own, shown=shown, callback=tick)
            done += ran
            yield from samples

    def generate(
        self, wanted: Tensor, nothing: Tensor | None, settings: Settings, seeds: Sequence[int], *,
        keep: Mapping[str, Tensor] | None = None, shown: Mapping[str, Sequence[Any]] | None = None,
        callback: Callback = lambda *_: None,
    ) -> tuple[list[Sample], int]:  # fmt: skip
        """One batch from embedded prompts, and the number of denoising steps that were run.

        wanted: (1, 1, D) for all samples, or (B, 1, D) with one prompt a sample; nothing: what guidance leads away from, or None.
        keep: output -> latents (B, ...) in diffusion space (see `given`) that stay as they are, or are made anew as far as
        `settings.denoise` says; the other outputs are generated to fit them. shown: output -> B values that the samples hold instead of
        decoded latents. Raises CoDiError for kept latents of other outputs or shapes, and where nothing is left to generate."""
        kept = self._kept(keep or {}, settings, len(seeds))
        with self._stage("denoise"):
            latents, ran = self._denoise(wanted, nothing, settings, seeds, callback, kept)
        samples = self._decode({output: z for output, z in latents.items() if output not in (shown or {})}, seeds)
        for output, values in (shown or {}).items():
            for one, value in zip(samples, values, strict=True):
                setattr(one, output, value)
        return samples, ran

    def read_given(
        self, keep: Sequence[Prompt], settings: Settings, progress: Progress = lambda _: None, note: Note = lambda _: None
    ) -> list[Prompt]:
        """Values for `settings.keep` at the sizes and rates of the run, see `latents.fitted`: files are read."""
        read = []
        for prompt in keep:
            size = {"image": settings.image_size, "video": settings.video_size}.get(prompt.kind)
            value = fitted(self.model.config, prompt, size=size, frames=settings.frames, progress=progress, note=note)
            read.append(Prompt(prompt.kind, (value, self.model.config.mel.sample_rate) if prompt.kind == "audio" else value))
        return read

    def given(self, keep: Sequence[Prompt], settings: Settings) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Latents (1, ...) in diffusion space of values for `settings.keep`; and the values themselves, at the sizes of the run,
        of those that stay as they are: an autoencoder would change them a little.

        Raises CoDiError where there is not one value for each, and for values that are no such media."""
        kinds = [prompt.kind for prompt in keep]
        if sorted(kinds) != sorted(settings.keep):
            raise CoDiError(f"this run keeps {', '.join(settings.keep) or 'nothing'}, and {', '.join(kinds) or 'nothing'} was given")
        sizes = {"image": settings.image_size, "video": settings.video_size}
        latents, media = {}, {}
        for prompt in self.read_given(keep, settings):
            latent = encode_media(self.model, prompt, size=sizes.get(prompt.kind), frames=settings.frames, whole=True)
            latents[prompt.kind] = latent[None]
            if prompt.kind in settings.fixed:
                media[prompt.kind] = prompt.value[0] if isinstance(prompt.value, tuple) else prompt.value
        return latents, media

    def _kept(self, keep: Mapping[str, Tensor], settings: Settings, batch: int) -> dict[str, Tensor]:
        shapes = {output: shape for output, shape in latent_shapes(self.model.config, settings).items() if output in settings.outputs}
        for output, latent in keep.items():
            if output not in shapes or tuple(latent.shape) != (batch, *shapes[output]):
                asked = {name: (batch, *shape) for name, shape in shapes.items()}
                raise CoDiError(f"a latent {tuple(latent.shape)} of {output} cannot be kept: this run has {asked}")
        if not [output for output in shapes if output not in keep or dict(settings.denoise).get(output)]:
            raise CoDiError(f"all outputs ({', '.join(shapes)}) are kept: ask for another one that is to be generated")
        return {output: latent.to(self.model.device, torch.float32) for output, latent in keep.items()}

    def load(self, prompts: Sequence[Prompt], settings: Settings) -> None:
        """Load what a run needs and nothing else."""
        names = {prompt.encoder for prompt in [*prompts, *unconditional(self.model, prompts)]} | set(denoisers_of(settings.working))
        names.update(ENCODERS[output] for output in settings.keep)
        decoded = set(settings.outputs) - set(settings.fixed)
        names.update(component for output in decoded for component in DECODERS[output])
        for name in sorted(names):
            self.model.component(name)
        if "text" in settings.outputs:
            _ = self.model.text_tokenizers

    def condition(self, prompts: Sequence[Prompt], method: str = "linear", composition: str | None = None) -> tuple[Tensor, Tensor | None]:
        """Mixed prompt (1, 1, D) and what guidance leads away from; None for the latter where there is no prompt.

        composition: as for `prompted`."""

        def mixed(prompts: Sequence[Prompt]) -> Tensor:
            points = [encode_prompt(self.model, prompt) for prompt in prompts]
            return prompted(self.model, mix(points, [prompt.weight for prompt in prompts], method), composition)

        nothing = mixed(unconditional(self.model, prompts))
        return (mixed(prompts), nothing) if prompts else (nothing, None)

    @torch.inference_mode()
    def _denoise(
        self, wanted: Tensor, nothing: Tensor | None, settings: Settings, seeds: Sequence[int], callback: Callback, kept: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], int]:
        """Latents of one batch in diffusion space, and the number of steps that were run."""
        model, batch = self.model, len(seeds)
        joint = JointDenoiser({name: model.component(name) for name in denoisers_of(settings.working)}, register=False,
                              composition=model.composition(settings.composition), emphasis=model.emphasis)  # fmt: skip
        coupling, anew = settings.coupling, {output: share for output, share in settings.denoise if output in kept and share}
        cfg = dict.fromkeys(settings.working, 1.0) if nothing is None else settings.scales
        with_prompt = wanted.to(model.device, model.dtype).expand(batch, -1, -1)  # (B, 1, D)
        reach = joint.reach(with_prompt, coupling.guidance)
        once = {output: guidance_shares([True] * batch, 1.0, reach[output]) for output in cfg}
        doubled = [False] * batch + [True] * batch
        twice = {output: guidance_shares(doubled, scale, reach[output].repeat(2)) for output, scale in cfg.items()}
        without = with_prompt if nothing is None else nothing.to(with_prompt).expand(batch, -1, -1)
        aligned: dict[str, Any] = {
            "wiring": coupling.wiring,
            "alignment": coupling.strength,
            "alignment_guidance": coupling.guidance,
            "window": (coupling.start, coupling.end),
            "pairs": coupling.pairs,
        }

        def denoiser(turn: tuple[str, ...], spoken: Mapping[str, Tensor]) -> Denoise:
            """What the sampler of a turn calls; spoken: environment embeddings (B, 1, C) of what is finished."""

            def predict(latents: dict[str, Tensor], timesteps: Tensor, contexts: Contexts) -> dict[str, Tensor]:
                push, heard = once, spoken
                if len(timesteps) == 2 * batch:  # without the prompt first, see `guided`
                    push, heard = twice, {output: torch.cat([e, e]) for output, e in spoken.items()}
                only = [output for output in latents if output not in anew or not is_held(float(timesteps[0]), anew[output])]
                parts = {m: x.to(model.dtype) for m, x in latents.items()}
                noise = joint(parts, timesteps, contexts, push=push, only=only, spoken=heard, **aligned)
                return {m: eps.float() for m, eps in noise.items()}  # the sampler's arithmetic stays in float32

            scales = {output: cfg[output] for output in turn}
            fold = partial(joint.fold_contexts, modalities=turn)
            denoise = guided(predict, with_prompt, without, scales, rescale=settings.cfg_rescale, fold=fold)
            varied = {output: kept[output] for output in turn if output in anew}
            return keeping(denoise, varied, {output: start[output] for output in varied}, anew) if varied else denoise

        def speaking(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
            clean = torch.zeros(batch, dtype=torch.long, device=model.device)
            return joint.environment_embeddings({m: x.to(model.dtype) for m, x in latents.items()}, clean)

        start = initial_noise(latent_shapes(model.config, settings), seeds, device=model.device)
        finished = {output: latent for output, latent in kept.items() if output not in anew}
        spoken = speaking(finished) if settings.listening else {}
        turns = settings.turns([output for output in settings.outputs if output not in finished])
        ran = 0
        for turn in turns:

            def step(done: int, steps: int, _: Any, before: int = ran) -> None:
                nonlocal ran
                ran = before + done
                callback(ran, steps * len(turns))

            noise = {output: start[output] for output in turn}
            made = sample(denoiser(turn, spoken), noise, sampler=settings.sampler, steps=settings.steps, seeds=seeds, callback=step)
            if settings.listening and turn != turns[-1]:
                spoken = {**spoken, **speaking(made)}
            finished |= made
        return {output: finished[output] for output in settings.outputs}, ran

    def _decode(self, latents: Mapping[str, Tensor], seeds: Sequence[int]) -> list[Sample]:
        config = self.model.config
        samples = [Sample(seed, frame_rate=config.sampling.frame_rate, sample_rate=config.mel.sample_rate) for seed in seeds]
        for output, z in latents.items():
            if not bool(torch.isfinite(z).all()):
                raise CoDiError(f"the {output} latents became infinite or NaN: lower cfg or the alignment, or use fp32")
            z = z.to(self.model.dtype)
            with self._stage(f"decode {output}"):
                if output == "text":
                    decoded: Any = decode_text(self.model, z, seeds)
                else:
                    decoded = (decode_audio if output == "audio" else decode_pixels)(self.model, z).cpu()
            for one, value in zip(samples, decoded, strict=True):
                setattr(one, output, value)
        return samples

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Adds the block's duration to `seconds`, with the GPU work that it queued."""
        begin = time.perf_counter()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

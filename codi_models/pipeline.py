"""Any-to-any generation without a host: any mix of prompts to any set of outputs, denoised together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import memory
from .conditioning import DEFAULT_MIX, Prompt, encode_prompt, fractions, mix, unconditional
from .diffusion import TIMESTEPS, Denoise, Latents, NoiseSchedule, initial_noise, sample
from .errors import CoDiError
from .guidance import GuidedDenoiser
from .joint import JointDenoiser
from .latents import Note, decode_audio, decode_pixels, decode_text, encode_media, fitted
from .media import Progress
from .modalities import MODALITIES, denoisers_of
from .model import CoDi
from .settings import Settings, latent_shapes, snr_scales, unusual_sizes

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
        given: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        **settings: Any,
    ) -> list[Sample]:
        """All samples of a run. `prompts`: a sentence, or any number of prompts of any kind; none means unconditional.

        given: outputs that the user gives, output -> value as in `Prompt`, for all samples; the others are generated to fit them.
        `settings` as in `Settings.resolve`. Raises CoDiError before anything is loaded where the request cannot be met."""
        media = [Prompt(output, value) for output, value in (given or {}).items()]
        resolved = Settings.resolve(self.model.config, outputs, given=[prompt.kind for prompt in media], **settings)
        return list(self.stream(prompts, resolved, given=media, callback=callback))

    def stream(
        self, prompts: str | Sequence[Prompt], settings: Settings, *, given: Sequence[Prompt] = (), callback: Callback | None = None,
        reading: Progress = lambda _: None, note: Note = lambda _: None,
    ) -> Iterator[Sample]:  # fmt: skip
        """Samples in order, batch by batch. Sample i is drawn from seed `settings.seed + i` whatever batch it is in.

        given: a value for each output of `settings.given`. reading: called while a file is read, with the part of it that is done.
        note: called with what a user may not expect: a size far from the model's own, a part only of a file that is taken."""
        self.seconds = {}
        config = self.model.config
        for line in unusual_sizes(config, {output: settings.size(output, config) for output in settings.outputs}):
            note(line)
        prompts = [Prompt("text", prompts)] if isinstance(prompts, str) else list(prompts)
        self.check_room(settings, min(settings.count, settings.batch_size))
        if prompts:  # a mistyped weight is told before anything is loaded
            fractions([prompt.weight for prompt in prompts], len(prompts), normalise=settings.mix != "add-subtract")
        with self._stage("read"):
            prompts = [prompt.read(self.model.config, reading) for prompt in prompts]
            given = self.read_given(given, settings, reading, note)
        with self._stage("load"):
            self.load(prompts, settings)
        with self._stage("encode"):
            cond, uncond = self.condition(prompts, settings.mix)
            latents, media = self.encode_given(given, settings)
        seeds = range(settings.seed, settings.seed + settings.count)
        done = 0
        for start in range(0, settings.count, settings.batch_size):
            batch = seeds[start : start + settings.batch_size]

            def tick(step: int, steps: int, before: int = done) -> None:
                if callback is not None:
                    callback(before + step, steps * -(-settings.count // settings.batch_size))

            own = {output: latent.expand(len(batch), *latent.shape[1:]) for output, latent in latents.items()}
            shown = {output: [value] * len(batch) for output, value in media.items()}
            samples, ran = self.generate(cond, uncond, settings, batch, given=own, shown=shown, callback=tick)
            done += ran
            yield from samples

    def check_room(self, settings: Settings, batch: int) -> None:
        """Raises TooLarge where so many samples at once are more than this machine holds. A GPU tells by itself, a processor is killed."""
        if self.model.device.type == "cpu":
            needed = memory.making(self.model.config, latent_shapes(self.model.config, settings), batch, self.model.dtype.itemsize)
            advice = "lower the size, the frames, or how many are made at once (batch size)"
            memory.check_room(needed, f"making {batch} samples of this size at once", advice)

    def generate(
        self, cond: Tensor, uncond: Tensor | None, settings: Settings, seeds: Sequence[int], *,
        given: Mapping[str, Tensor] | None = None, shown: Mapping[str, Sequence[Any]] | None = None,
        callback: Callback = lambda *_: None,
    ) -> tuple[list[Sample], int]:  # fmt: skip
        """One batch from embedded prompts, and the number of denoising steps that were run.

        cond: (1, 1, D) for all samples, or (B, 1, D) with one prompt a sample; uncond: what guidance leads away from, or None.
        given: output -> latents (B, ...) in diffusion space (see `encode_given`). shown: output -> B values that the samples hold
        instead of decoded latents. Raises CoDiError for given latents of other outputs or shapes, TooLarge."""
        self.check_room(settings, len(seeds))
        noise = initial_noise(latent_shapes(self.model.config, settings), seeds, device=self.model.device)
        with self._stage("denoise"):
            latents, ran = self.denoise(cond, uncond, settings, noise, seeds=seeds, given=given, callback=callback)
        samples = self._decode({output: z for output, z in latents.items() if output not in (shown or {})}, seeds)
        for output, values in (shown or {}).items():
            for one, value in zip(samples, values, strict=True):
                setattr(one, output, value)
        return samples, ran

    def read_given(
        self, given: Sequence[Prompt], settings: Settings, progress: Progress = lambda _: None, note: Note = lambda _: None
    ) -> list[Prompt]:
        """Values for `settings.given` at the sizes and rates of the run, see `latents.fitted`; files are read."""
        read = []
        for prompt in given:
            edge = settings.size(prompt.kind, self.model.config).height
            value = fitted(self.model.config, prompt, size=edge, frames=settings.frames, progress=progress, note=note)
            read.append(Prompt(prompt.kind, (value, self.model.config.mel.sample_rate) if prompt.kind == "audio" else value))
        return read

    def encode_given(self, given: Sequence[Prompt], settings: Settings) -> tuple[Latents, dict[str, Any]]:
        """Latents (1, ...) in diffusion space of values for `settings.given`; and the values themselves, at the sizes of the run,
        of those that stay as they are: an autoencoder would change them a little.

        Raises CoDiError where there is not one value for each, and for values that are no such media."""
        kinds = [prompt.kind for prompt in given]
        if sorted(kinds) != sorted(settings.given):
            raise CoDiError(f"this run takes {', '.join(settings.given) or 'nothing'} as given, and got {', '.join(kinds) or 'nothing'}")
        latents, media = {}, {}
        for prompt in self.read_given(given, settings):
            edge = settings.size(prompt.kind, self.model.config).height
            latents[prompt.kind] = encode_media(self.model, prompt, size=edge, frames=settings.frames, strict=True)[None]
            if prompt.kind in settings.unchanged:
                media[prompt.kind] = prompt.value[0] if isinstance(prompt.value, tuple) else prompt.value
        return latents, media

    def load(self, prompts: Sequence[Prompt], settings: Settings) -> None:
        """Load what a run needs and nothing else."""
        names = {prompt.encoder for prompt in [*prompts, *unconditional(self.model, prompts)]} | set(denoisers_of(settings.outputs))
        names.update(MODALITIES[output].autoencoder for output in settings.given)
        decoded = set(settings.outputs) - set(settings.unchanged)
        names.update(component for output in decoded for component in MODALITIES[output].decoders)
        for name in sorted(names):
            self.model.component(name)
        if "text" in settings.outputs:
            _ = self.model.text_tokenizers

    def condition(self, prompts: Sequence[Prompt], method: str = DEFAULT_MIX) -> tuple[Tensor, Tensor | None]:
        """Mixed prompt (1, 1, D) and what guidance leads away from; None for the latter where there is no prompt."""

        def mixed(prompts: Sequence[Prompt]) -> Tensor:
            points = [encode_prompt(self.model, prompt) for prompt in prompts]
            return mix(points, [prompt.weight for prompt in prompts], method)

        empty = mixed(unconditional(self.model, prompts, method))
        return (mixed(prompts), empty) if prompts else (empty, None)

    @torch.inference_mode()
    def denoise(
        self, cond: Tensor, uncond: Tensor | None, settings: Settings, noise: Latents, *, seeds: Sequence[int] = (),
        given: Mapping[str, Tensor] | None = None, callback: Callback = lambda *_: None,
    ) -> tuple[Latents, int]:  # fmt: skip
        """Noise (B, ...) of every output -> latents in diffusion space, and the number of steps that were run.

        Stage by stage: what is finished is attended to by later stages through its environment embedding. Other arguments as `generate`
        takes them."""
        model, batch = self.model, next(iter(noise.values())).shape[0]
        scales, schedule = snr_scales(model.config), NoiseSchedule(model.config.diffusion)
        sigmas, unit_start = settings.sigmas(model.config)
        joint = JointDenoiser({name: model.component(name) for name in denoisers_of(settings.outputs)}, register=False)
        prompt = cond.to(model.device, model.dtype).expand(batch, -1, -1)  # (B, 1, D)
        empty = prompt if uncond is None else uncond.to(prompt).expand(batch, -1, -1)
        clean = _checked(given or {}, noise, settings)
        finished = {output: clean[output] for output in settings.unchanged}
        ran, stages = 0, settings.stages
        for stage in stages:

            def step(done: int, steps: int, _: Any, before: int = ran) -> None:
                nonlocal ran
                ran = before + done
                callback(ran, steps * len(stages))

            aligned = len(stage) + len(finished) > 1 and not settings.alignment.disabled
            environment = {m: x.to(model.dtype) for m, x in finished.items()} if aligned else {}
            guided = GuidedDenoiser(
                joint, schedule, prompt, empty, settings.guidance(prompted=uncond is not None), settings.alignment, scales=scales,
                given=joint.environment_embeddings(environment, torch.zeros(batch, device=model.device)), dtype=model.dtype,
            )  # fmt: skip
            strength = dict(settings.strength)
            start = {m: clean[m] for m in stage if m in clean and strength[m] < 1}  # at 1 nothing of it is left
            finished |= sample(
                _partly_given(guided, schedule, start, scales, strength), {m: noise[m] for m in stage}, sigmas,
                sampler=settings.sampler, unit_start=unit_start, scales=scales, clean=start, seeds=seeds, callback=step,
            )  # fmt: skip
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


def _checked(given: Mapping[str, Tensor], noise: Latents, settings: Settings) -> Latents:
    """Given latents, float32, on the device of the noise. Raises CoDiError for others than the run takes."""
    for output, latent in given.items():
        if output not in settings.given or latent.shape != noise[output].shape:
            shapes = {name: tuple(part.shape) for name, part in noise.items()}
            raise CoDiError(f"a latent {tuple(latent.shape)} of {output} cannot be given: this run has {shapes}")
    if missing := [output for output in settings.given if output not in given]:
        raise CoDiError(f"this run takes {', '.join(settings.given)} as given: {', '.join(missing)} is missing")
    return {output: latent.to(noise[output].device, torch.float32) for output, latent in given.items()}


def _partly_given(
    guided: GuidedDenoiser, schedule: NoiseSchedule, clean: Latents, scales: Mapping[str, float], strength: Mapping[str, float]
) -> Denoise:
    """Given outputs stay what they are until the part `strength` of the run, at its end, in which they are denoised like the others
    (SDEdit, Meng et al. 2022)."""
    until = {m: float(schedule.sigma(strength[m] * TIMESTEPS)) for m in clean}

    def denoise(x: Latents, sigma: float) -> Latents:
        held = {m: scales[m] * part for m, part in clean.items() if sigma >= until[m]}
        return {**held, **guided(x, sigma, [m for m in x if m not in held])}

    return denoise

"""Sample sheets: what a stage makes, as pictures, spectrograms and captions in TensorBoard's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..config import DENOISER_OF
from ..decoding import decode_audio, decode_pixels, decode_text
from ..diffusion import guided, initial_noise, sample
from ..joint import JointDenoiser
from ..model import CoDi
from ..settings import Settings, latent_shapes
from .alignment import LatentAlignment
from .loop import Objective
from .workspace import Workspace

ROWS = 6  # samples on a sheet
STEPS = 10
SIDE = 96  # px, of a picture on a sheet


class SampleSheet:
    """Draws the sheet of whatever objective it is called with; the same prompts and seeds each time.

    Denoisers and latent alignment sample; autoencoders show what they are given above what they make of it. Decoders are those that lie
    in the model folder; an output that cannot be decoded yet is left out. Other stages have no sheet."""

    def __init__(self, space: Workspace) -> None:
        self.space = space
        self._model: CoDi | None = None

    def __call__(self, objective: Objective, writer: Any, step: int) -> None:
        """Add the objective's sheet to a SummaryWriter."""
        for name, found in self.draw(objective).items():
            if isinstance(found, Tensor):
                writer.add_image(name, found, step)
            else:
                writer.add_text(name, "\n".join(f"- {line}" for line in found), step)

    def draw(self, objective: Objective) -> dict[str, Tensor | list[str]]:
        """Name -> picture (3, H, W) in 0..1, or lines of text."""
        if isinstance(objective, LatentAlignment):
            return self._sampled(objective, dict(objective.nets.items()), [("video", "audio"), ("image", "text")], empty=True)
        component, net = getattr(objective, "component", ""), getattr(objective, "net", None)
        outputs = [m for m, name in DENOISER_OF.items() if name == component]
        if outputs and net is not None:
            return self._sampled(objective, {component: net}, [(m,) for m in outputs], empty=False)
        if component in _RECONSTRUCTIONS and net is not None:
            return _RECONSTRUCTIONS[component](objective, net)
        return {}

    def _sampled(
        self, objective: Any, nets: Mapping[str, Any], sets: Sequence[tuple[str, ...]], empty: bool
    ) -> dict[str, Tensor | list[str]]:
        """Samples of sets of outputs; with `empty`, without a prompt, so that outputs can only agree by listening to each other."""
        contexts = objective.text.embeddings
        rows = torch.linspace(0, len(contexts) - 2, ROWS).long()
        nothing = objective.text.empty.expand(ROWS, 1, -1)
        wanted = nothing if empty else contexts[rows][:, None]
        found: dict[str, Tensor | list[str]] = {}
        for outputs in sets:
            if not all(DENOISER_OF[o] in nets for o in outputs) or not all(self._decodable(o) for o in outputs):
                continue
            joint = JointDenoiser(nets, register=False)
            settings = Settings.settled(self.space.config, outputs, count=ROWS)

            def predict(
                latents: dict[str, Tensor], t: Tensor, given: Any, joint: Any = joint, settings: Any = settings
            ) -> dict[str, Tensor]:
                return joint(latents, t, given, alignment_guidance=settings.alignment_guidance)

            noise = initial_noise(latent_shapes(self.space.config, settings), range(ROWS), device=self.space.device)
            steps = guided(predict, wanted, nothing, 1.0 if empty else settings.cfg)
            latents = sample(steps, noise, sampler="ddim", steps=STEPS)
            label = "+".join(outputs)
            for output, z in latents.items():
                name = output if label == output else f"{label}/{output}"
                found[name] = self._decoded(output, z)
        return found

    def _decoded(self, output: str, latents: Tensor) -> Tensor | list[str]:
        model = self._decoders()
        if output == "text":
            return decode_text(model, latents, range(len(latents)))
        if output == "audio":
            return spectrograms(decode_audio(model, latents))
        return sheet_of(decode_pixels(model, latents).float())

    def _decodable(self, output: str) -> bool:
        from ..decoding import DECODERS

        return all(self.space.has(name) for name in DECODERS[output])

    def _decoders(self) -> CoDi:
        if self._model is None:
            self._model = CoDi(self.space.folder, self.space.config, device=self.space.device, dtype=torch.float32)
        return self._model


def sheet_of(pixels: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) side by side, or clips (B, F, 3, H, W) one a row, in 0..1 -> (3, H', W')."""
    frames = pixels[None] if pixels.ndim == 4 else pixels  # (rows, columns, 3, H, W)
    small = functional.interpolate(frames.flatten(0, 1), size=(SIDE, SIDE), mode="nearest").unflatten(0, frames.shape[:2])
    return small.permute(2, 0, 3, 1, 4).reshape(3, len(frames) * SIDE, -1).clamp(0, 1).cpu()


def spectrograms(waves: Tensor, size: int = 512) -> Tensor:
    """Sounds (B, N) -> their log spectrograms side by side, low pitches below, 60 dB from black to white: (3, H, W)."""
    window = torch.hann_window(size, device=waves.device)
    power = torch.stft(waves.float(), size, size // 2, window=window, return_complex=True).abs().square()  # (B, bins, T)
    return _shaded(10 * power.clamp(min=1e-12).log10())


def _shaded(decibels: Tensor) -> Tensor:
    """(B, bins, T) -> (3, H, W), each with its own maximum as white, a dark line between them."""
    top = decibels.amax(dim=(1, 2), keepdim=True)
    grey = ((decibels - top) / 60 + 1).clamp(0, 1).flip(1)
    grey = functional.pad(grey, (0, 2))
    return torch.cat(list(grey), dim=1).expand(3, -1, -1).cpu()


def _pictures(objective: Any, net: Any) -> dict[str, Tensor | list[str]]:
    pixels = objective.pictures(ROWS, _generator(net))
    made = net.decode(net.encode(pixels))
    return {"reconstruction": sheet_of(torch.stack([pixels, made]) / 2 + 0.5)}


def _sounds(objective: Any, net: Any) -> dict[str, Tensor | list[str]]:
    mel = net.mel(objective.waves(ROWS, _generator(net))).contiguous()  # (B, 1, T, M)
    made = net.decode(net.encode(mel))
    rows = [_shaded(20 / 2.302585 * x[:, 0].mT) for x in (mel, made)]  # natural logarithms of amplitudes
    return {"reconstruction": torch.cat(rows, dim=1)}


def _captions(objective: Any, net: Any) -> dict[str, Tensor | list[str]]:
    from ..autoencoders.tokenizers import TextTokenizers
    from ..bounce_world import neighbours

    captions, _, _ = neighbours.captions()
    rows = torch.linspace(0, len(captions) - 1, ROWS).long()
    ids = net.generate(net.encode(objective.tables.encoder[rows]), temperature=0.0)
    made = TextTokenizers(objective.workspace.folder, objective.workspace.config.text_autoencoder).decode(ids, faithful=False)
    return {"reconstruction": [f"{captions[i]}: {text}" for i, text in zip(rows.tolist(), made, strict=True)]}


def _generator(net: Any) -> torch.Generator:
    return torch.Generator(next(net.parameters()).device).manual_seed(0)


_RECONSTRUCTIONS = {"image_autoencoder": _pictures, "audio_autoencoder": _sounds, "text_autoencoder": _captions}

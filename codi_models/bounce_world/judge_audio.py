"""Measures the notes in sounds of Bounce World: when they start, their pitch, their timbre. Nothing is learned.

Written for generated sound too: a noise floor, phases that a vocoder changed, or a length that is slightly off do not matter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CoDiError
from .world import BEATS, FREQUENCIES, SAMPLE_RATE, SHAPES

MOST_ONSETS = 6
WINDOW = 480  # samples; energy after an instant is compared with the energy before it over this length (30 ms)
RISE = 6.0  # dB; a note starts where that comparison has a maximum of at least this
FLOOR = 0.01  # of the loudest window's energy is added to both sides, so that the smear before a vocoded note counts for little
EARLIEST = 160  # samples (10 ms) that must precede an onset
QUIETEST = -18.0  # dB; against the loudest note, below which nothing counts as a note
NOTE_GAP = 1600  # samples (100 ms) within which there is one onset at most
SILENCE = 1e-4  # peak; a sound with a lower one is silent
SEGMENT = 2560  # samples of a note that are analysed (160 ms)
FADE_IN = 240  # samples
PITCH_RANGE = (260.0, 1700.0)  # Hz
LARGEST_DETUNE = 0.06  # relative; notes further from all six frequencies are unreadable
LEAST_TONAL = 0.08  # share of a note's energy at its pitch, below which it has none
# Amplitude (root of energy) against the fundamental, of (even harmonics, odd harmonics, noise). Between the timbres of the world
# lie: even 0 and 0.5 .. 0.63, odd 0 and 0.33 .. 0.48, noise 0 and 1.
EVEN, ODD, NOISE = 0.2, 0.15, 0.5


def resample(wave: Tensor, sample_rate: int, new_rate: int) -> Tensor:
    """(n, N) at sample_rate -> (n, N * new_rate / sample_rate): band-limited, by the discrete Fourier transform."""
    if sample_rate == new_rate:
        return wave
    samples = round(wave.shape[1] * new_rate / sample_rate)
    if samples == 0:
        return wave[:, :0]
    spectrum = torch.fft.rfft(wave)
    kept = min(spectrum.shape[1], samples // 2 + 1)
    return torch.fft.irfft(spectrum[:, :kept], n=samples) * (samples / wave.shape[1])


def check_wave(wave: Tensor, sample_rate: int) -> Tensor:
    """(n, N) or (n, channels, N) -> mono float (n, N) at 16 kHz, at least half a second; raises CoDiError on anything else."""
    if wave.ndim not in (2, 3) or not wave.is_floating_point():
        raise CoDiError(
            f"The judge was given sound {tuple(wave.shape)} of {wave.dtype}; it reads floats -1..1 of shape (n, N) or (n, channels, N)."
        )
    if sample_rate <= 0:
        raise CoDiError(f"The judge was given a sample rate of {sample_rate} Hz; give the positive rate at which the sound was made.")
    mono = wave.float().nan_to_num()
    mono = resample(mono.mean(dim=1) if wave.ndim == 3 else mono, sample_rate, SAMPLE_RATE)
    return functional.pad(mono, (0, max(0, SAMPLE_RATE // 2 - mono.shape[1])))


def find_onsets(wave: Tensor) -> Tensor:
    """wave (n, N) at 16 kHz -> start of each note in samples, ascending, (n, 6) int64, -1 behind the last.

    An onset is the instant that maximises the ratio of the energy in the 30 ms after it to that in the 30 ms before it.
    """
    n, samples = wave.shape
    energy = wave.double().square().cumsum(dim=1)
    energy = functional.pad(energy, (WINDOW + 1, 0))
    energy = torch.cat([energy, energy[:, -1:].expand(-1, WINDOW)], dim=1)  # energy[:, t + WINDOW + 1] sums samples 0 .. t
    sums = energy[:, WINDOW:] - energy[:, :-WINDOW]  # sums[:, t] = energy of samples t - WINDOW .. t - 1
    before, after = sums[:, :samples].clamp(min=0), sums[:, WINDOW : WINDOW + samples].clamp(min=0)
    # A file may start in the middle of its noise floor: what comes before it is taken to be as loud as its beginning.
    place = torch.arange(samples, device=wave.device)
    heard = place.clamp(min=EARLIEST, max=WINDOW)
    before = torch.where(place < EARLIEST, before[:, EARLIEST : EARLIEST + 1], before) * (WINDOW / heard)
    loudest = after.amax(dim=1, keepdim=True)
    floor = FLOOR * loudest + 1e-20
    rise = (10 * ((after + floor) / (before + floor)).log10()).float()  # (n, N) dB
    rise = torch.where(after > loudest * 10 ** (QUIETEST / 10), rise, 0)
    onsets = []
    for _ in range(MOST_ONSETS):
        highest, at = rise.max(dim=1)
        onsets.append(torch.where(highest > RISE, at, samples))
        rise = torch.where((place - at.unsqueeze(1)).abs() < NOTE_GAP, 0, rise)
    found = torch.stack(onsets, dim=1).sort(dim=1).values
    return torch.where((found < samples) & (wave.abs().amax(dim=1, keepdim=True) > SILENCE), found, -1)


def note_spectrum(wave: Tensor, onsets: Tensor) -> tuple[Tensor, Tensor]:
    """Power spectrum of the notes (summed over the onsets) and of the quietest moment, (n, SEGMENT + 1) each, up to 8 kHz."""
    n, samples = wave.shape
    padded = functional.pad(wave, (0, SEGMENT))
    energy = functional.pad(padded.square().cumsum(dim=1), (1, 0))
    whole = max(samples - SEGMENT, 1)
    moving = energy[:, SEGMENT : SEGMENT + whole] - energy[:, :whole]
    loudest, quietest = moving.argmax(dim=1), moving.argmin(dim=1)
    # Without an onset, the loudest moment stands in, so that a continuous tone still has a pitch.
    none = (onsets < 0).all(dim=1)
    starts = torch.cat([onsets, torch.where(none, loudest, -1).unsqueeze(1), quietest.unsqueeze(1)], dim=1)  # (n, 8)
    ramp = torch.arange(SEGMENT, device=wave.device)
    fade_in = 0.5 - 0.5 * (math.pi * (ramp / FADE_IN).clamp(max=1)).cos()
    fade_out = 0.5 + 0.5 * (math.pi * ((ramp - FADE_IN) / (SEGMENT - FADE_IN)).clamp(min=0)).cos()
    index = starts.clamp(min=0).unsqueeze(2) + ramp  # (n, 8, SEGMENT)
    segments = padded.unsqueeze(1).expand(-1, starts.shape[1], -1).gather(2, index) * fade_in * fade_out
    power = torch.fft.rfft(segments, n=2 * SEGMENT).abs().square()  # (n, 8, SEGMENT + 1)
    used = (starts >= 0).unsqueeze(2)
    notes = (power[:, :-1] * used[:, :-1]).sum(dim=1)
    return notes, power[:, -1] * used[:, :-1].sum(dim=1)


def read_pitch(notes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Power spectrum (n, bins) up to 8 kHz -> colour index, -1 without a pitch of the world; frequency in Hz; whether there is a pitch."""
    hertz = torch.linspace(0, SAMPLE_RATE / 2, notes.shape[1], device=notes.device)
    smooth = functional.avg_pool1d(notes.unsqueeze(1), 5, stride=1, padding=2).squeeze(1)
    in_range = (hertz > PITCH_RANGE[0]) & (hertz < PITCH_RANGE[1])
    peak = (smooth * in_range).argmax(dim=1)
    around = peak.unsqueeze(1) + torch.arange(-4, 5, device=notes.device)
    weight = notes.gather(1, around.clamp(0, notes.shape[1] - 1))
    frequency = (weight * hertz[around.clamp(0, notes.shape[1] - 1)]).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-20)
    ratio = frequency.unsqueeze(1) / torch.tensor(FREQUENCIES, device=notes.device)
    detune, colour = ratio.clamp(min=1e-3).log().abs().min(dim=1)
    at_pitch = (hertz - frequency.unsqueeze(1)).abs() < 0.06 * frequency.unsqueeze(1)
    tonal = (notes * at_pitch).sum(dim=1) / notes.sum(dim=1).clamp(min=1e-20)
    pitched = tonal > LEAST_TONAL
    return torch.where(pitched & (detune < LARGEST_DETUNE), colour, -1), frequency, pitched


def read_timbre(notes: Tensor, floor: Tensor, frequency: Tensor) -> Tensor:
    """Power spectra (n, bins) of notes and of the quietest moment, fundamental (n,) in Hz -> shape index (n,).

    Harmonics are what stands out from the noise between them; the noise is what the notes have between the harmonics beyond
    what the quietest moment has there.
    """
    hertz = torch.linspace(0, SAMPLE_RATE / 2, notes.shape[1], device=notes.device)
    top = hertz < 7600
    harmonic = (hertz / frequency.clamp(min=1).unsqueeze(1)).round()  # (n, bins) number of the nearest harmonic
    on_harmonic = (hertz - harmonic * frequency.unsqueeze(1)).abs() < 0.2 * frequency.unsqueeze(1)
    between = (~on_harmonic & top & (hertz > 100)).float()

    def density(power: Tensor) -> Tensor:
        return (power * between).sum(dim=1) / between.sum(dim=1).clamp(min=1)

    level = density(notes)
    noise = (level - density(floor)).clamp(min=0) * top.sum()
    tones = (notes - level.unsqueeze(1)) * on_harmonic * top
    first = (tones * (harmonic == 1)).sum(dim=1).clamp(min=1e-20)
    even = (tones * ((harmonic % 2 == 0) & (harmonic > 1))).sum(dim=1).clamp(min=0)
    odd = (tones * ((harmonic % 2 == 1) & (harmonic > 1))).sum(dim=1).clamp(min=0)
    even, odd, noise = ((part / first).sqrt() for part in (even, odd, noise))
    circle, square, triangle, star = (torch.tensor(i, device=notes.device) for i in range(len(SHAPES)))
    rich = torch.where(even > EVEN, triangle, torch.where(odd > ODD, square, circle))
    return torch.where(noise > NOISE, star, rich)


def measure_notes(wave: Tensor) -> dict[str, Tensor]:
    """wave (n, N) as `check_wave` returns it -> shape, colour, beats (n,), -1 where unreadable; times (n, 6) in s; frequency (n,) in Hz."""
    onsets = find_onsets(wave)
    count = (onsets >= 0).sum(dim=1)
    notes, floor = note_spectrum(wave, onsets)
    colour, frequency, pitched = read_pitch(notes)
    audible = wave.abs().amax(dim=1) > SILENCE
    return {
        "shape": torch.where(audible & pitched, read_timbre(notes, floor, frequency), -1),
        "colour": torch.where(audible, colour, -1),
        "beats": torch.where((count >= BEATS[0]) & (count <= BEATS[-1]), count - 1, -1),
        "times": torch.where(onsets >= 0, onsets / SAMPLE_RATE, torch.nan),
        "frequency": frequency,
    }

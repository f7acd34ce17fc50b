"""Pictures, sound and clips in files: tensors in, tensors out, nothing half-written.

Pixels are float32 in 0..1, channels first: a picture (3, H, W), a clip (F, 3, H, W). Sound is mono float32 (N,) in -1..1."""

from __future__ import annotations

import contextlib
import os
import stat
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import CoDiError
from .files import whole_file

MAX_SECONDS = 600.0
"""Longest sound or clip taken as a prompt. A prompt becomes one embedding: beyond minutes it says nothing in particular."""

_FORMATS = (
    "wav,w64,aiff,au,caf,flac,mp3,ogg,aac,ac3,amr,wv,mov,mp4,m4a,matroska,webm,avi,mpegts,mpeg,flv,asf,"
    "gif,apng,image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe"
)
"""Containers that are opened. Others are not media (the library draws text files as pictures) or lead to other files (playlists)."""

_KINDS = {
    "image": "a picture (png, jpg, gif, webp)",
    "audio": "a sound file (wav, mp3, flac, ogg) or a clip with sound",
    "video": "a clip (mp4, webm, mov, gif)",
}


def read_image(path: str | Path) -> Tensor:
    """First frame of a picture file, upright, transparency laid on white: (3, H, W). Raises CoDiError naming file and formats."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    _must_exist(path, "image")
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode[0] in "IF":  # Pillow would cut greys of more than 8 bits at 255 instead of scaling them
                picture = Image.fromarray(_grey_bytes(np.asarray(picture, dtype=np.float32), picture.mode))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            pixels = np.array(picture.convert("RGB"))  # (H, W, 3)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, "image", error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255  # (3, H, W)


def read_audio(path: str | Path) -> tuple[Tensor, int]:
    """Sound of a file, channels averaged: ((N,), sample rate).

    Raises CoDiError where the file has no sound, is damaged, or is longer than MAX_SECONDS (nothing is decoded then)."""
    import av

    blocks: list[np.ndarray] = []
    with _opened(path, "audio") as file:
        stream = file.streams.audio[0]
        _check_length(path, file, stream)
        rate = int(stream.rate)
        to_float = av.AudioResampler(format="fltp")  # channels stay apart: its own mix to mono is louder than their mean
        samples = 0
        for frame in file.decode(stream):
            for block in to_float.resample(frame):
                blocks.append(block.to_ndarray().mean(axis=0))  # (channels, n) -> (n,)
                samples += blocks[-1].size
            if samples > MAX_SECONDS * rate:  # headers of streams may not tell their length
                raise _too_long(path, samples / rate)
    if not sum(block.size for block in blocks):
        raise CoDiError(f"{path} holds no sound: its audio stream is empty. Give {_KINDS['audio']}")
    return torch.from_numpy(np.concatenate(blocks)).float(), rate  # (N,)


def read_video(path: str | Path, frames: int) -> Tensor:
    """`frames` frames spread evenly over a clip (all of a shorter one): (F, 3, H, W), 1 <= F <= frames.

    Raises CoDiError where the file has no pictures, is damaged, or is longer than MAX_SECONDS."""
    with _opened(path, "video") as file:
        _check_length(path, file, file.streams.video[0])
        total = sum(1 for packet in file.demux(file.streams.video[0]) if packet.size)
    count = max(1, min(frames, total))
    wanted = {(2 * i + 1) * total // (2 * count) for i in range(count)}  # the middles of `count` equal parts
    picked: list[Tensor] = []
    with _opened(path, "video") as file:
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        for index, frame in enumerate(file.decode(stream)):
            if index in wanted:
                picked.append(_pixels(frame))
    if not picked:
        raise CoDiError(f"{path} holds no picture that can be decoded. Give {_KINDS['video']}")
    return torch.stack(picked)  # (F, 3, H, W)


def write_png(path: str | Path, picture: Tensor) -> None:
    """(3, H, W) in 0..1 -> an 8-bit PNG."""
    from PIL import Image

    with whole_file(path) as temporary:
        Image.fromarray(_bytes(picture).permute(1, 2, 0).numpy()).save(temporary, format="PNG")


def write_wav(path: str | Path, sound: Tensor, sample_rate: int) -> None:
    """(N,) in -1..1 -> mono 16-bit PCM. What was read from such a file is written to the bit."""
    samples = (sound.detach().float().cpu() * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()
    with whole_file(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())


def write_mp4(path: str | Path, frames: Tensor, frame_rate: float, sound: Tensor | None = None, sample_rate: int = 0) -> None:
    """(F, 3, H, W) in 0..1, H and W even -> H.264 (yuv420p, BT.709, nearly lossless) with AAC sound, if any, cut to the clip's length.

    Plays in every browser; flat colours come back within about 2/255."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    if frames.shape[-1] % 2 or frames.shape[-2] % 2:
        raise CoDiError(f"a clip of {frames.shape[-1]}x{frames.shape[-2]} pixels cannot be written as mp4: width and height must be even")
    rate = Fraction(frame_rate).limit_denominator(1000)
    with whole_file(path) as temporary, av.open(str(temporary), "w", options={"movflags": "faststart"}) as file:
        video: Any = file.add_stream("libx264", rate=rate, options={"crf": "6", "preset": "medium"})
        video.height, video.width = frames.shape[-2:]
        video.pix_fmt = "yuv420p"
        context = video.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = ColorRange.MPEG, 1, 1, 1  # 1 = BT.709
        audio: Any = file.add_stream("aac", rate=sample_rate, layout="mono", bit_rate=6 * sample_rate) if sound is not None else None
        for picture in _bytes(frames).permute(0, 2, 3, 1).numpy():  # (H, W, 3)
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            file.mux(video.encode(rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        file.mux(video.encode(None))
        if sound is not None:
            length = round(len(frames) / rate * sample_rate)
            samples = sound.detach().float().cpu().clamp(-1, 1)[None, :length].numpy()  # (1, N)
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = sample_rate, 0, Fraction(1, sample_rate)
            file.mux(audio.encode(block))
            file.mux(audio.encode(None))


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def _grey_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Greys of more than 8 bits -> uint8. 32-bit modes do not say what white is: 1, 255 or 65535, the first that none exceeds."""
    brightest = float(np.nanmax(values, initial=0.0))
    if mode.startswith("I;16") or brightest > 255:
        white = 65535.0
    else:
        white = 1.0 if mode == "F" and brightest <= 1 else 255.0
    return (np.nan_to_num(values).clip(0, white) * (255 / white)).astype(np.uint8)


def _pixels(frame: Any) -> Tensor:
    """Decoded frame -> (3, H, W), turned as the camera's rotation mark says."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).float() / 255  # (3, H, W)
    return torch.rot90(pixels, k=round(frame.rotation / 90) % 4, dims=(1, 2))


def _must_exist(path: str | Path, kind: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = "no file" if isinstance(error, FileNotFoundError) else f"no readable file ({getattr(error, 'strerror', None) or error})"
        name = str(path) if len(str(path)) < 300 else f"{str(path)[:300]}..."
        raise CoDiError(f"{reason} at {name or repr(name)}: give {_KINDS[kind]}") from error
    if not stat.S_ISREG(mode):
        raise CoDiError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}: give {_KINDS[kind]}")


@contextlib.contextmanager
def _opened(path: str | Path, kind: str) -> Iterator[Any]:
    """An open container that has a stream of the kind; errors of the decoder inside the block become CoDiError."""
    import av

    _must_exist(path, kind)
    try:
        with av.open(str(path), options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"}) as file:
            if not getattr(file.streams, kind):
                held = ", ".join(sorted({stream.type for stream in file.streams})) or "no"
                raise CoDiError(f"{path} has {held} streams but no {kind}: give {_KINDS[kind]}")
            yield file
    except av.error.FFmpegError as error:
        raise _unreadable(path, kind, error) from error


def _unreadable(path: str | Path, kind: str, error: Exception) -> CoDiError:
    reason = getattr(error, "strerror", None) or str(error)
    return CoDiError(f"{path} cannot be read as {kind} ({reason}): it is damaged, cut off or of another kind. Give {_KINDS[kind]}")


def _check_length(path: str | Path, file: Any, stream: Any) -> None:
    seconds = 0.0
    if file.duration:
        seconds = file.duration / 1_000_000
    elif stream.duration:
        seconds = float(stream.duration * stream.time_base)
    if seconds > MAX_SECONDS:
        raise _too_long(path, seconds)


def _too_long(path: str | Path, seconds: float) -> CoDiError:
    return CoDiError(f"{path} is {seconds:.0f} s long; a prompt may have {MAX_SECONDS:.0f} s at most. Cut out the part that matters")

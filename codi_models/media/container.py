"""Containers of video and audio: opened safely, with errors that say what is wrong, and their streams by time."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from ..errors import CoDiError
from .limits import Limits
from .values import Progress

Source = str | Path | BinaryIO
"""A file by its name, or open and seekable."""

FORMATS = "wav,w64,aiff,au,caf,flac,mp3,ogg,aac,ac3,eac3,amr,wv,mov,mp4,m4a,matroska,webm,avi,mpegts,mpeg,flv,asf"
"""Containers that are opened. Others are not media (the library draws text files as pictures) or lead to other files (playlists)."""

KINDS = {
    "image": "an image (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF)",
    "audio": "an audio file (wav, mp3, flac, ogg) or a video with sound",
    "video": "a video (mp4, webm, mov, gif)",
}
GAP = 0.1  # seconds; smaller steps between the times of audio packets are rounding
THREADS = 4  # of a decoder: each holds frames


def is_source(value: object) -> TypeGuard[Source]:
    """Whether a value is a file to read."""
    return isinstance(value, (str, Path)) or hasattr(value, "read")


def name_of(source: Source) -> str:
    """How errors call a source."""
    name = str(source) if isinstance(source, (str, Path)) else getattr(source, "name", None) or "the file in memory"
    return str(name) if len(str(name)) < 300 else f"{str(name)[:300]}..."


def must_exist(source: Source, kind: str) -> None:
    """Raises CoDiError for a name of no regular file: a pipe would wait for a writer for ever."""
    if not isinstance(source, (str, Path)):
        source.seek(0)
        return
    try:
        mode = os.stat(source).st_mode
    except (OSError, ValueError) as error:
        reason = "no file" if isinstance(error, FileNotFoundError) else f"no readable file ({getattr(error, 'strerror', None) or error})"
        raise CoDiError(f"{reason} at {name_of(source) or repr('')}: give {KINDS[kind]}") from error
    if not stat.S_ISREG(mode):
        raise CoDiError(f"{source} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}: give {KINDS[kind]}")


def unreadable(source: Source, kind: str, error: object) -> CoDiError:
    """The error to raise for a file that is damaged or of another kind."""
    reason = getattr(error, "strerror", None) or str(error)
    return CoDiError(
        f"{name_of(source)} cannot be read as {kind} ({reason}): it is damaged, cut off or of another kind. Give {KINDS[kind]}"
    )


class Track:
    """One stream of an open container; times in seconds from the beginning of the file."""

    def __init__(self, source: Source, kind: str, container: Any, stream: Any, limits: Limits) -> None:
        self.source, self.kind, self.container, self.stream, self.limits = source, kind, container, stream, limits
        self.origin = max(0, container.start_time or 0) / 1_000_000  # transport streams begin anywhere
        self.base = float(stream.time_base)
        rate = stream.average_rate or stream.guessed_rate if kind == "video" else 0
        self.nominal = 1 / float(rate) if rate and 0.1 <= rate <= 1000 else 1 / 25  # seconds of a frame that does not say
        self.passed = 0  # frames that this reading went through
        self._lasting: dict[int, int] = {}  # of packets by time, whose frames have not come yet: those of PyAV 14 do not know themselves
        self.decoder = _alpha_decoder(stream, limits)

    @property
    def told(self) -> float | None:
        """Length that the headers tell, in seconds."""
        if self.stream.duration and self.stream.duration > 0:
            return self.stream.duration * self.base
        return self.container.duration / 1_000_000 if (self.container.duration or 0) > 0 else None

    def scanned(self, progress: Progress) -> float:
        """End of the stream by the times of its packets, of which none is decoded."""
        end = clock = 0.0
        size = max(1, self.container.size)
        for packet in self.container.demux(self.stream):
            if not packet.size or packet.is_discard:
                continue
            self.count(1)
            lasts = (packet.duration or 0) * self.base
            lasts = lasts if lasts > 0 or self.kind == "audio" else self.nominal
            begins = clock if packet.pts is None else packet.pts * self.base - self.origin
            clock = begins + lasts
            end = max(end, clock)
            progress(min(1.0, (packet.pos or 0) / size))
        self.seek(0.0)
        self.passed = 0
        return end

    def seek(self, seconds: float) -> None:
        """To the last key frame at or before a time; to the beginning for 0, and where the container cannot tell."""
        import av

        self._lasting.clear()
        if self.decoder is not None and self.decoder.is_open:
            self.decoder.flush_buffers()
        try:
            if seconds > 0:
                self.container.seek(int((seconds + self.origin) / self.base), stream=self.stream)
                return
        except (av.error.FFmpegError, OverflowError):
            pass
        self.container.seek(0)

    def decoded(self) -> Iterator[Any]:
        """Frames from here on. Packets that cannot be decoded are passed over, as players do, while they are fewer than the others; so
        are those before the first frame, as after a cut."""
        import av

        good = bad = 0
        for packet in self.container.demux(self.stream):
            if self.kind == "video" and packet.pts is not None and packet.duration:
                self._lasting[packet.pts] = packet.duration
            try:
                frames = packet.decode() if self.decoder is None else self.decoder.decode(packet if packet.size else None)
            except av.error.FFmpegError:
                bad += good > 0
                if bad > good:
                    raise
                continue
            for frame in frames:
                good += 1
                self.count(1)
                yield frame

    def lasts(self, frame: Any) -> float:
        """Seconds for which a decoded frame is shown by what its packet says, or usually, where that says nothing or nonsense."""
        told = self._lasting.pop(frame.pts, 0) if frame.pts is not None else 0
        seconds = (getattr(frame, "duration", None) or told) * self.base
        return seconds if 0 < seconds < 3600 else self.nominal

    def count(self, frames: int) -> None:
        """Raises CoDiError where the reading has gone through more frames than the limit."""
        self.passed += frames
        if self.kind == "video":
            self.limits.check("frames", self.passed, name_of(self.source))


@contextlib.contextmanager
def opened(source: Source, kind: str) -> Iterator[Track]:
    """The stream of a kind in a container. Errors of the decoder inside the block become CoDiError."""
    import av

    must_exist(source, kind)
    limits = Limits.current()
    # A name after "file:" is never taken for another protocol; decoders look at sizes before they make room.
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "max_pixels": str(limits.pixels)}
    try:
        with av.open(f"file:{source}" if isinstance(source, (str, Path)) else source, options=options) as container:
            yield Track(source, kind, container, _stream(source, kind, container, limits), limits)
    except av.error.FFmpegError as error:
        raise unreadable(source, kind, error) from error
    except (ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, CoDiError):
            raise
        raise unreadable(source, kind, error) from error


def _stream(source: Source, kind: str, container: Any, limits: Limits) -> Any:
    from av.stream import Disposition

    of_kind = [s for s in getattr(container.streams, kind) if not s.disposition & Disposition.attached_pic]
    decodable = [s for s in of_kind if s.codec_context is not None]
    if not decodable:
        held = ", ".join(sorted({stream.type for stream in container.streams})) or "no"
        lack = f"its {kind} has a codec that is not known here" if of_kind else f"it has {held} streams but no {kind}"
        raise CoDiError(f"{name_of(source)}: {lack}; give {KINDS[kind]}")
    stream = next((s for s in decodable if s.disposition & Disposition.default), decodable[0])
    if kind == "video":
        limits.check("pixels", stream.codec_context.width * stream.codec_context.height, name_of(source))
        stream.codec_context.options = {"max_pixels": str(limits.pixels)}
        stream.thread_type, stream.codec_context.thread_count = "AUTO", min(THREADS, os.cpu_count() or 1)
    return stream


def _alpha_decoder(stream: Any, limits: Limits) -> Any:
    """The decoder of VP8 and VP9 that reads transparency, where the stream has it: the usual ones pass over it."""
    import av

    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return None
    decoder = av.CodecContext.create(name, "r")
    decoder.options = {"max_pixels": str(limits.pixels)}
    return decoder


def audio_seconds(source: Source, progress: Progress = lambda _: None) -> float:
    """Length of a file's audio as its headers tell it, or by its packets. Raises CoDiError as `read_audio` does."""
    with opened(source, "audio") as track:
        return track.told or track.scanned(progress)

"""Images, video and audio in files and in memory: opened, cut by time, resampled, fitted and written.

Pixels are float32 in 0..1, channels first: an image (3, H, W), video (F, 3, H, W). Audio is mono float32 (N,) in -1..1. Times are
seconds from the beginning of the file: what its video and its audio show at one time belongs together."""

from .audio import read_audio
from .container import Source, audio_seconds, is_source, name_of
from .fitting import fill, rgb
from .lengths import LONGER_AUDIO, fit_lengths
from .limits import Limits
from .resampling import SAMPLE_RATES, resample
from .stills import read_image
from .values import Audio, Fit, Progress, Span, Video, frames_at_rate, frames_spread, moments_at_rate, partly
from .video import read_video, video_seconds
from .writing import allowed_rate, write_mp4, write_png, write_wav

__all__ = [
    "LONGER_AUDIO",
    "SAMPLE_RATES",
    "Audio",
    "Fit",
    "Limits",
    "Progress",
    "Source",
    "Span",
    "Video",
    "allowed_rate",
    "audio_seconds",
    "fill",
    "fit_lengths",
    "frames_at_rate",
    "frames_spread",
    "is_source",
    "moments_at_rate",
    "name_of",
    "partly",
    "read_audio",
    "read_image",
    "read_video",
    "resample",
    "rgb",
    "video_seconds",
    "write_mp4",
    "write_png",
    "write_wav",
]

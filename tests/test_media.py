"""Files in and out: what is written is read back, and what cannot be read is named."""

import json
import os
import sys
import wave
from fractions import Fraction

import numpy as np
import pytest
import torch
from codi.codi_models import media
from codi.codi_models.errors import CoDiError
from codi.codi_models.files import write_text
from codi.codi_models.media import container
from PIL import Image

COLOURS = torch.tensor(
    [[0.90, 0.15, 0.15], [0.95, 0.85, 0.15], [0.15, 0.75, 0.25], [0.15, 0.80, 0.90], [0.20, 0.30, 0.95], [0.90, 0.25, 0.85]]
)


def coloured_clip():
    """(6, 3, 64, 64): a square of another colour, further right, in each frame, on dark grey."""
    clip = torch.full((6, 3, 64, 64), 0.1)
    for i, colour in enumerate(COLOURS):
        clip[i, :, 20:40, 5 * i + 4 : 5 * i + 24] = colour[:, None, None]
    return clip


def tone(seconds=0.96, rate=16000, frequency=440.0):
    return 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(round(seconds * rate)) / rate)


def test_png_round_trip_is_exact_to_8_bits(tmp_path):
    picture = torch.rand(3, 24, 40)
    media.write_png(tmp_path / "a.png", picture)
    assert torch.allclose(media.read_image(tmp_path / "a.png"), picture, atol=0.5 / 255 + 1e-6)


def test_picture_kinds(tmp_path):
    red = np.zeros((10, 20, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "a.jpg", exif=_exif_turned())
    assert media.read_image(tmp_path / "a.jpg").shape == (3, 20, 10)  # the camera lay on its side
    frames = [Image.fromarray(red), Image.fromarray(red[..., ::-1].copy())]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert torch.equal(media.read_image(tmp_path / "a.gif")[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert media.read_video(tmp_path / "a.gif", 8).frames.shape == (2, 3, 10, 20)
    Image.fromarray(np.dstack([red, np.zeros((10, 20), np.uint8)])).save(tmp_path / "clear.png")
    assert media.read_image(tmp_path / "clear.png").min() == 1.0  # fully transparent: white
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "grey16.png")
    assert media.read_image(tmp_path / "grey16.png").mean() == pytest.approx(0.5, abs=0.01)


def _exif_turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    return exif


def test_wav_is_16_bit_pcm_and_round_trips(tmp_path):
    sound = tone()
    media.write_wav(tmp_path / "a.wav", sound, 16000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 16000, len(sound))
    back, rate = media.read_audio(tmp_path / "a.wav")
    assert rate == 16000 and back.shape == sound.shape and (back - sound).abs().max() < 1e-4


def test_stereo_is_averaged(tmp_path):
    samples = np.zeros((1000, 2), "<i2")
    samples[:, 0] = 16384
    with wave.open(str(tmp_path / "stereo.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes(samples.tobytes())
    sound, rate = media.read_audio(tmp_path / "stereo.wav")
    assert rate == 22050 and sound.shape == (1000,) and sound.mean() == pytest.approx(0.25, abs=1e-3)


def test_mp4_keeps_frames_colours_and_sound(tmp_path):
    clip, sound = coloured_clip(), tone()
    media.write_mp4(tmp_path / "a.mp4", clip, 6.25, sound, 16000)
    frames = media.read_video(tmp_path / "a.mp4", 8).frames
    assert frames.shape == clip.shape
    for i, colour in enumerate(COLOURS):
        inside = frames[i, :, 22:38, 5 * i + 6 : 5 * i + 22].mean(dim=(1, 2))
        assert (inside - colour).abs().max() < 3 / 255
    back, rate = media.read_audio(tmp_path / "a.mp4")
    spectrum = torch.fft.rfft(back[4000:12000]).abs()
    assert rate == 16000 and spectrum.argmax() * 2 == 440 and back.abs().max() == pytest.approx(0.5, abs=0.05)
    assert len(back) / rate == pytest.approx(0.96, abs=0.13)  # whole AAC packets


@pytest.mark.parametrize("longer_audio", media.LONGER_AUDIO)
@pytest.mark.parametrize(("rate", "frames", "seconds"), [(4.0, 8, 10.24), (6.25, 8, 2.0), (4.0, 8, 2.04), (25.0, 50, 1.0), (29.97, 7, 0.9)])
def test_audio_of_another_length_than_its_video(longer_audio, rate, frames, seconds):
    clip, sound = torch.arange(float(frames)), torch.rand(2, round(seconds * 16000))
    made, track, line = media.fit_lengths(clip, rate, sound, 16000, longer_audio)
    longer = seconds > frames / rate + 0.05
    assert bool(line) == (longer and longer_audio == "cut")
    assert torch.equal(made[:frames], clip) and torch.equal(track, sound[:, : track.shape[1]])
    if not longer or longer_audio == "cut":
        assert len(made) == frames and track.shape[1] == min(sound.shape[1], round(frames / rate * 16000))
    else:
        assert track.shape == sound.shape and seconds <= len(made) / rate < seconds + 1 / rate
        expected = [i % frames for i in range(len(made))] if longer_audio == "loop" else [min(i, frames - 1) for i in range(len(made))]
        assert made.tolist() == expected
    if line:
        assert f"{frames / rate:.2f} of {seconds:.2f} s" in line


@pytest.mark.parametrize(("longer_audio", "seconds"), [("cut", 0.96), ("loop", 4.0), ("hold", 4.0)])
def test_audio_longer_than_the_video_in_an_mp4(tmp_path, longer_audio, seconds):
    said: list[str] = []
    media.write_mp4(tmp_path / "a.mp4", coloured_clip(), 6.25, tone(seconds=4.0), 16000, longer_audio=longer_audio, note=said.append)
    back, rate = media.read_audio(tmp_path / "a.mp4")
    assert len(back) / rate == pytest.approx(seconds, abs=0.14) and len(said) == (longer_audio == "cut")
    assert media.video_seconds(tmp_path / "a.mp4") == pytest.approx(seconds, abs=0.17)
    with pytest.raises(CoDiError, match="longer_audio 'stretch' is unknown: give one of cut, loop, hold"):
        media.write_mp4(tmp_path / "b.mp4", coloured_clip(), 6.25, tone(), 16000, longer_audio="stretch")
    assert not (tmp_path / "b.mp4").exists()


def test_frames_are_spread_over_a_long_clip(tmp_path):
    levels = torch.linspace(0, 1, 40)
    media.write_mp4(tmp_path / "a.mp4", levels[:, None, None, None].expand(40, 3, 32, 32), 25)
    frames = media.read_video(tmp_path / "a.mp4", 4).frames
    assert torch.allclose(frames.mean(dim=(1, 2, 3)), levels[[5, 15, 25, 35]], atol=0.02)
    assert media.read_video(tmp_path / "a.mp4", 1).frames.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
@pytest.mark.parametrize("content", ["missing", "folder", "empty", "text", "cut", "other", "playlist"])
def test_unusable_files_are_named_with_what_is_accepted(tmp_path, kind, content):
    read = {"image": media.read_image, "audio": media.read_audio, "video": lambda p: media.read_video(p, 8)}[kind]
    path = tmp_path / f"thing.{content}"
    if content == "folder":
        path.mkdir()
    elif content == "empty":
        path.write_bytes(b"")
    elif content == "text":
        path = path.with_suffix(".txt")  # the name by which the library takes it for text art
        path.write_text("a red circle bounces twice, " * 50)
    elif content == "playlist":
        media.write_mp4(tmp_path / "whole.mp4", coloured_clip(), 6.25, tone(), 16000)
        path = tmp_path / "list.m3u8"
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n")
    elif content == "cut":
        media.write_mp4(tmp_path / "whole.mp4", coloured_clip(), 6.25)
        path.write_bytes((tmp_path / "whole.mp4").read_bytes()[:100])
    elif content == "other" and kind == "audio":
        media.write_mp4(path.with_suffix(".mp4"), coloured_clip(), 6.25)  # a clip without sound
        path = path.with_suffix(".mp4")
    elif content == "other":
        media.write_wav(path, tone(), 16000)
    with pytest.raises(CoDiError) as error:
        read(path)
    assert path.name in str(error.value) and "give" in str(error.value).lower()


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_nothing_is_remembered_of_packets_that_were_read(tmp_path, kind):
    path = tmp_path / "clip.mp4"
    media.write_mp4(path, torch.rand(24, 3, 64, 64), 8.0, torch.rand(48000) - 0.5, 16000)
    with container.opened(path, kind) as track:
        most = count = 0
        for frame in track.decoded():
            seconds = track.lasts(frame) if kind == "video" else track.nominal
            count, most = count + 1, max(most, len(track._lasting))
            assert seconds > 0
        assert count >= 24 and most <= (8 if kind == "video" else 0) and not track._lasting  # as many as a decoder holds back


def test_a_three_hour_wav_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "long.wav"
    media.write_wav(path, tone(0.1, 8000), 8000)
    header = bytearray(path.read_bytes()[:44])
    size = 3 * 3600 * 8000 * 2
    header[4:8], header[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(44 + size)  # sparse: takes no room
    with pytest.raises(CoDiError, match="long.wav has 10800 s, at most 600 are read at once.*CODI_MAX_SECONDS"):
        media.read_audio(path)


def test_odd_sizes_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(CoDiError, match="15x15"):
        media.write_mp4(tmp_path / "odd.mp4", torch.rand(2, 3, 15, 15), 6.25)
    assert list(tmp_path.iterdir()) == []


def wav(path, bits, channels, rate, samples=4000):
    """A sine of amplitude 0.5 in all channels, as whole numbers of 8, 16, 24 or 32 bits or as 32-bit floats."""
    import av

    codec = {8: "pcm_u8", 16: "pcm_s16le", 24: "pcm_s24le", 32: "pcm_s32le", "float": "pcm_f32le"}[bits]
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    sine = 0.5 * np.sin(np.arange(samples) / 10, dtype=np.float32)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.tile(sine, (channels, 1)), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for block in av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate).resample(frame):
            file.mux(stream.encode(block))
        file.mux(stream.encode(None))
    return torch.from_numpy(sine)


@pytest.mark.parametrize("bits, channels, rate", [(8, 1, 8000), (16, 6, 48000), (24, 2, 96000), (32, 1, 44100), ("float", 2, 22050)])
def test_wav_of_every_kind(tmp_path, bits, channels, rate):
    sine = wav(tmp_path / "a.wav", bits, channels, rate)
    sound, found = media.read_audio(tmp_path / "a.wav")
    assert found == rate and sound.shape == sine.shape
    assert (sound - sine).abs().max() < (0.02 if bits == 8 else 1e-3)


@pytest.mark.parametrize("name, codec", [
    ("a.mp3", "libmp3lame"), ("a.flac", "flac"), ("a.ogg", "libopus"), ("a.m4a", "aac"), ("a.aiff", "pcm_s16be"), ("a.caf", "pcm_s16be"),
    ("a.au", "pcm_s16be"),
])  # fmt: skip
def test_sound_files(tmp_path, name, codec):
    import av

    rate, path = 48000, tmp_path / name
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo")
        sine = np.tile(0.5 * np.sin(2 * np.pi * 480 * np.arange(rate // 2) / rate, dtype=np.float32), (2, 1))
        frame = av.AudioFrame.from_ndarray(sine, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        convert = av.AudioResampler(
            format=stream.codec_context.format, layout="stereo", rate=rate, frame_size=stream.codec_context.frame_size
        )
        for block in [*convert.resample(frame), *convert.resample(None)]:
            file.mux(stream.encode(block))
        file.mux(stream.encode(None))
    sound, found = media.read_audio(path)
    middle = torch.fft.rfft(sound[8000:18000]).abs()
    assert found == rate and middle.argmax() == 100  # 480 Hz in bins of 4.8
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])  # a download that broke off
    try:
        assert 0 < len(media.read_audio(path)[0]) < len(sound)
    except CoDiError as error:
        assert "damaged" in str(error)


def test_picture_modes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    for mode, suffix in (
        ("L", "png"),
        ("LA", "png"),
        ("P", "png"),
        ("1", "png"),
        ("CMYK", "jpg"),
        ("RGB", "tiff"),
        ("RGB", "webp"),
        ("RGB", "bmp"),
    ):
        picture.convert(mode).save(tmp_path / f"{mode}.{suffix}")
        back = media.read_image(tmp_path / f"{mode}.{suffix}")
        assert back.shape == expected.shape and back.mean() == pytest.approx(float(expected.mean()), abs=0.1)
    grey = pixels.astype(np.float32).mean(axis=2)
    for name, values in (("float", grey / 255), ("int", (grey * 257).astype(np.int32)), ("byte", grey.astype(np.int32))):
        Image.fromarray(values).save(tmp_path / f"{name}.tiff")
        assert (media.read_image(tmp_path / f"{name}.tiff")[0] - torch.from_numpy(grey) / 255).abs().max() < 0.01


@pytest.mark.parametrize("name, codec, form, size", [
    ("a.webm", "libvpx-vp9", "yuv420p", (33, 17)), ("a.mkv", "ffv1", "gray", (40, 30)), ("a.avi", "mpeg4", "yuv420p", (64, 48)),
    ("a.mp4", "libx264", "yuv444p", (33, 17)), ("ten.mp4", "libx265", "yuv420p10le", (64, 48)), ("one.mp4", "libx264", "yuv420p", (64, 48)),
])  # fmt: skip
def test_clips_of_other_programs_with_frames_at_uneven_times(tmp_path, name, codec, form, size):
    import av

    count = 1 if name == "one.mp4" else 12
    with av.open(str(tmp_path / name), "w") as file:
        stream = file.add_stream(codec, rate=12, options={"x265-params": "log-level=none"} if codec == "libx265" else {})
        (stream.width, stream.height), stream.pix_fmt, base = size, form, Fraction(1, 1000)
        stream.time_base = stream.codec_context.time_base = base
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 20 * i, np.uint8), format="rgb24").reformat(format=form)
            frame.pts, frame.time_base = 37 * i * i, base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    frames = media.read_video(tmp_path / name, 4, rate=1.0).frames
    assert frames.shape == (min(count, 4), 3, size[1], size[0])
    levels = [3, 6, 8, 9] if count > 1 else [0]  # shown at 0.5, 1.5, 2.5 and 3.5 s
    assert torch.allclose(frames.mean(dim=(1, 2, 3)), torch.tensor(levels) * 20 / 255, atol=0.03)


def test_names_that_cannot_be_looked_up_and_names_that_are_no_utf8(tmp_path):
    for name in ("", "n" * 5000, "\0", str(tmp_path / "a.png" / "b.png")):
        (tmp_path / "a.png").write_bytes(b"x")
        with pytest.raises(CoDiError, match="no (readable )?file"):
            media.read_image(name)
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe.wav")  # would wait for a writer for ever
        with pytest.raises(CoDiError, match="no regular file"):
            media.read_audio(tmp_path / "pipe.wav")
    if sys.platform == "linux":  # others do not take such names
        odd = tmp_path / "odd \udcff.png"
        media.write_png(odd, torch.rand(3, 8, 8))
        assert media.read_image(odd).shape == media.read_video(odd, 1).frames[0].shape == (3, 8, 8)
        write_text(tmp_path / "names.json", json.dumps([str(odd)], ensure_ascii=False))
        assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == [str(odd)]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read everything")
@pytest.mark.parametrize("read", [media.read_image, media.read_audio])
def test_files_that_may_not_be_read(tmp_path, read):
    media.write_png(tmp_path / "a.png", torch.rand(3, 8, 8))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(CoDiError, match="a.png cannot be read"):
        read(tmp_path / "a.png")


def test_a_decoder_that_pillow_lacks_takes_no_other_with_it(tmp_path, monkeypatch):
    """AVIF came with a later version: pictures and videos, which are looked at as pictures first, are read without it."""
    media.write_png(tmp_path / "a.png", torch.rand(3, 16, 16))
    media.write_mp4(tmp_path / "a.mp4", torch.rand(4, 3, 16, 16), 4.0)
    Image.init()
    for name in ("AVIF", "WEBP"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    assert media.read_image(tmp_path / "a.png").shape == (3, 16, 16)
    assert media.read_video(tmp_path / "a.mp4", 4).frames.shape == (4, 3, 16, 16)

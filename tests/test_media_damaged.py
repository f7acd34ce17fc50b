"""Files that lie, expand, change midway or are damaged: read right or refused, with the limit and its setting named."""

from __future__ import annotations

import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from clips import Clip, hits, write
from codi.codi_models import media
from codi.codi_models.bounce_world.judge import judge_audio
from codi.codi_models.errors import CoDiError
from mutated_media import run, write_sound
from PIL import Image

RATE = 6.25


def test_damaged_files_neither_crash_nor_hang_nor_fill_the_memory():
    figures = run(46, seed=1)
    assert figures["wrong"] == [] and figures["read"] + figures["refused"] == 46 * 5 and figures["read"] > 10


@pytest.mark.parametrize("name, value, read, named", [
    ("CODI_MAX_PIXELS", "4000", "video", "a.mp4 has 4096 pixels a frame, at most 4000"),
    ("CODI_MAX_PIXELS", "4000", "image", "a.png has 4096 pixels a frame, at most 4000"),
    ("CODI_MAX_FRAMES", "20", "video", "frames, at most 20"),
    ("CODI_MAX_FRAMES", "2", "gif", "a.gif has 3 frames, at most 2"),
    ("CODI_MAX_SECONDS", "0.2", "long video", "a.mp4 has 3 s, at most 0"),
    ("CODI_MAX_SECONDS", "0.2", "long audio", "a.mp4 has 3 s, at most 0"),
    ("CODI_MAX_SAMPLES", "9000", "audio", "samples, at most 9000"),
    ("CODI_MAX_SECONDS", "many", "audio", "CODI_MAX_SECONDS='many' is no limit"),
    ("CODI_MAX_FRAMES", "-1", "video", "CODI_MAX_FRAMES='-1' is no limit"),
])  # fmt: skip
def test_limits_name_value_limit_and_setting(tmp_path, monkeypatch, name, value, read, named):
    path = write(tmp_path / "a.mp4", Clip(3.0 if "long" in read else 1.28, audio=(0.0, 3.0 if "long" in read else 1.28)))
    for suffix in ("png", "gif"):
        images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
        images[0].save(tmp_path / f"a.{suffix}", save_all=suffix == "gif", append_images=images[1:], duration=100)
    monkeypatch.setenv(name, value)
    with pytest.raises(CoDiError) as error:
        if "video" in read:
            media.read_video(path, 8)
        elif "audio" in read:
            media.read_audio(path)
        elif read == "gif":
            media.read_video(tmp_path / "a.gif", 8)
        else:
            media.read_image(tmp_path / "a.png")
    assert named in str(error.value) and name in str(error.value)


def test_a_png_of_two_gigapixels_is_refused_by_its_header(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 46000, 46000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    for read in (media.read_image, lambda path: media.read_video(path, 2)):
        with pytest.raises(CoDiError, match="bomb.png.*CODI_MAX_PIXELS"):
            read(tmp_path / "bomb.png")


def test_large_images_are_reduced_while_they_are_decoded(tmp_path):
    pixels = np.zeros((4200, 6000, 3), np.uint8)
    pixels[:, 3000:] = 200
    for suffix in ("png", "jpg"):
        Image.fromarray(pixels).save(tmp_path / f"large.{suffix}")
        image = media.read_image(tmp_path / f"large.{suffix}")
        assert image.shape == (3, 2100, 3000)
        assert image[:, :, :1490].max() < 0.05 and (image[:, :, 1510:] - 200 / 255).abs().max() < 0.05


def test_size_and_times_that_change_within_a_file(tmp_path):
    first = write(tmp_path / "1.ts", Clip(audio=None))
    second = write(tmp_path / "2.ts", Clip(audio=None, size=(128, 96)))
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    video = media.read_video(both, 16, rate=RATE)
    assert video.frames.shape[1:] == (3, 64, 64) and len(video.frames) > 8
    fitted = media.read_video(both, 4, fit=lambda frame: media.fill(frame[None], (32, 32))[0])
    assert fitted.frames.shape == (4, 3, 32, 32)


@pytest.mark.parametrize("suffix, codec", [("mp3", "mp3"), ("aac", "aac")])
def test_a_sample_rate_and_channels_that_change_are_followed(tmp_path, suffix, codec):
    video = {"audio_codec": codec, "codec": "libx264"}
    parts = []
    for number, (rate, channels) in enumerate(((44100, 1), (22050, 2))):
        whole = write(tmp_path / f"{number}.mkv", Clip(audio_rate=rate, channels=channels, **video))
        parts.append(_audio_only(whole, tmp_path / f"{number}.{suffix}", suffix))
    both = tmp_path / f"both.{suffix}"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    sound = media.read_audio(both, rate=16000)
    assert len(sound.samples) / 16000 == pytest.approx(2.56, abs=0.25)
    times = judge_audio(sound.samples[None], 16000)["times"][0]
    expected = torch.cat([hits(), hits() + 1.28])
    assert (times[: len(expected)] - expected).abs().max() < 0.12
    assert (times.diff()[: len(expected) - 1] - expected.diff()).abs().max() < 0.12


def _audio_only(source, path, suffix):
    import av

    with av.open(str(source)) as given, av.open(str(path), "w", format="adts" if suffix == "aac" else "mp3") as file:
        stream = file.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(given.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
    return path


def test_a_rotated_video_is_upright(tmp_path):
    path = write(tmp_path / "a.mp4", Clip(size=(64, 96), audio=None))
    upright = media.read_video(path, 8, rate=RATE).frames
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 8
    one = 1 << 16
    content[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    turned = media.read_video(path, 8, rate=RATE).frames
    assert turned.shape == (8, 3, 96, 64) and torch.equal(turned, torch.rot90(upright, -1, dims=(2, 3)))


def test_transparency_is_laid_on_white(tmp_path):
    import av

    for name, codec, form, options in (
        ("a.mkv", "ffv1", "bgra", {}), ("a.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0"}),
        ("b.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0", "b": "2000000"}),
    ):  # fmt: skip
        with av.open(str(tmp_path / name), "w") as file:
            stream = file.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 16, 16, form
            for alpha in (0, 128, 255):
                pixels = np.full((16, 16, 4), (200, 0, 0, alpha), np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
            file.mux(stream.encode(None))
        frames = media.read_video(tmp_path / name, 3).frames
        expected = torch.tensor([[255, 255, 255], [227, 127, 127], [200, 0, 0]]) / 255
        assert torch.allclose(frames[:, :, 0, 0], expected, atol=5 / 255)
    images = [Image.new("RGBA", (8, 8), colour) for colour in ((255, 0, 0, 0), (0, 0, 255, 255))]
    for suffix in ("webp", "gif"):
        images[0].save(tmp_path / f"b.{suffix}", save_all=True, append_images=images[1:], duration=100, disposal=2, lossless=True)
        frames = media.read_video(tmp_path / f"b.{suffix}", 2).frames
        assert frames[0].min() == 1.0 and torch.equal(frames[1][:, 0, 0], torch.tensor([0.0, 0.0, 1.0]))


def test_frames_of_an_image_are_shown_for_their_time(tmp_path):
    images = [Image.new("RGB", (8, 8), (value, value, value)) for value in (0, 60, 120, 180)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 300, 0, 500])
    assert media.video_seconds(tmp_path / "a.gif") == pytest.approx(1.0)
    levels = media.read_video(tmp_path / "a.gif", 10, rate=10.0).frames[:, 0, 0, 0] * 255
    assert levels.round().tolist() == [0, 60, 60, 60, 120, 180, 180, 180, 180, 180]


def test_nothing_runs_a_program_or_reads_another_file(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *a, **k: ran.append(a))
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n")
    whole = write(tmp_path / "whole.mp4", Clip())
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{whole.name}'\n")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{whole.name}\n#EXT-X-ENDLIST\n")
    (tmp_path / "a.mpd").write_text("<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>")
    shutil.copy(whole, tmp_path / "concat:whole.mp4")
    for name in ("a.png", "list.mp4", "list.m3u8", "a.mpd"):
        for read in (media.read_image, media.read_audio, lambda path: media.read_video(path, 2)):
            with pytest.raises(CoDiError, match="cannot be read"):
                read(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert media.read_video("concat:whole.mp4", 2).frames.shape == (2, 3, 64, 64)  # a name, not a protocol
    assert not ran


def test_what_cannot_be_read_right_is_refused(tmp_path):
    sound = write_sound(tmp_path / "nan.wav", "pcm_f32le")
    content = bytearray(sound.read_bytes())
    content[-400:-396] = struct.pack("<f", float("nan"))
    sound.write_bytes(content)
    with pytest.raises(CoDiError, match="nan.wav holds NaN"):
        media.read_audio(sound)
    path = write(tmp_path / "unknown.mp4", Clip())
    content = path.read_bytes()
    for code in (b"avc1", b"avcC", b"mp4a", b"esds"):
        content = content.replace(code, b"zzzz")
    path.write_bytes(content)
    for read in (lambda path: media.read_video(path, 2), media.read_audio):
        with pytest.raises(CoDiError, match="codec that is not known here"):
            read(path)
    cut = write(tmp_path / "cut.mkv", Clip())
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    assert 1 <= len(media.read_video(cut, 8, rate=RATE).frames) <= 8  # as far as it goes


def test_written_files_are_the_same_from_the_same_input(tmp_path):
    frames, sound = torch.rand(6, 3, 48, 64), torch.rand(16000) - 0.5
    for name in ("a.mp4", "b.mp4"):
        media.write_mp4(tmp_path / name, frames, RATE, sound, 16000, metadata={"prompt": {"1": {}}, "comment": "text"})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_resampling_in_blocks_is_resampling_the_whole():
    wave = torch.randn(700_001)
    for rate, target in ((44100, 16000), (8000, 48000), (48000, 47999), (16000, 16000), (96000, 16000)):
        resampler = media.resampling.Resampler(rate, target)
        parts = [resampler.push(part) for part in wave.split(30_011)] + [resampler.flush()]
        whole = media.resample(wave, rate, target)
        made = torch.cat(parts)
        assert abs(len(made) - len(whole)) <= 1
        count = min(len(made), len(whole))
        torch.testing.assert_close(made[:count], whole[:count], rtol=0, atol=1e-5)

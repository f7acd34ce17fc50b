"""VIDEO and AUDIO of the host by time: files stay files, spans are taken alike, and the node says what it left out."""

from __future__ import annotations

import importlib
import io
import json
from types import SimpleNamespace

import pytest
import torch
from clips import Clip, write
from host.graph import base_graph, decoded, node, sampled, shown
from host.session import Failed

RATE = 6.25


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Ten scenes, 12.8 s at 25 frames a second, with their sound."""
    return write(tmp_path_factory.mktemp("clips") / "long.mp4", Clip(12.8, audio=(0.0, 12.8), options={"g": "50"}))


@pytest.fixture
def pack(session, clip, monkeypatch):
    """The pack's host modules, a VIDEO of the file, and whatever would read all of it forbidden."""
    from comfy_api.latest import InputImpl

    def refused(*_):
        raise AssertionError("the whole file was decoded")

    monkeypatch.setattr(InputImpl.VideoFromFile, "get_components", refused)
    video = InputImpl.VideoFromFile(str(clip))
    return SimpleNamespace(frames=session.pack.nodes.host.frames, media=session.pack.codi_models.media, impl=InputImpl, video=video)


def same(frame):
    return frame.float() / 255 if frame.dtype == torch.uint8 else frame


def test_a_file_is_read_by_time_and_not_as_a_whole(pack, clip):
    span = pack.media.Span(2.56, 1.28)
    read = pack.frames.Frames(pack.video, RATE).read(8, rate=RATE, span=span, fit=same)
    expected = pack.media.read_video(clip, 8, rate=RATE, span=span)
    assert torch.equal(read.frames, expected.frames) and read.frames.shape == (8, 3, 64, 64)
    in_memory = pack.impl.VideoFromFile(io.BytesIO(clip.read_bytes()))
    assert torch.equal(pack.frames.Frames(in_memory, RATE).read(8, rate=RATE, span=span, fit=same).frames, expected.frames)


def test_a_trimmed_video_is_its_part(pack, clip):
    trimmed = pack.video.as_trimmed(2.56, 3.84, strict_duration=False) if hasattr(pack.video, "as_trimmed") else None
    if trimmed is None:
        pytest.skip("this host does not trim")
    frames = pack.frames.Frames(trimmed, RATE)
    assert frames.seconds() == pytest.approx(3.84, abs=0.01)
    read = frames.read(40, rate=RATE, span=pack.media.Span(1.28), fit=same)
    expected = pack.media.read_video(clip, 16, rate=RATE, span=pack.media.Span(3.84, 2.56))
    assert read.frames.shape[0] == 16 and torch.equal(read.frames, expected.frames)
    with pytest.raises(Exception, match="behind the end of the part, which is 3.84 s"):
        frames.read(8, rate=RATE, span=pack.media.Span(5.0), fit=same)
    from_end = pack.frames.Frames(pack.impl.VideoFromFile(str(clip), start_time=-1.28), RATE)
    assert torch.equal(
        from_end.read(8, rate=RATE, span=pack.media.Span(), fit=same).frames,
        pack.media.read_video(clip, 8, rate=RATE, span=pack.media.Span(11.52)).frames,
    )


def test_a_video_in_memory_is_taken_by_its_own_rate(pack):
    from comfy_api.latest import Types

    images = torch.linspace(0, 1, 50)[:, None, None, None].expand(50, 8, 8, 3)
    video = pack.impl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=25))
    read = pack.frames.Frames(video, RATE).read(8, rate=RATE, span=pack.media.Span(0.4), fit=same)
    assert torch.equal(read.frames[:, 0, 0, 0], images[12:44:4, 0, 0, 0])
    spread = pack.frames.Frames(video, RATE).read(4, rate=None, span=pack.media.Span(), fit=same)
    assert torch.equal(spread.frames[:, 0, 0, 0], images[[6, 18, 31, 43], 0, 0, 0])
    batch = pack.frames.Frames(images, RATE).read(8, rate=RATE, span=pack.media.Span(), fit=same)
    assert torch.equal(batch.frames[:, 0, 0, 0], images[:8, 0, 0, 0])


def keep(session, clip, **inputs):
    """Runs CoDi Keep Media on the file and its sound; what it said."""
    from comfy_api.latest import InputImpl, io

    class TestVideo(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            outputs = [io.Video.Output(), io.Audio.Output()]
            return io.Schema(node_id="TestVideo", category="test", inputs=[io.String.Input("path")], outputs=outputs)

        @classmethod
        def execute(cls, path):
            sound = session.pack.codi_models.media.read_audio(path)
            return io.NodeOutput(InputImpl.VideoFromFile(path), {"waveform": sound.samples[None, None], "sample_rate": sound.rate})

    session.classes["TestVideo"] = TestVideo
    graph = base_graph("video", "audio", frames=8, seconds=1.28)
    graph["file"] = node("TestVideo", path=str(clip))
    graph["it"] = node("CoDiKeep", codi=["load", 1], latent=["empty", 0], video=["file", 0], audio=["file", 1], **inputs)
    return session.run(shown(graph, ["it", 0])).get("it", {}).get("text"), session.value("it")


def test_video_and_audio_of_one_span_are_kept_and_the_node_says_what_it_left_out(session, pack, clip):
    said, whole = keep(session, clip)
    assert len(said) == 1 and [line.split(" of ")[0] for line in said[0].splitlines()] == ["video: 0.00 to 1.28 s", "audio: 0.00 to 1.28 s"]
    said, part = keep(session, clip, start=2.56, length=1.28)
    assert said is None
    handle = session.value("load", 1)
    encode = session.pack.nodes.host.media.encode_part
    frames = pack.media.read_video(clip, 8, rate=RATE, span=pack.media.Span(2.56, 1.28)).frames.movedim(1, -1)
    with torch.inference_mode():
        expected = encode(handle, "video", frames, (1, 4, 8, 8, 8))
    video, audio = part["samples"].unbind()
    assert torch.allclose(video, expected, atol=1e-5) and not torch.allclose(video, whole["samples"].unbind()[0], atol=1e-2)
    sound = pack.media.read_audio(clip, span=pack.media.Span(2.56, 1.28))
    with torch.inference_mode():
        expected = encode(handle, "audio", {"waveform": sound.samples[None, None], "sample_rate": sound.rate}, (1, 8, 16, 8))
    assert torch.allclose(audio, expected, atol=2e-2)
    assert not part["noise_mask"].unbind()[0].any() and not part["noise_mask"].unbind()[1].any()
    _, short = keep(session, clip, length=0.64)
    masks = short["noise_mask"].unbind()
    assert not masks[0][:, :, :4].any() and masks[0][:, :, 4:].all() and not masks[1][:, :, :8].any() and masks[1][:, :, 8:].all()
    with pytest.raises(Failed, match="start 60 s lies behind"):
        keep(session, clip, start=60.0)


def test_written_video_carries_prompt_and_workflow_and_audio_of_any_rate(session, tmp_path):
    import av
    import folder_paths

    decode = session.pack.nodes.decode
    frames, hidden = torch.rand(8, 64, 64, 3), SimpleNamespace(prompt={"1": {"class_type": "X"}}, extra_pnginfo={"workflow": {"nodes": []}})
    for rate, channels in ((192000, 1), (5512, 2), (16000, 6)):
        sound = {"waveform": torch.rand(1, channels, int(1.28 * rate)) - 0.5, "sample_rate": rate}
        video = decode.video_of(frames, sound, 25 / 4)
        saved = decode.saved_video(video, SimpleNamespace(hidden=hidden))
        path = f"{folder_paths.get_temp_directory()}/{saved.filename}"
        with av.open(path) as file:
            assert json.loads(file.metadata["prompt"]) == hidden.prompt and json.loads(file.metadata["workflow"]) == {"nodes": []}
            picture, sound_stream = file.streams.video[0], file.streams.audio[0]
            assert picture.codec_context.pix_fmt == "yuv420p" and picture.frames == 8 and sound_stream.codec_context.name.startswith("aac")
            assert float(sound_stream.duration * sound_stream.time_base) == pytest.approx(1.28, abs=0.1)
        head = open(path, "rb").read(64 << 10)
        assert head.index(b"moov") < head.index(b"mdat")
        video.save_to(str(tmp_path / f"{rate}.mp4"))  # as the host's Save Video does


def test_reading_ends_where_the_user_interrupts(pack, interrupt_at):
    import comfy.model_management as mm

    calls = interrupt_at(3)
    with pytest.raises(mm.InterruptProcessingException):
        pack.frames.Frames(pack.video, RATE).read(8, rate=None, span=pack.media.Span(), fit=same, progress=pack.frames.working())
    assert len(calls) == 3


@pytest.mark.parametrize("longer_audio", ["cut", "loop", "hold"])
def test_preview_decode_save_and_headless_hold_the_same_of_audio_longer_than_its_video(session, tmp_path, longer_audio):
    """A video of 1.28 s with audio of 2.56 s: one rule for the player on the node, the VIDEO that Save Video gets, and the command line."""
    import av
    import folder_paths

    graph = decoded(sampled("video", "audio", frames=8), "video", "audio")
    graph["empty"]["inputs"]["seconds"] = 2.56
    graph["video"]["inputs"] |= {"audio": ["audio", 0], "longer_audio": longer_audio}
    graph["preview"] = node("CoDiPreview", codi=["load", 1], latent=["sample", 0], longer_audio=longer_audio)
    graph["save"] = node("SaveVideo", video=["preview", 1], filename_prefix="longer", format="auto", codec="auto")
    shown = session.run(graph)
    config = session.value("load", 1).config
    frames = 8 if longer_audio == "cut" else 16
    for name, slot in (("preview", 1), ("video", 1)):
        parts = session.value(name, slot).get_components()
        rate = parts.audio["sample_rate"]
        assert len(parts.images) == frames and parts.audio["waveform"].shape[-1] == round(frames / config.sampling.frame_rate * rate)
        said = shown[name].get("codi_note", [])
        assert len(said) == (longer_audio == "cut") and all("1.28 of 2.56 s" in line for line in said)
    assert session.value("preview", 2)["waveform"].shape[-1] == round(2.56 * rate)  # the audio alone is whole
    core = f"{session.pack.__name__}.codi_models"
    sample = importlib.import_module(f"{core}.pipeline").Sample(
        0, video=session.value("video", 0).movedim(-1, 1), audio=session.value("audio", 0)["waveform"][0, 0],
        frame_rate=config.sampling.frame_rate, sample_rate=rate,
    )  # fmt: skip
    importlib.import_module(f"{core}.cli.outputs").write_sample(sample, tmp_path, "s", raw=False, written=[], longer_audio=longer_audio)
    folders = folder_paths.get_temp_directory(), folder_paths.get_output_directory()
    player, (saved,) = shown["preview"]["video"][0], (shown["save"].get("images") or shown["save"]["video"])
    files = [f"{folders[0]}/{player['filename']}", f"{folders[1]}/{saved['subfolder']}/{saved['filename']}", tmp_path / "s_video.mp4"]
    for path in files:
        with av.open(str(path)) as file:
            assert sum(1 for _ in file.decode(video=0)) == frames, path
        with av.open(str(path)) as file:
            heard = sum(frame.samples for frame in file.decode(audio=0)) / file.streams.audio[0].rate
        assert heard == pytest.approx(frames / config.sampling.frame_rate, abs=0.14), path


def test_a_size_far_from_the_models_own_is_told_on_the_node(session):
    for more, count in (({}, 0), ({"width": 256}, 2), ({"seconds": 0.32, "frames": 20}, 2), ({"width": 96, "height": 32}, 0)):
        graph = base_graph("image", "video", "audio", width=0, height=0, frames=0, seconds=0.0)
        graph["empty"]["inputs"] |= more
        said = session.run(shown(graph, ["empty", 0])).get("empty", {}).get("text", ("",))[0]
        assert len([line for line in said.splitlines() if "tiny was made for" in line]) == (2 * count if "width" in more else count), more
    graph["media"] = node("CoDiMediaToLatent", codi=["load", 1], width=0, height=0, image=["scene", 0])
    graph["scene"] = node("CoDiBounceScene", shape="star", colour="blue", beats="3", seed=2)
    session.run(shown(graph, ["media", 0]))
    assert session.value("media")["samples"].shape[-2:] == (8, 8)

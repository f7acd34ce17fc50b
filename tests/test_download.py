"""The download, against a hub on localhost that does what networks do."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil

import published
import pytest
from codi.codi_models import __main__ as command
from codi.codi_models.autoencoders.tokenizers import BERT_VOCAB, GPT2_MERGES, GPT2_VOCAB, TextTokenizers
from codi.codi_models.bounce_world.world import ALL_CAPTIONS
from codi.codi_models.conversion import download, hub, releases
from codi.codi_models.conversion.install import install, needed_room
from codi.codi_models.conversion.layout import published_file
from codi.codi_models.errors import CoDiError, WriteError
from host.tiny import create_tiny, tiny_config
from unreliable import UnreliableHub

AUDIO, VISION = published_file("audio_denoiser"), published_file("vision_denoiser")
HALF = releases.HALF_FOLDER


@pytest.fixture(scope="module")
def server():
    running = UnreliableHub()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Weights of the tiny configuration, and vocabularies that fit it, as the hub would hold them."""
    folder = tmp_path_factory.mktemp("content")
    files = published.write(folder / "published", tiny_config())
    create_tiny(folder / "tiny")
    weights = {f"{top}{name}": path.read_bytes() for name, path in files.items() for top in ("", HALF)}
    vocabularies = {
        "google-bert/bert-base-cased": {"vocab.txt": (folder / "tiny" / BERT_VOCAB).read_bytes()},
        "openai-community/gpt2": {
            "vocab.json": (folder / "tiny" / GPT2_VOCAB).read_bytes(),
            "merges.txt": (folder / "tiny" / GPT2_MERGES).read_bytes(),
        },
    }
    return {releases.REPOSITORY: weights, **vocabularies}


@pytest.fixture
def remote(server, content, monkeypatch, tmp_path):
    """The server with `content`, whose sizes and hashes are the built-in ones; that of the vision file is not known."""
    server.reset(content)
    monkeypatch.setattr(hub, "_PAUSE_SECONDS", 0.01)
    settings = {"ENDPOINT": server.url, "HF_HUB_DOWNLOAD_TIMEOUT": 0.5}
    monkeypatch.setattr(hub, "_setting", lambda name, variable, default: settings.get(name, default))
    monkeypatch.setattr(hub, "_token", lambda: "secret")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    known = {}
    for path, data in content[releases.REPOSITORY].items():
        stated = (None, None, 1000) if path == HALF + VISION else (len(data), hashlib.sha256(data).hexdigest(), 0)
        known[path] = releases.Release(path, *stated)
    monkeypatch.setattr(download, "RELEASES", known)
    monkeypatch.setattr(download, "COMMIT", "a" * 40)
    vocabularies = {}
    for name, (repository, path, _, _) in download._VOCABULARIES.items():
        data = content[repository][path]
        vocabularies[name] = (repository, path, len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(download, "_VOCABULARIES", vocabularies)
    tiny_config().save(tmp_path / "sizes.json")
    return server


@pytest.fixture
def run(tmp_path, capsys):
    def call(*arguments):
        status = command.main(["download", *arguments, "--config", str(tmp_path / "sizes.json"), "--out", str(tmp_path / "out")])
        told = capsys.readouterr()
        return status, told.out, told.err

    return call


def wanted(out, name=AUDIO):
    return next(w for w in download.wanted_weights(out) if w.path == HALF + name)


def fetched(out, name=AUDIO, **options):
    return download.fetch(wanted(out, name), out, hub.Hub(**options)).read_bytes()


FAULTS = [
    "break", "break break break break break break break", "stall", "no-ranges", "redirect", "500 503 nothing", "break no-ranges",
    "redirect break redirect stall redirect", "no-length", "break 416", "break 500 redirect",
]  # fmt: skip


@pytest.mark.parametrize("faults", FAULTS)
def test_it_arrives_whole_whatever_happens(remote, content, tmp_path, faults):
    remote.faults = faults.split()
    assert fetched(tmp_path / "out") == content[releases.REPOSITORY][HALF + AUDIO]
    assert not remote.faults and not list((tmp_path / "out").rglob("*.part"))
    if faults == "break":
        start = int(remote.ranges[1].removeprefix("bytes=").removesuffix("-"))
        assert 0 <= len(content[releases.REPOSITORY][HALF + AUDIO]) // 2 - start < 1 << 16


def test_a_full_disk_is_one_line_and_what_is_there_is_gone_on_from(remote, content, tmp_path, monkeypatch):
    with monkeypatch.context() as full:
        receive = hub.Hub._receive

        def half(answer, part, start, count):
            answer.iter_content = lambda size: iter([b"half"])
            receive(answer, part, start, count)
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(hub.Hub, "_receive", staticmethod(half))
        with pytest.raises(WriteError, match="cannot write .*part: No space left on device"):
            fetched(tmp_path / "out")
    assert [path.stat().st_size for path in (tmp_path / "out").rglob("*.part")] == [4]
    (next((tmp_path / "out").rglob("*.part"))).write_bytes(content[releases.REPOSITORY][HALF + AUDIO][:4])
    assert fetched(tmp_path / "out") == content[releases.REPOSITORY][HALF + AUDIO] and remote.ranges[-1] == "bytes=4-"


def test_the_token_stays_at_the_hub(remote, tmp_path):
    remote.faults = ["redirect"]
    fetched(tmp_path / "out")
    assert remote.tokens == [["Bearer secret"], [""]]
    fetched(tmp_path / "two", mirror=remote.url)
    assert remote.tokens[0][-1] == ""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong", "has SHA-256"), ("longer", "expected"), ("401", "HF_TOKEN"), ("404", "does not have"), ("500", "status 500"),
        ("nothing", "cannot fetch"),
    ],
)  # fmt: skip
def test_what_stays_wrong_is_told(remote, tmp_path, fault, words):
    remote.always = fault
    with pytest.raises(CoDiError, match=words):
        fetched(tmp_path / "out")
    assert not (tmp_path / "out" / "published" / HALF / AUDIO).exists()
    remote.always = ""
    assert fetched(tmp_path / "out")


def test_an_interrupted_download_goes_on(remote, content, tmp_path):
    data = content[releases.REPOSITORY][HALF + AUDIO]
    remote.faults = ["break"] + ["500"] * 6
    with pytest.raises(CoDiError, match="what was fetched is kept"):
        fetched(tmp_path / "out")
    assert fetched(tmp_path / "out") == data and remote.ranges[-1].startswith("bytes=8")

    def stop(name, done, total):
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.fetch(wanted(tmp_path / "two"), tmp_path / "two", hub.Hub(), stop)
    assert fetched(tmp_path / "two") == data


def test_a_beginning_from_elsewhere_is_replaced(remote, content, tmp_path):
    for beginning in (b"something else", b"x" * 10_000_000):
        file = wanted(tmp_path / "out")
        file.part.parent.mkdir(parents=True, exist_ok=True)
        file.part.write_bytes(beginning)
        assert fetched(tmp_path / "out") == content[releases.REPOSITORY][HALF + AUDIO]
        file.target.unlink()


def test_a_file_of_unknown_hash_is_taken_once_and_held_to_it(remote, content, tmp_path):
    out = tmp_path / "out"
    remote.always = "wrong"
    with pytest.raises(CoDiError, match="has SHA-256"):  # the hub states the hash
        fetched(out, VISION)
    remote.always, remote.commits = "", {}  # a mirror that states nothing
    data = fetched(out, VISION)
    digest = hashlib.sha256(data).hexdigest()
    record = json.loads((out / download.PINS).read_text())
    assert record["files"][f"{releases.REPOSITORY}@{'a' * 40}/{HALF}{VISION}"] == {"size": len(data), "sha256": digest}
    assert wanted(out, VISION).sha256 == digest
    wanted(out, VISION).target.unlink()
    remote.always = "wrong"
    with pytest.raises(CoDiError, match=f"expected {digest}"):
        fetched(out, VISION)


def test_pins_overrule(remote, content, tmp_path):
    out, data = tmp_path / "out", content[releases.REPOSITORY][HALF + AUDIO] + b" "
    remote.files[releases.REPOSITORY][HALF + AUDIO] = data
    with pytest.raises(CoDiError, match="--revision main"):
        fetched(out)
    out.mkdir(exist_ok=True)
    pin = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (out / download.PINS).write_text(json.dumps({"files": {f"{releases.REPOSITORY}@{'a' * 40}/{HALF}{AUDIO}": pin}}))
    assert fetched(out) == data
    (out / download.PINS).write_text(json.dumps({releases.REPOSITORY: "b" * 40}))  # as version 0.3 wrote it
    assert wanted(out).commit == "b" * 40 and wanted(out).sha256 == pin["sha256"]
    (out / download.PINS).write_text("[")
    with pytest.raises(CoDiError, match="is not readable.*delete it"):
        wanted(out)


def test_the_cache_of_the_hubs_client_is_used_offline(remote, content, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_setting", lambda name, variable, default: name == "HF_HUB_OFFLINE" or default)
    with pytest.raises(CoDiError, match="HF_HUB_OFFLINE is set"):
        fetched(tmp_path / "out")
    for repository, files in content.items():
        for path, data in files.items():
            for commit in ("a" * 40, "main"):
                place = tmp_path / "cache" / f"models--{repository.replace('/', '--')}" / "snapshots" / commit / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
    file = wanted(tmp_path / "out")
    path = download.fetch(file, tmp_path / "out", hub.Hub())
    assert path.is_relative_to(tmp_path / "cache") and not remote.asked
    for vocabulary in download.wanted_vocabularies(tmp_path / "out"):
        download.fetch(vocabulary, tmp_path / "out", hub.Hub())
    assert not download.wanted_vocabularies(tmp_path / "out")
    install([file], tmp_path / "out", config=tiny_config())
    assert path.exists() and (tmp_path / "out" / "audio_denoiser.safetensors").exists()


def test_everything_is_fetched_and_converted_file_by_file(remote, run, tmp_path):
    status, out, err = run("codi", "--convert", "--yes")
    folder = tmp_path / "out"
    assert status == 0 and "MB of free disk needed" in out and len(list(folder.glob("*.safetensors"))) == 9, err
    assert not (folder / "published").exists()
    assert TextTokenizers(folder).encode([ALL_CAPTIONS[0]]).shape[1] > 3
    asked = list(remote.asked)
    status, out, _ = run("codi", "--convert", "--yes")
    assert status == 0 and out.count("kept") == 9 and remote.asked == asked  # nothing is fetched for what is converted
    assert run("codi", "--convert", "--yes", "--dtype", "bf16")[0] == 0 and len(remote.asked) == len(asked) + 4


def test_an_interrupted_installation_goes_on(remote, run, tmp_path, monkeypatch):
    begun = []
    real = download.Hub.download

    def until_the_third(self, *arguments, **options):
        begun.append(arguments)
        if len(begun) == 6:  # three vocabularies and two files before
            raise KeyboardInterrupt
        real(self, *arguments, **options)

    monkeypatch.setattr(download.Hub, "download", until_the_third)
    assert run("codi", "--convert", "--yes")[0] == 130
    before = list(remote.asked)
    assert len(before) == 5
    status, out, _ = run("codi", "--convert", "--yes")
    assert status == 0 and len(remote.asked) == 7 and "kept" in out and "written" in out


def test_room_is_reckoned_before_the_first_byte(remote, run, tmp_path, monkeypatch):
    files = download.wanted_weights(tmp_path / "out")
    most = needed_room(files, tmp_path / "out", config=tiny_config())
    total = sum(f.bytes for f in files)
    assert most < total + max(f.bytes for f in files)
    usage = shutil.disk_usage(tmp_path)
    free = [most - 1]
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    with pytest.raises(CoDiError, match="GB are needed: make room"):
        install(files, tmp_path / "out", config=tiny_config())
    assert not remote.asked
    free[0] = 10
    status, _, err = run("tokenizers", "--yes")
    assert status == 2 and "GB are needed" in err and not remote.asked


def test_what_is_there_is_not_fetched_again(remote, run, tmp_path):
    run("codi", "--components", "audio_denoiser", "--yes")
    run("tokenizers", "--yes")
    before = list(remote.asked)
    assert len(before) == 4
    status, out, _ = run("codi", "--components", "audio_denoiser", "--yes")
    assert status == 0 and "(there already)" in out and remote.asked == before and "next: python codi.py convert" in out
    assert run("tokenizers")[0] == 0 and remote.asked == before
    target = wanted(tmp_path / "out").target
    target.write_bytes(target.read_bytes()[:-1] + b"?")
    status, _, err = run("codi", "--components", "audio_denoiser", "--yes")
    assert status == 2 and "has SHA-256" in err and "Move it away" in err and target.exists()


def test_a_revision_is_asked_for(remote, run, tmp_path):
    status, out, _ = run("codi", "--components", "vision_denoiser", "--revision", "other", "--precision", "fp32", "--yes")
    assert status == 0 and remote.asked[-1] == f"{VISION}@{'b' * 40}" and f"{VISION} at bbbbbbbbbbbb" in out
    assert json.loads((tmp_path / "out" / download.PINS).read_text())["commits"] == {releases.REPOSITORY: "b" * 40}
    status, _, err = run("codi", "--revision", "nowhere", "--yes")
    assert status == 2 and "'nowhere'" in err and "check --revision" in err
    del remote.files[releases.REPOSITORY][HALF + AUDIO]
    status, _, err = run("codi", "--revision", "main", "--yes")
    assert status == 2 and f"no {HALF}{AUDIO}; it has" in err
    assert run("codi", "--components", "smell", "--yes")[0] == 2


@pytest.mark.parametrize(("answer", "status", "files"), [("y", 0, 3), ("", 1, 0), ("n", 1, 0), (None, 2, 0)])
def test_nothing_is_fetched_without_a_yes(remote, run, monkeypatch, answer, status, files):
    monkeypatch.setattr("sys.stdin.isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    got, out, err = run("tokenizers")
    assert got == status and len(remote.asked) == files and "MB  to fetch" in out
    assert ("--yes" in err) == (answer is None)


def test_folders_that_cannot_be_filled(remote, run, tmp_path):
    (tmp_path / "out").write_text("")
    status, out, err = run("tokenizers", "--yes")
    assert status == 2 and "out is a file: give a folder" in err and not remote.asked
    (tmp_path / "out").unlink()
    (tmp_path / "out" / BERT_VOCAB).mkdir(parents=True)
    status, _, err = run("tokenizers", "--yes")
    assert status == 2 and f"{BERT_VOCAB} is a folder" in err and not remote.asked
    (tmp_path / "out" / BERT_VOCAB).rmdir()
    (tmp_path / "out" / BERT_VOCAB).write_text("other")
    status, _, err = run("tokenizers", "--yes")
    assert status == 2 and "another vocabulary" in err and (tmp_path / "out" / BERT_VOCAB).read_text() == "other"
    (tmp_path / "out" / BERT_VOCAB).unlink()
    tiny_config().save(tmp_path / "out" / "config.json")
    with pytest.raises(CoDiError, match="do not fit it"):
        download.wanted_vocabularies(tmp_path / "out")


def test_addresses_that_are_none(run):
    status, _, err = run("codi", "--mirror", "/etc", "--yes")
    assert status == 2 and "no address of a hub" in err


def test_nothing_listens(run, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_PAUSE_SECONDS", 0.01)
    tiny_config().save(tmp_path / "sizes.json")
    status, _, err = run("tokenizers", "--mirror", "http://127.0.0.1:9", "--yes")
    assert status == 2 and "cannot fetch" in err and "HF_ENDPOINT" in err
    status, _, err = run("codi", "--mirror", "http://127.0.0.1:9", "--revision", "main", "--yes")
    assert status == 2 and "the list of files of ZinengTang/CoDi" in err

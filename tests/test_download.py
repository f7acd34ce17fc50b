"""The download helper, with the hub's own client against a server of this machine."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import published
import pytest
from codi.codi_models import __main__ as command
from codi.codi_models.autoencoders.tokenizers import BERT_VOCAB, GPT2_MERGES, GPT2_VOCAB, TextTokenizers
from codi.codi_models.bounce_world.world import ALL_CAPTIONS
from codi.codi_models.cli import download as cli
from codi.codi_models.conversion import download
from codi.codi_models.conversion.layout import published_file
from codi.codi_models.errors import CoDiError
from host.tiny import create_tiny, tiny_config

COMMITS = {"main": "a" * 40, "other": "b" * 40}
KNOWN = set(COMMITS.values())
AUDIO = published_file("audio_denoiser")


class Hub:
    """Repositories as path -> bytes; `asked` counts the files sent, by revision."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        parts = request.path.partition("?")[0].strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        repository, revision = "/".join(parts[2:4] if listing else parts[:2]), parts[5 if listing else 3]
        commit = COMMITS.get(revision, revision)
        files = self.files.get(repository, {})
        name = "/".join(parts[4:])
        if commit not in KNOWN or not (listing or name in files):
            request.send_response(404)
            request.send_header("X-Error-Code", "RevisionNotFound" if commit not in KNOWN else "EntryNotFound")
            request.end_headers()
            return
        data, digest = files.get(name, b""), hashlib.sha256(files.get(name, b"")).hexdigest()
        if listing:
            lfs = {path: {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d), "pointerSize": 1} for path, d in files.items()}
            siblings = [{"rfilename": path, "size": len(d), "lfs": lfs[path]} for path, d in files.items()]
            data = json.dumps({"id": repository, "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}).encode()
        elif body:
            self.asked.append(f"{name}@{commit}")
        request.send_response(200)
        for key, value in (("X-Repo-Commit", commit), ("ETag", f'"{digest}"'), ("Content-Length", len(data))):
            request.send_header(key, str(value))
        request.end_headers()
        if body:
            request.wfile.write(data)


@pytest.fixture(scope="module")
def server():
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Weights of the tiny configuration, and vocabularies that fit it, as the hub would hold them."""
    folder = tmp_path_factory.mktemp("content")
    files = published.write(folder / "published", tiny_config())
    create_tiny(folder / "tiny")
    weights = {f"{top}{name}": path.read_bytes() for name, path in files.items() for top in ("", download.HALF_FOLDER)}
    vocabularies = {
        "google-bert/bert-base-cased": {"vocab.txt": (folder / "tiny" / BERT_VOCAB).read_bytes()},
        "openai-community/gpt2": {
            "vocab.json": (folder / "tiny" / GPT2_VOCAB).read_bytes(),
            "merges.txt": (folder / "tiny" / GPT2_MERGES).read_bytes(),
        },
    }
    return {download.REPOSITORY: weights, **vocabularies}


@pytest.fixture
def hub(server, content, monkeypatch):
    """The client speaks to the server, which holds `content`; the vocabularies' built-in hashes are those of `content`."""
    server.files, server.asked = {name: dict(files) for name, files in content.items()}, []
    monkeypatch.setattr(huggingface_hub, "model_info", huggingface_hub.HfApi(endpoint=server.url, token=False).model_info)
    client = functools.partial(huggingface_hub.hf_hub_download, endpoint=server.url, token=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", client)
    known = {}
    for name, (repository, path, _, _) in download._VOCABULARIES.items():
        data = content[repository][path]
        known[name] = (repository, path, len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(download, "_VOCABULARIES", known)
    monkeypatch.setattr(cli, "convert", functools.partial(cli.convert, config=tiny_config()))
    return server


@pytest.fixture
def run(tmp_path, capsys):
    def call(*arguments):
        status = command.main(["download", *arguments, "--out", str(tmp_path / "out")])
        told = capsys.readouterr()
        return status, told.out, told.err

    return call


def test_built_in_vocabularies_are_of_the_official_sizes():
    assert {name: size for name, (_, _, size, _) in download._VOCABULARIES.items()} == {
        BERT_VOCAB: 213450, GPT2_VOCAB: 1042301, GPT2_MERGES: 456318,
    }  # fmt: skip
    assert all(len(digest) == 64 for _, _, _, digest in download._VOCABULARIES.values())


def test_everything_is_fetched_converted_and_pinned(hub, run, tmp_path):
    status, out, _ = run("codi", "--components", "audio_denoiser,text_autoencoder", "--convert", "--yes")
    assert status == 0
    assert f"checkpoints_fp16/{AUDIO} at aaaaaaaaaaaa" in out and "MB  in all" in out
    folder = tmp_path / "out"
    assert {p.stem for p in folder.glob("*.safetensors")} == {"audio_denoiser", "text_autoencoder"}
    assert json.loads((folder / download.PINS).read_text()) == {download.REPOSITORY: "a" * 40}
    assert TextTokenizers(folder).encode([ALL_CAPTIONS[0]]).shape[1] > 3
    COMMITS["main"] = "b" * 40  # the branch moves on; this folder stays where it was
    try:
        assert run("codi", "--components", "vision_denoiser", "--yes")[0] == 0
    finally:
        COMMITS["main"] = "a" * 40
    assert hub.asked[-1] == f"checkpoints_fp16/{published_file('vision_denoiser')}@{'a' * 40}"
    status, out, _ = run("codi", "--components", "vision_denoiser", "--revision", "other", "--precision", "fp32", "--yes")
    assert status == 0 and hub.asked[-1] == f"{published_file('vision_denoiser')}@{'b' * 40}"
    assert json.loads((folder / download.PINS).read_text()) == {download.REPOSITORY: "b" * 40}
    assert f"python -m codi_models convert {folder / download.DOWNLOADS / published_file('vision_denoiser')} --out {folder}" in out


def test_what_is_there_is_not_fetched_again(hub, run, tmp_path):
    run("codi", "--components", "audio_denoiser", "--yes")
    run("tokenizers", "--yes")
    before = list(hub.asked)
    assert len(before) == 4
    status, out, _ = run("codi", "--components", "audio_denoiser", "--yes")
    assert status == 0 and "(there already)" in out and hub.asked == before
    assert run("tokenizers")[0] == 0 and hub.asked == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [BERT_VOCAB, GPT2_MERGES, GPT2_VOCAB, download.PINS, download.DOWNLOADS]
    )


@pytest.mark.parametrize(("answer", "status", "files"), [("y", 0, 3), ("", 1, 0), ("n", 1, 0), (None, 2, 0)])
def test_nothing_is_fetched_without_a_yes(hub, run, monkeypatch, answer, status, files):
    monkeypatch.setattr("sys.stdin.isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    got, out, err = run("tokenizers")
    assert got == status and len(hub.asked) == files and "MB  in all" in out
    assert ("--yes" in err) == (answer is None)


def test_folders_that_cannot_be_filled(hub, run, tmp_path):
    (tmp_path / "out").write_text("")
    status, out, err = run("tokenizers", "--yes")
    assert status == 2 and "out is a file: give a folder" in err and not hub.asked
    (tmp_path / "out").unlink()
    (tmp_path / "out" / BERT_VOCAB).mkdir(parents=True)
    status, _, err = run("tokenizers", "--yes")
    assert status == 2 and f"{BERT_VOCAB} is a folder" in err and not hub.asked
    (tmp_path / "out" / BERT_VOCAB).rmdir()
    (tmp_path / "out" / "download.json").write_text("[")
    status, _, err = run("codi", "--yes")
    assert status == 2 and "download.json is not readable" in err and "delete it" in err and not hub.asked


def test_changed_files_are_refused(hub, run, tmp_path):
    hub.files["openai-community/gpt2"]["merges.txt"] += b"x y\n"
    status, _, err = run("tokenizers", "--yes")
    assert status == 2 and "merges.txt of openai-community/gpt2 has SHA-256" in err
    assert not (tmp_path / "out" / GPT2_MERGES).exists()
    (tmp_path / "out" / BERT_VOCAB).write_text("other")
    status, _, err = run("tokenizers", "--yes")
    assert status == 2 and "another vocabulary" in err and (tmp_path / "out" / BERT_VOCAB).read_text() == "other"


def test_what_the_hub_does_not_have(hub, run):
    status, _, err = run("codi", "--revision", "nowhere", "--yes")
    assert status == 2 and "'nowhere'" in err and "convert" in err
    del hub.files[download.REPOSITORY][f"checkpoints_fp16/{AUDIO}"]
    status, _, err = run("codi", "--yes")
    assert status == 2 and f"no checkpoints_fp16/{AUDIO}; it has" in err
    assert run("codi", "--components", "smell", "--yes")[0] == 2 and not hub.asked


def test_offline(run, monkeypatch, tmp_path):
    def offline(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "model_info", offline)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    status, _, err = run("codi", "--yes")
    assert status == 2 and "no route to host" in err and "list of files of ZinengTang/CoDi" in err and "codi_models convert" in err
    status, _, err = run("tokenizers", "--yes")
    assert status == 2 and "no route to host" in err and f"save it as {tmp_path / 'out' / BERT_VOCAB}" in err


def test_a_model_of_other_sizes_and_a_full_disk(hub, run, monkeypatch, tmp_path):
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=10))
    status, _, err = run("tokenizers", "--yes")
    assert status == 2 and "GB free" in err and not hub.asked
    (tmp_path / "out").mkdir()
    tiny_config().save(tmp_path / "out" / "config.json")
    status, _, err = run("tokenizers", "--yes")
    assert status == 2 and "do not fit it" in err


def test_where_to_put_it(monkeypatch, tmp_path, capsys):
    assert command.main(["download", "tokenizers", "--yes"]) == 2 and "--out" in capsys.readouterr().err
    monkeypatch.setattr(cli, "SHIPPED", tmp_path / "custom_nodes" / "codi" / "weights")
    assert cli._folder(None) == tmp_path / "models" / "codi" / "codi"


def test_missing_vocabularies_name_the_command(tmp_path):
    with pytest.raises(CoDiError, match="download tokenizers --out"):
        TextTokenizers(tmp_path, tiny_config().text_autoencoder)

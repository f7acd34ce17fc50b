"""The official model from inside the graph: the loader's list, the routes and the button."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import time
import urllib.request

import published
import pytest
from codi.codi_models.autoencoders.tokenizers import BERT_VOCAB, GPT2_MERGES, GPT2_VOCAB
from codi.codi_models.conversion import releases
from codi.codi_models.conversion.layout import published_file
from host.browser import open_page
from host.graph import OFFICIAL, node, outputs, shown, template
from host.server import Server
from host.session import Failed
from host.setting import PACK, make_base
from host.tiny import create_tiny, tiny_config
from test_host_browser import assert_apart, shipped
from unreliable import UnreliableHub

AUDIO = published_file("audio_denoiser")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A hub's content of the tiny configuration."""
    folder = tmp_path_factory.mktemp("content")
    files = published.write(folder / "published", tiny_config())
    create_tiny(folder / "tiny")
    read = {name: (folder / "tiny" / name).read_bytes() for name in (BERT_VOCAB, GPT2_VOCAB, GPT2_MERGES)}
    return {
        releases.REPOSITORY: {f"{releases.HALF_FOLDER}{name}": path.read_bytes() for name, path in files.items()},
        "google-bert/bert-base-cased": {"vocab.txt": read[BERT_VOCAB]},
        "openai-community/gpt2": {"vocab.json": read[GPT2_VOCAB], "merges.txt": read[GPT2_MERGES]},
    }


@pytest.fixture(scope="module")
def remote():
    running = UnreliableHub()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def running(host, remote, tmp_path_factory):
    """A host whose hub is the local one."""
    before = {name: os.environ.get(name) for name in ("HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_DOWNLOAD_TIMEOUT")}
    os.environ |= {"HF_ENDPOINT": remote.url, "HF_HUB_CACHE": str(tmp_path_factory.mktemp("cache")), "HF_HUB_DOWNLOAD_TIMEOUT": "3"}
    server = Server(host, make_base(tmp_path_factory.mktemp("install")), PACK)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    yield server
    server.stop()


@pytest.fixture
def official(running, remote, content):
    """The folder that the official model goes to: empty but for the tiny configuration and the hashes of the local files."""
    remote.reset(content)
    folder = running.log_file.parent / "models" / "codi" / "codi"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tiny_config().save(folder / "config.json")
    pins = {
        f"{repository}@{releases.COMMIT if repository == releases.REPOSITORY else 'main'}/{path}":
        {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for repository, files in content.items() for path, data in files.items()
    }  # fmt: skip
    (folder / "download.json").write_text(json.dumps({"files": pins}))
    yield folder
    running.post("/codi/install", {"action": "stop"})
    until(running, lambda state: state["state"] != "running")
    shutil.rmtree(folder, ignore_errors=True)


def until(server, true, seconds=60):
    end = time.monotonic() + seconds
    while not true(state := server.json("/codi/install")):
        assert time.monotonic() < end, state
        time.sleep(0.05)
    return state


def names(server):
    return server.json("/object_info/CoDiLoad")["CoDiLoad"]["input"]["required"]["name"][1]["options"]


def test_the_list_names_what_is_not_installed(running, official):
    shutil.rmtree(official)
    assert "CoDi (official, not installed: 11.5 GB)" in names(running) and "codi" not in names(running)
    state = running.json("/codi/install")
    assert state["state"] == "idle" and len(state["missing"]) == 9 and state["folder"] == str(official)
    assert 11.5e9 < state["download"] < 11.6e9 and 11.5e9 < state["disk"] < 13.7e9 and state["found"] == []
    for name in ("codi", "CoDi (official, not installed: 11.5 GB)"):
        run = running.run({"1": node("CoDiLoad", name=name), "2": node("PreviewAny", source=["1", 0])})
        assert run.end == "refused" and "official model is not installed" in run.error and "Press the button" in run.error
    assert running.json("/codi/install")["state"] == "idle"  # queueing fetches nothing


def test_button_to_picture(running, remote, official):
    """Interrupted, gone on with, converted, loaded and sampled."""
    remote.faults, remote.stall_seconds = ["redirect"] * 4 + ["stall"] * 4, 20.0
    status, state = running.post("/codi/install", {"action": "start"})
    assert status == 200 and state["state"] == "running"
    assert running.post("/codi/install", {"action": "start"})[0] == 409
    until(running, lambda state: remote.asked)
    state = running.json("/codi/install")
    assert state["state"] == "running" and state["total"] > 0 and state["stage"].endswith((".pth", ".txt", ".json"))
    running.post("/codi/install", {"action": "stop"})
    state = until(running, lambda state: state["state"] != "running")
    assert state["state"] == "stopped" and state["missing"] and state["download"] > 0
    remote.faults = []
    running.post("/codi/install", {"action": "start"})
    state = until(running, lambda state: state["state"] != "running")
    assert state["state"] == "done" and not state["missing"], state
    assert not (official / "published").exists() and not [n for n in names(running) if n.startswith("CoDi (")]
    for name in ("codi", "CoDi (official, not installed: 11.5 GB)"):  # graphs saved before go on working
        graph = {"load": node("CoDiLoadJoint", name=name, dtype="auto", **outputs("image"))}
        run = running.run({**graph, "see": node("PreviewAny", source=["load", 1])})
        assert run.end == "execution_success", run.error


def test_errors_are_told(running, remote, official):
    remote.always = "wrong"
    running.post("/codi/install", {"action": "start"})
    state = until(running, lambda state: state["state"] != "running")
    assert state["state"] == "failed" and "SHA-256" in state["error"] and not list(official.glob("*.safetensors"))


def test_files_that_lie_there_are_offered(running, content, official):
    place = official.parent / "published" / "checkpoints_fp16"
    place.mkdir(parents=True)
    try:
        for path, data in content[releases.REPOSITORY].items():
            (place / path.rpartition("/")[2]).write_bytes(data)
        (place / "other.pth").write_bytes(b"x")
        state = running.json("/codi/install")
        assert sorted(f["file"] for f in state["found"]) == sorted(str(p) for p in place.iterdir() if p.name != "other.pth")
        running.post("/codi/install", {"action": "start", "source": "found"})
        state = until(running, lambda state: state["state"] != "running")
        assert state["state"] == "done" and not state["missing"], state
        assert len(list(place.iterdir())) == 5  # what the user put there stays
    finally:
        shutil.rmtree(official.parent / "published")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, b'{"action": "start"}', 403),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"action=start", 403),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, b'{"action": "start"}', 403),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "same-site"}, b'{"action": "start"}', 403),
        ({"Content-Type": "application/json", "Origin": "http://evil.example"}, b'{"action": "start"}', 403),
        ({"Content-Type": "application/json"}, b"[", 400),
        ({"Content-Type": "application/json"}, b"[1]", 400),
        ({"Content-Type": "application/json"}, b'{"action": "start", "source": "/etc/passwd"}', 409),
        ({"Content-Type": "application/json"}, b'{"action": "erase"}', 409),
    ],
)
def test_what_the_route_refuses(running, remote, official, headers, body, status):
    request = urllib.request.Request(f"{running.url}/codi/install", body, headers)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=30)
    assert refusal.value.code == status
    assert running.json("/codi/install")["state"] != "running" and not remote.asked


def test_names_lead_nowhere_outside(session):
    folders = importlib.import_module(f"{session.pack.__name__}.nodes.host.folders")
    for name in ("../..", "/etc", "codi/../../..", "CoDi (official, not installed: ../../etc)"):
        with pytest.raises(ValueError, match="no CoDi model|official model is not installed"):
            folders.model_folder(name)
        with pytest.raises(Failed):
            session.run(shown({"load": node("CoDiLoad", name=name)}, ["load", 0]))


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_the_button_on_the_node(running, remote, official, nodes2):
    remote.faults, remote.stall_seconds = ["redirect"] * 4 + ["stall"] * 40, 20.0

    def late(route):
        """The answer to Cancel reaches the page after the event that tells of the end."""
        answer = route.fetch()
        if route.request.method == "POST" and "stop" in (route.request.post_data or ""):
            until(running, lambda state: state["state"] != "running")
            time.sleep(1)
        route.fulfill(response=answer)

    with open_page(running.url, nodes2=nodes2) as page:
        page.page.route("**/codi/install", late)
        page.open_api({"1": node("CoDiLoad", name=names(running)[-1])}, "install")
        view = page.page.locator(".codi-install").first
        start = view.get_by_role("button", name="Download and convert")
        start.wait_for(timeout=90_000)
        assert "part(s)" in view.text_content() and "MIT" in view.text_content() and "of free disk" in view.text_content()
        page.focus("CoDiLoad", 1.3)
        page.shoot("install")
        start.click()
        cancel = view.get_by_role("button", name="Cancel")
        cancel.wait_for(timeout=90_000)
        until(running, lambda state: remote.asked)
        page.page.wait_for_function("() => / of .*B/.test(document.querySelector('.codi-install').textContent)", timeout=90_000)
        page.shoot("install_running")
        cancel.click()
        again = view.get_by_role("button", name="Go on")
        again.wait_for(timeout=90_000)
        remote.faults = []
        again.click()
        value = "() => app.graph._nodes[0].widgets.find(w => w.name === 'name').value === 'codi'"
        page.page.wait_for_function(value, timeout=120_000)
        view.wait_for(state="hidden", timeout=60_000)
        assert page.crashes == []


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_official_templates_open_without_overlap_where_the_model_is_not_installed(running, official, nodes2):
    shutil.rmtree(official)
    with open_page(running.url, nodes2=nodes2) as page:
        for name in OFFICIAL:
            page.open(shipped("example_workflows", template(name)))
            page.page.locator(".codi-install button").first.wait_for(timeout=90_000)
            assert_apart(page, name)

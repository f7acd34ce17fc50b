"""No text and no choice on any node leads out of the host's input, output, temp and model folders: not to read, not to write."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host.session import Failed
from host.setting import PACK

NODES = sorted(page.stem for page in (PACK / "web" / "docs").glob("*.md"))
SUFFIX = ".codi.safetensors"
PATHS = ("name", "file", "filename_prefix", "data", "save_as")
"""Inputs that name files or folders; the others are given fewer of the names."""
_watched: dict[str, Any] = {"root": None, "seen": []}


def _watch(event: str, arguments: tuple) -> None:
    """Notes what is opened, listed, made, renamed or removed below the watched folder."""
    if _watched["root"] is not None and event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        if isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path.startswith(_watched["root"]):
                _watched["seen"].append((event, path))


sys.addaudithook(_watch)


@pytest.fixture
def outside(base: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder outside of the host's, with all that a node could wish for, and links to it from within the host's folders."""
    folder = tmp_path / "outside"
    shutil.copytree(base / "models" / "codi" / "tiny", folder / "model")
    (folder / f"a{SUFFIX}").write_bytes(b"x")
    (folder / "pairs").mkdir()
    (folder / "pairs" / "a.txt").write_text("a red circle")
    links = [base / name / "link" for name in ("input", "output", "temp")] + [base / "output" / "codi_training" / "linked"]
    for link in links:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder, target_is_directory=True)
    yield folder
    for link in links:
        link.unlink()


def names(outside: Path, base: Path) -> list[str]:
    """Names that lead out, or that no file can have."""
    up = os.path.relpath(outside, base / "input").replace(os.sep, "/")
    found = ["", " ", ".", "..", "~", "~root/x", "link", "link/a", "link/pairs", "linked", f"{up}/a", f"{up}/model", str(outside),
             f"{outside}/a", f"x/../{up}/a", up.replace("/", "\\") + "\\a", "/etc/passwd", "C:\\Windows\\win.ini", "C:a", "D:/a",
             "\\\\server\\share\\a", "//server/share/a", "\\\\?\\C:\\a", "a\x00b", "\x00", "n" * 300, "n/" * 3000 + "n", "CON", "nul.txt",
             "LPT1", "%2e%2e/%2e%2e/a", "a\n../b", "\u202e../a"]  # fmt: skip
    return [*found, *(f"{name}{SUFFIX}" for name in found), *(f"{name}{SUFFIX} [output]" for name in found)]


def everything(folder: Path) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("kind", NODES)
def test_no_name_leads_out(session, rig, base, outside, kind):
    good, before = rig.usual(kind), everything(outside)
    around = {p for p in base.parent.iterdir()}
    error = session.pack.codi_models.errors.CoDiError
    for name, entry in rig.declared(kind).items():
        if entry.get_io_type() not in ("STRING", "COMBO"):
            continue
        for given in names(outside, base)[:: 1 if name in PATHS else 9]:
            _watched["seen"].clear()
            _watched["root"] = os.path.realpath(outside)
            try:
                rig.called(kind, {**good, name: given})
            except error as told:
                assert len(str(told)) > 20
            finally:
                _watched["root"] = None
            assert not _watched["seen"], (name, given, _watched["seen"][:3])
    assert everything(outside) == before and {p for p in base.parent.iterdir()} == around


@pytest.mark.parametrize("data", ["link", "link/pairs", "../input/link/pairs", "a\x00", "n" * 300, "/etc", "\\\\server\\share", "."])
def test_training_reads_the_input_folder_only(session, rig, outside, data):
    graph = rig.prompt("CoDiTrain", {**rig.usual("CoDiTrain"), "data": data})
    with pytest.raises(Failed, match="no data named") as failure:
        session.run(graph)
    assert failure.value.node == "CoDiTrain"


@pytest.mark.parametrize("name", ["linked", "../x", "a/b", "a\\b", "C:x", "CON", "lpt1.x", "", " a", "a.", "n" * 101, "codi-mini"])
def test_training_writes_below_models_and_output_only(session, outside, name):
    with pytest.raises(ValueError, match="is no name for a model folder|leads out|model of the pack"):
        session.pack.nodes.train.model_path(name)


def test_training_writes_into_no_model_that_is_a_link(session, base, outside):
    """To load such a model is what whoever made the link wants; to write behind it a widget's text must not do."""
    link = base / "models" / "codi" / "elsewhere"
    link.symlink_to(outside / "model", target_is_directory=True)
    try:
        assert "elsewhere" in session.pack.nodes.host.folders.model_names()
        with pytest.raises(ValueError, match="is a link that leads out"):
            session.pack.nodes.train.model_path("elsewhere")
    finally:
        link.unlink()


def test_links_out_of_the_folders_are_not_offered(session, base, outside):
    files = session.pack.nodes.host.latent_files
    (base / "input" / f"aside{SUFFIX}").symlink_to(outside / f"a{SUFFIX}")
    try:
        assert not [name for name in files.names() if name.startswith(("link/", "aside"))]
        with pytest.raises(ValueError, match="inside the input folder"):
            files.path_of(f"aside{SUFFIX}")
    finally:
        (base / "input" / f"aside{SUFFIX}").unlink()


@pytest.mark.parametrize("prefix", ["link/new/x", "../x", "a\x00", "n" * 300, "n" * 5000, "/tmp/x", "../"])
def test_nothing_is_made_where_a_latent_cannot_be_saved(session, rig, base, outside, prefix):
    before = everything(outside)
    graph = rig.prompt("CoDiSaveLatent", {**rig.usual("CoDiSaveLatent"), "filename_prefix": prefix})
    with pytest.raises(Failed, match="output folder|cannot write") as failure:
        session.run(graph)
    assert failure.value.node == "CoDiSaveLatent"
    assert everything(outside) == before


def test_a_folder_that_is_a_link_itself_is_the_hosts(session, base, tmp_path):
    inside = session.pack.nodes.host.folders.inside
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real", target_is_directory=True)
    assert inside(tmp_path / "root" / "a" / "b", tmp_path / "root") and not inside(tmp_path / "real", tmp_path / "root")

"""What the download knows before it begins: sizes and hashes that are built in, room, where to put it, how to call it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from codi.codi_models import __main__ as command
from codi.codi_models.autoencoders.tokenizers import BERT_VOCAB, GPT2_MERGES, GPT2_VOCAB, TextTokenizers
from codi.codi_models.cli import download as cli
from codi.codi_models.conversion import download, releases
from codi.codi_models.conversion.install import needed_room
from codi.codi_models.conversion.layout import ENCODERS_FILE, published_file
from codi.codi_models.errors import CoDiError
from host.setting import PACK
from host.tiny import tiny_config

VISION = published_file("vision_denoiser")
HALF = releases.HALF_FOLDER


def test_what_is_built_in():
    stated = {path: (r.size, r.sha256) for path, r in releases.RELEASES.items()}
    assert len(releases.COMMIT) == 40 and stated[HALF + ENCODERS_FILE][0] == 3017419057 and stated[HALF + VISION] == (None, None)
    assert sum(r.size or r.about for path, r in releases.RELEASES.items() if path.startswith(HALF)) == 11_542_455_929
    assert all(len(digest) == 64 for path, (_, digest) in stated.items() if path != HALF + VISION)
    assert {name: size for name, (_, _, size, _) in download._VOCABULARIES.items()} == {
        BERT_VOCAB: 213450, GPT2_VOCAB: 1042301, GPT2_MERGES: 456318,
    }  # fmt: skip


def test_the_official_model_needs_less_than_its_size_and_the_largest_file(tmp_path):
    files = download.wanted_weights(tmp_path)
    assert [f.path.rpartition("/")[2] for f in files][0] == published_file("text_denoiser")
    assert 11.5e9 < needed_room(files, tmp_path) < 13.7e9
    assert needed_room(files, tmp_path, dtype="fp8") < 11e9


def test_where_to_put_it(monkeypatch, tmp_path, capsys):
    assert command.main(["download", "tokenizers", "--yes"]) == 2 and "--out" in capsys.readouterr().err
    monkeypatch.setattr(cli, "SHIPPED", tmp_path / "custom_nodes" / "codi" / "weights")
    assert cli._folder(None) == tmp_path / "models" / "codi" / "codi"


def test_missing_vocabularies_name_the_command(tmp_path):
    with pytest.raises(CoDiError, match="download tokenizers --out"):
        TextTokenizers(tmp_path, tiny_config().text_autoencoder)


@pytest.mark.parametrize("name", ["convert", "download"])
def test_the_script_runs_by_its_path_in_isolated_mode(tmp_path, name):
    """As with the embedded Python of portable installations, which does not look for modules in the folder it is called from."""
    done = subprocess.run([sys.executable, "-I", str(PACK / "codi.py"), name, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and f"python codi.py {name}" in done.stdout, done.stderr

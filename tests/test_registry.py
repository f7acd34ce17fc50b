"""What the registry asks of a pack before it is published, and what users must find in the package."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from urllib.parse import unquote

import pytest
from host.setting import PACK
from PIL import Image

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
IMAGES = PACK / "docs" / "images"


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=PACK, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name]


def packed(name: str) -> bool:
    """Whether a file goes into the package: the last pattern of .comfyignore that matches decides, as in git."""
    keep = True
    for line in (PACK / ".comfyignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.lstrip("!").rstrip("/")
            if fnmatch(name, pattern) or name.startswith(pattern.removesuffix("*").rstrip("/") + "/"):
                keep = line.startswith("!")
    return keep


def test_metadata_is_complete():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,99}", project["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert 20 < len(project["description"]) < 250 and (PACK / project["license"]["file"]).is_file()
    assert project["urls"]["Repository"].startswith("https://") and comfy["PublisherId"] and comfy["DisplayName"]
    assert all((PACK / folder).is_dir() for folder in comfy["includes"])


def test_the_changelog_begins_with_this_version():
    changelog = (PACK / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\d+)\.(\d+)\.(\d+)$", changelog, flags=re.M)
    assert ".".join(versions[0]) == PROJECT["project"]["version"]
    assert versions == sorted(versions, key=lambda v: tuple(map(int, v)), reverse=True)


def test_the_package_asks_for_what_the_requirements_ask_for():
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert sorted(wanted) == sorted(PROJECT["project"]["dependencies"])
    assert not any(re.match(r"torch\b", line) for line in wanted), "the host's own PyTorch must stay"


def test_icon_and_banner_have_the_registrys_sizes():
    comfy = PROJECT["tool"]["comfy"]
    icon, banner = (IMAGES / comfy[key].rsplit("/", 1)[1] for key in ("Icon", "Banner"))
    assert comfy["Icon"].endswith(icon.relative_to(PACK).as_posix()) and comfy["Banner"].endswith(banner.relative_to(PACK).as_posix())
    with Image.open(icon) as picture:
        assert picture.size[0] == picture.size[1] <= 400
    with Image.open(banner) as picture:
        assert picture.size[0] * 9 == picture.size[1] * 21


def test_the_package_holds_what_runs_and_little_else():
    names = [name for name in tracked() if packed(name)]
    for needed in ("__init__.py", "nodes/load.py", "codi_models/model.py", "web/codi.js",
                   "LICENSE", "README.md",
                   "example_workflows/01 Text to everything.json", "subgraphs/Video to Text (CoDi).json", "requirements.txt",
                   "tests/workflows/text_to_everything.json"):  # fmt: skip
        assert needed in names, needed
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", ".github/")) and not n.startswith("tests/workflows/")]
    assert not [n for n in names if n.startswith("docs/evaluation/")]
    size = {n: (PACK / n).stat().st_size for n in names if (PACK / n).is_file()}
    assert sum(size.values()) - sum(s for n, s in size.items() if n.startswith("weights/")) < 4 << 20 and sum(size.values()) < 40 << 20


def test_links_between_documents_lead_somewhere():
    for file in [PACK / "README.md", PACK / "CHANGELOG.md", *(PACK / "docs").glob("*.md")]:
        text = file.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
        assert [link for link in links if not (file.parent / unquote(link)).exists()] == [], file.name


def test_every_control_of_the_comparison_has_a_workflow_and_a_test():
    text = (PACK / "docs" / "comparison.md").read_text(encoding="utf-8")
    header, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert len(rows) >= 15 and all(len(row) == len(header) for row in rows)
    for row in rows:
        assert "_workflows/" in row[-2] or "/workflows_0_3/" in row[-2] or row[-2] in ("any", "all"), row[0]
        assert "../tests/test_host_" in row[-1] or "workflows/test.yml" in row[-1], row[0]
    numbered = {int(n) for n in re.findall(r"\((\d+)\)", text.split("## Notes")[0])}
    assert numbered == {int(n) for n in re.findall(r"^(\d+)\. ", text, flags=re.M)}, "notes and their numbers"


def test_the_registrys_security_check_finds_nothing():
    check = [sys.executable, "-m", "ruff", "check", "nodes", "codi_models", "__init__.py", "--select", "S102,S307,E702", "--isolated"]
    done = subprocess.run(check, cwd=PACK, capture_output=True, text=True)
    if "No module named ruff" in done.stderr:
        pytest.skip("ruff is not installed")
    assert done.returncode == 0, done.stdout


def test_scripts_leave_the_shared_page_alone():
    """What `comfy-test lint --check javascript` holds packs to: names of their own, no fields of the front end replaced, no elements
    outside of their widgets."""
    name = PROJECT["tool"]["comfy"]["DisplayName"]
    own = re.sub(r"[^a-z0-9]", "", name.lower())
    foreign = (
        r"\b(app|api|LiteGraph|window)(\.\w+)+ (\?\?|\|\|)?=[^=]",
        r"document(\.body|\.head|\.querySelector\(.*\)|\.getElementById\(.*\))\??\.(append|prepend|insert|before|after)",
    )
    for file in sorted((PACK / "web").glob("*.js")):
        text = file.read_text(encoding="utf-8")
        assert [m[0] for pattern in foreign for m in re.finditer(pattern, text)] == [], file
        names = re.findall(r"registerExtension\(\{\s*name: \"(.+?)\"", text)
        assert all(found.startswith(f"{own}.") for found in names) and len(names) == text.count("registerExtension("), file


def test_workflows_run_the_tests_on_three_systems():
    text = (PACK / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert all(system in text for system in ("ubuntu-latest", "windows-latest", "macos-latest"))
    assert "codi.py test" in text and "node validate" in text
    yaml = pytest.importorskip("yaml")
    for file in (PACK / ".github" / "workflows").glob("*.yml"):
        assert yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]

"""What the host shows about the nodes: names, categories, tooltips, help pages, search words."""

from __future__ import annotations

import re

import pytest
from host.setting import PACK
from PIL import Image


@pytest.fixture(scope="module")
def schemas(session):
    return {kind: cls.GET_SCHEMA() for kind, cls in session.classes.items() if kind.startswith("CoDi")}


TEXTS = ((".", "*.md"), ("docs", "*.md"), ("web", "**/*.md"), ("web", "*.js"), ("nodes", "**/*.py"), ("tests/workflows", "**/*.*"))
CATEGORIES = {f"CoDi/{name}" for name in ("prompts", "sampling", "latents", "media", "models", "tools")}


def test_every_input_and_output_says_what_it_is(schemas):
    for kind, schema in schemas.items():
        assert schema.description and schema.category in CATEGORIES, kind
        silent = [e.id or e.display_name for e in (*schema.inputs, *schema.outputs) if not e.tooltip]
        assert silent == [], f"{kind}: no tooltip on {silent}"


def test_every_node_is_found_by_other_words(schemas):
    if not hasattr(next(iter(schemas.values())), "search_aliases"):
        pytest.skip("this host knows no search words")
    words = {kind: schema.search_aliases for kind, schema in schemas.items()}
    assert [kind for kind, found in words.items() if not found] == []


def test_texts_call_every_node_by_its_name(schemas):
    """In nodes, help pages, notes and titles of workflows, and documents, `CoDi Word` is a node that exists."""
    names = tuple(schema.display_name for schema in schemas.values())
    files = [f for place, end in TEXTS for f in sorted(PACK.glob(f"{place}/{end}")) if f.name != "CHANGELOG.md"]
    assert len(files) > 90
    for file in files:
        text = file.read_text(encoding="utf-8")
        called = [text[m.start() : m.start() + 40] for m in re.finditer(r"CoDi [A-Z][a-z]+\b(?! [/{])", text)]
        assert [phrase for phrase in called if not phrase.startswith(names)] == [], file


def test_every_node_has_a_help_page_with_a_minimal_graph(schemas):
    pages = {p.stem: p.read_text(encoding="utf-8") for p in (PACK / "web" / "docs").glob("*.md")}
    assert pages.keys() == schemas.keys()
    names = {schema.display_name for schema in schemas.values()}
    for kind, page in pages.items():
        assert page.startswith(f"# {schemas[kind].display_name}\n\n"), kind
        (graph,) = re.findall(r"^Minimal graph: (.+)$", page, flags=re.M)
        assert f"**{schemas[kind].display_name}**" in graph and "→" in graph, kind
        assert all(name in names for name in re.findall(r"CoDi [A-Z][\w ()]+?(?=\*)", page)), kind
        assert (picture := PACK / "web" / "docs" / "images" / f"{kind}.jpg").is_file(), f"{kind}: run tests/host/make_help.py {kind}"
        assert re.findall(r"!\[.{5,}?\]\((.+?)\)", page) == [f"images/{kind}.jpg"], kind
        assert picture.stat().st_size < 40_000, f"{picture} is too large to load with a page"
        with Image.open(picture) as opened:
            assert opened.format == "JPEG" and min(opened.size) >= 40 and max(opened.size) <= 600

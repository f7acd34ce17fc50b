"""What the host shows about the nodes: names, tooltips, translations, help pages, search words, ready-made subgraphs."""

from __future__ import annotations

import json
import re

import pytest
from host.make_locales import LANGUAGES, Translations, definitions, translated
from host.setting import PACK


@pytest.fixture(scope="module")
def schemas(session):
    return {kind: cls.GET_SCHEMA() for kind, cls in session.classes.items() if kind.startswith("CoDi")}


def read(language: str) -> dict:
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_english_texts_are_those_of_the_schemas(session):
    assert read("en") == definitions(session), "run tests/host/make_locales.py"


def test_every_text_is_translated_and_no_translation_is_left_over(session):
    english, translations = definitions(session), Translations()
    for language in LANGUAGES:
        assert read(language) == translated(english, language, translations), "run tests/host/make_locales.py"
    assert translations.missing == set(), "add them to locales/translations.json"
    assert translations.unused() == set(), "take them out of locales/translations.json"
    for english_text, others in translations.texts.items():
        assert set(others) == set(LANGUAGES) and all(t.strip() for t in others.values()), english_text
        for text in others.values():
            assert sorted(re.findall(r"\{[ab]\}", text)) == sorted(re.findall(r"\{[ab]\}", english_text)), text
            if language_neutral := re.findall(r"[A-Z]{4,}(?:_[A-Z]+)*", english_text):  # names of types stay as they are
                assert all(word.rstrip("s") in text for word in language_neutral), text


def test_every_input_and_output_says_what_it_is(schemas):
    for kind, schema in schemas.items():
        assert schema.description and schema.category.split("/")[0] == "CoDi", kind
        silent = [e.id or e.display_name for e in (*schema.inputs, *schema.outputs) if not e.tooltip]
        assert silent == [], f"{kind}: no tooltip on {silent}"


def test_every_node_is_found_by_other_words(schemas):
    if not hasattr(next(iter(schemas.values())), "search_aliases"):
        pytest.skip("this host knows no search words")
    words = {kind: schema.search_aliases for kind, schema in schemas.items()}
    assert [kind for kind, found in words.items() if not found] == []


def test_every_node_has_a_help_page_with_a_minimal_graph(schemas):
    pages = {p.stem: p.read_text(encoding="utf-8") for p in (PACK / "web" / "docs").glob("*.md")}
    assert pages.keys() == schemas.keys()
    names = {schema.display_name for schema in schemas.values()}
    for kind, page in pages.items():
        assert page.startswith(f"# {schemas[kind].display_name}\n\n"), kind
        (graph,) = re.findall(r"^Minimal graph: (.+)$", page, flags=re.M)
        assert f"**{schemas[kind].display_name}**" in graph and "→" in graph, kind
        assert all(name in names for name in re.findall(r"CoDi [A-Z][\w ()]+?(?=\*)", page)), kind
        for picture in re.findall(r"!\[.+?\]\((.+?)\)", page):
            assert (PACK / "web" / "docs" / picture).is_file(), f"{kind}: {picture}"

"""What the host shows about the nodes: names, tooltips, translations, help pages, search words, ready-made subgraphs."""

from __future__ import annotations

import json
import re

import pytest
from host.make_locales import LANGUAGES, Translations, definitions, translated
from host.setting import PACK
from PIL import Image


@pytest.fixture(scope="module")
def schemas(session):
    return {kind: cls.GET_SCHEMA() for kind, cls in session.classes.items() if kind.startswith("CoDi")}


IDEOGRAPH = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
AS_IN_ENGLISH = {"CoDi VAE", "bf16", "cfg", "cfg_{a}", "clip", "codi", "latent"}
"""Names that other languages may write in Latin letters."""
VERBATIM = re.compile(r"\d+(?:[.:/]\d+)*|[a-z]+(?:[_/][a-z]+)+|`[^`]+`|\w+\.jsonl|[A-Z]{2,}[A-Z_]*|codi-mini")
"""Numbers, names in code, files and types: the same in every language."""
QUOTES = {"zh": "“([^”]*)”", "ja": "「([^」]*)」", "de": "„([^“]*)“"}


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


def test_translations_are_in_their_language():
    for english, others in Translations().texts.items():
        for language in ("zh", "ja"):
            assert english in AS_IN_ENGLISH or IDEOGRAPH.search(others[language]), f"{language}: {others[language]}"
        assert " " not in english or others["de"] != english, english
        assert not IDEOGRAPH.search(others["de"]), others["de"]


def test_translations_keep_numbers_and_names_of_things(schemas):
    texts = Translations().texts
    for english, others in texts.items():
        if " " in english:  # names of widgets are translated
            for language, text in others.items():
                lost = [word for word in VERBATIM.findall(english) if word.rstrip("s") not in text]
                assert lost == [], f"{language}: {lost} of {english!r} not in {text!r}"


def test_translations_call_nodes_by_their_names(schemas):
    texts = Translations().texts
    for language, quoted in QUOTES.items():
        names = {texts[schema.display_name][language] for schema in schemas.values()}
        for others in texts.values():
            named = {name for name in re.findall(quoted, others[language]) if "CoDi" in name}
            assert named <= names, f"{language}: no node is called {named - names}"


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
        assert (picture := PACK / "web" / "docs" / "images" / f"{kind}.jpg").is_file(), f"{kind}: run tests/host/make_help.py {kind}"
        assert re.findall(r"!\[.{5,}?\]\((.+?)\)", page) == [f"images/{kind}.jpg"], kind
        assert picture.stat().st_size < 40_000, f"{picture} is too large to load with a page"
        with Image.open(picture) as opened:
            assert opened.format == "JPEG" and min(opened.size) >= 40 and max(opened.size) <= 600

"""Writes locales/<language>/nodeDefs.json: English from the nodes' schemas, the others from locales/translations.json.

    python tests/host/make_locales.py

Translations stand side by side under their English text, each text once however many nodes use it. {a} and {b} in a text
stand for modalities, whose names are in "words". To add a language, add its code to LANGUAGES and to every text."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from host.session import Session  # noqa: E402
from host.setting import HOST, PACK, import_pack  # noqa: E402

LANGUAGES = ("zh", "ja", "de")
LOCALES = PACK / "locales"


def texts(entry: Any) -> dict[str, str]:
    """Name and tooltip of an input or output."""
    name = {"name": entry.display_name or entry.id}
    return {**name, "tooltip": entry.tooltip} if entry.tooltip else name


def definitions(session: Session) -> dict[str, Any]:
    """All of CoDi's nodes in the form of nodeDefs.json."""
    found = {}
    for kind, cls in sorted(session.classes.items()):
        if kind.startswith("CoDi"):
            schema = cls.GET_SCHEMA()
            found[kind] = {
                "display_name": schema.display_name,
                "description": schema.description,
                "inputs": {i.id: texts(i) for i in schema.inputs},
                "outputs": {str(n): texts(o) for n, o in enumerate(schema.outputs)},
            }
    return found


class Translations:
    """locales/translations.json; `missing` and `used` collect what was asked for."""

    def __init__(self) -> None:
        read = json.loads((LOCALES / "translations.json").read_text(encoding="utf-8"))
        self.words, self.texts = read["words"], read["texts"]
        names = "|".join(self.words)
        self.patterns = {
            re.compile(
                "".join(f"(?P<{p[1]}>{names})" if p in ("{a}", "{b}") else re.escape(p) for p in re.split(r"(\{[ab]\})", text))
            ): text
            for text in self.texts
            if "{a}" in text
        }
        self.missing: set[str] = set()
        self.used: set[str] = set()

    def __call__(self, english: str, language: str) -> str:
        """The text in a language; the English one where it is missing."""
        if english in self.texts:
            self.used.add(english)
            return self.texts[english].get(language) or self._lacking(english)
        for pattern, text in self.patterns.items():
            if match := pattern.fullmatch(english):
                self.used.add(text)
                words = {key: self.words[word][language] for key, word in match.groupdict().items()}
                return self.texts[text][language].format(**words) if language in self.texts[text] else self._lacking(text)
        return self._lacking(english)

    def _lacking(self, english: str) -> str:
        self.missing.add(english)
        return english

    def unused(self) -> set[str]:
        """Texts of the file that no node has."""
        return set(self.texts) - self.used


def translated(tree: Any, language: str, translations: Translations) -> Any:
    """The definitions with every text in a language."""
    if isinstance(tree, str):
        return translations(tree, language) if tree else tree
    return {key: translated(value, language, translations) for key, value in tree.items()}


def main() -> None:
    """Command line."""
    import_pack()
    if HOST is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder")
    with tempfile.TemporaryDirectory() as base:
        english = definitions(Session(HOST, Path(base), PACK))
    translations = Translations()
    trees = {"en": english, **{language: translated(english, language, translations) for language in LANGUAGES}}
    for language, tree in trees.items():
        target = LOCALES / language / "nodeDefs.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for kind, found in (("not translated", translations.missing), ("of no node", translations.unused())):
        for text in sorted(found):
            print(f"{kind}: {text}")


if __name__ == "__main__":
    main()

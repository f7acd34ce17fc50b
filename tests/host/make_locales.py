"""Writes locales/en/nodeDefs.json from the nodes' schemas: the texts that translators start from.

python tests/host/make_locales.py"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from host.session import Session  # noqa: E402
from host.setting import HOST, PACK, import_pack  # noqa: E402


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


def main() -> None:
    """Command line."""
    import_pack()
    if HOST is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder")
    with tempfile.TemporaryDirectory() as base:
        text = json.dumps(definitions(Session(HOST, Path(base), PACK)), indent=2, ensure_ascii=False)
    target = PACK / "locales" / "en" / "nodeDefs.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

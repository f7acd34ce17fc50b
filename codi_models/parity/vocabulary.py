"""A vocabulary from recorded tokens alone: what a text fixture shows of BERT's and GPT-2's, the rest filled up.

BERT's tokens are recorded with their ids; the longest match among them is the longest match in the whole vocabulary. Of GPT-2's only
ids and strings are recorded: the bytes of a string are cut into as many pieces as it has ids, the same id always the same piece."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..autoencoders.tokenizers import BERT_VOCAB, GPT2_MERGES, GPT2_SPECIALS, GPT2_VOCAB
from ..config import OptimusConfig
from ..errors import CoDiError

MAX_STEPS = 200_000
"""Cuts tried for all strings together."""


def rebuild(info: Mapping[str, Any], config: OptimusConfig, folder: Path) -> None:
    """Write the three vocabulary files for the texts of a fixture. Raises CoDiError where its records contradict each other."""
    special = info.get("special_ids") or {}
    bert = {int(special.get(f"bert_{n}", i)): f"[{n.upper()}]" for n, i in (("pad", 0), ("unk", 100), ("cls", 101), ("sep", 102))}
    for case in info.get("bert_encode") or ():
        for token, i in zip(case["tokens"], case["ids"][1:-1], strict=False):
            if bert.setdefault(i, token) != token:
                raise CoDiError(f"bert_encode: id {i} stands for {bert[i]!r} and for {token!r}")
    (folder / BERT_VOCAB).write_text("\n".join(_filled(bert, config.encoder_vocab)) + "\n", encoding="utf-8")
    symbols = byte_symbols()
    pieces = gpt2_pieces(info.get("gpt2_decode") or (), config.decoder_vocab - len(GPT2_SPECIALS))
    gpt2 = {i: "".join(symbols[b] for b in piece) for i, piece in pieces.items()}
    tokens = _filled(gpt2, config.decoder_vocab - len(GPT2_SPECIALS))
    (folder / GPT2_VOCAB).write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / GPT2_MERGES).write_text("#version: 0.2\n", encoding="utf-8")


def byte_symbols() -> dict[int, str]:
    """One printable character for each byte: printable Latin-1 stands for itself, the rest from U+0100 on (GPT-2's alphabet)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def _filled(known: Mapping[int, str], size: int) -> list[str]:
    return [known.get(i, f"[unused{i}]") for i in range(size)]


def gpt2_pieces(cases: Any, ordinary: int) -> dict[int, bytes]:
    """id -> UTF-8 bytes of every ordinary id of the recorded texts; of the texts before clean-up where they are recorded."""
    for fed in (True, False):
        rows = []
        for case in cases:
            text = case["text_fed"] if fed and "text_fed" in case else _between(case["decoded_raw"])
            rows.append(([i for i in case["ids"] if i < ordinary], text.encode("utf-8")))
        pieces = _cut(rows)
        if pieces is not None:
            return pieces
    raise CoDiError("gpt2_decode: the recorded strings cannot be cut into as many pieces as there are ids, each id always the same piece")


def _between(raw: str) -> str:
    """The ordinary text of a decoded string."""
    for name in GPT2_SPECIALS:
        raw = raw.replace(f" {name}", "")
    return raw


def _cut(rows: list[tuple[list[int], bytes]]) -> dict[int, bytes] | None:
    """Cut every text into pieces for its ids, depth first, words before parts of words."""
    known: dict[int, bytes] = {}
    steps = [0]

    def place(row: int, at: int, start: int) -> bool:
        steps[0] += 1
        if row == len(rows):
            return True
        ids, text = rows[row]
        if at == len(ids):
            return start == len(text) and place(row + 1, 0, 0)
        if steps[0] > MAX_STEPS or len(text) - start < len(ids) - at:
            return False
        i = ids[at]
        if i in known:
            return text.startswith(known[i], start) and place(row, at + 1, start + len(known[i]))
        taken = set(known.values())
        for end in _ends(text, start, last=at == len(ids) - 1):
            if text[start:end] not in taken:
                known[i] = text[start:end]
                if place(row, at + 1, end):
                    return True
                del known[i]
        return False

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 4 * sum(len(ids) + 1 for ids, _ in rows) + 1000))
    try:
        return known if place(0, 0, 0) else None
    finally:
        sys.setrecursionlimit(limit)


def _ends(text: bytes, start: int, *, last: bool) -> Iterator[int]:
    """Ends of a piece from `start`, likely ones first: the word's end, changes between letters and others, any byte."""
    if last:
        yield len(text)
        return
    word = text.find(b" ", start + 1)
    word = len(text) if word < 0 else word
    inside = range(start + 1, word)
    changes = [i for i in inside if _letter(text[i]) != _letter(text[i - 1]) and text[i - 1 : i] != b" "]
    yield word
    yield from reversed(changes)
    yield from (i for i in reversed(inside) if i not in changes)


def _letter(byte: int) -> bool:
    """Whether a byte of UTF-8 is a letter or part of a character beyond ASCII."""
    return byte >= 128 or chr(byte).isalpha()

"""Strings: BERT ids, detokenised GPT-2 ids, caption clean-up (exact)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..autoencoders.text_cleanup import clean_caption, merge_adjacent
from ..autoencoders.tokenizers import TextTokenizers
from ..config import OptimusConfig
from .check import Check
from .networks import Networks
from .vocabulary import rebuild

LISTS = ("bert_encode", "gpt2_decode", "caption_cleanup")
OFFICIAL, REBUILT = "exact", "exact, with a vocabulary of the fixture's own tokens"


def check_text(check: Check, networks: Networks) -> None:
    """Every list of the json; the tokenizers have the published vocabularies if given, else the recorded tokens at their ids."""
    info: dict[str, Any] = check.fixture.info
    special = info.get("special_ids") or {}
    config = OptimusConfig(decoder_vocab=int(special.get("gpt2_vocab", OptimusConfig().decoder_vocab)))
    if info.get("bert_encode") or info.get("gpt2_decode"):
        tokenizers, why = _tokenizers(info, config, networks.vocabularies)
        ours = {
            "bert_pad": tokenizers.vocab["[PAD]"], "bert_cls": tokenizers.vocab["[CLS]"], "bert_sep": tokenizers.vocab["[SEP]"],
            "bert_unk": tokenizers.vocab["[UNK]"], "gpt2_pad": tokenizers.pad, "gpt2_bos": tokenizers.bos, "gpt2_eos": tokenizers.eos,
            "gpt2_vocab": config.decoder_vocab,
        }  # fmt: skip
        for name, value in special.items():
            check.fact(f"special_ids/{name}", ours.get(name) == value, f"exact: {value} recorded, {ours.get(name)} ours")
        for i, case in enumerate(info.get("bert_encode") or ()):
            row = tokenizers.encode([case["text"]])[0].tolist()
            _same(check, f"bert_encode/{i}", row, case["ids"], why)
        for i, case in enumerate(info.get("gpt2_decode") or ()):
            if "decoded_raw" in case:
                _same(check, f"gpt2_decode/{i}/decoded_raw", tokenizers.decode_raw(case["ids"]), case["decoded_raw"], why)
            if "text_fed" in case and why == OFFICIAL:
                _same(check, f"gpt2_decode/{i}/ids", tokenizers.encode_target([case["text_fed"]])[0].tolist(), case["ids"], why)
            if "official_final" in case:
                final = tokenizers.decode([case["ids"]], faithful=True)[0]
                _same(check, f"gpt2_decode/{i}/official_final", final, case["official_final"], why)
    for name in info:
        if isinstance(info[name], list) and name not in LISTS:
            check.skip(name, f"a list that is not known; known are {', '.join(LISTS)}")
    for i, case in enumerate(info.get("caption_cleanup") or ()):
        if "after_adjacent_merge" in case:
            merged = merge_adjacent(case["decoded"])
            _same(check, f"caption_cleanup/{i}/after_adjacent_merge", merged, case["after_adjacent_merge"], "exact")
        _same(check, f"caption_cleanup/{i}/official_final", clean_caption(case["decoded"]), case["official_final"], "exact")


def _tokenizers(info: dict[str, Any], config: OptimusConfig, vocabularies: Path | None) -> tuple[TextTokenizers, str]:
    """Tokenizers of the published vocabularies if they are at hand, else of the recorded tokens; and what to say of it."""
    if vocabularies is not None:
        return TextTokenizers(vocabularies, config), OFFICIAL
    with tempfile.TemporaryDirectory() as folder:
        rebuild(info, config, Path(folder))
        return TextTokenizers(folder, config), REBUILT


def _same(check: Check, name: str, ours: Any, recorded: Any, why: str) -> None:
    check.fact(name, ours == recorded, why if ours == recorded else f"{ours!r} instead of {recorded!r}")

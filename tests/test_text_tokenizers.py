"""Optimus' tokenizers and caption clean-up: published ids and strings, small vocabularies, unusable files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from codi.codi_models.autoencoders.text_cleanup import clean_caption, merge_adjacent
from codi.codi_models.autoencoders.tokenizers import BERT_VOCAB, GPT2_MERGES, GPT2_VOCAB, TextTokenizers, build_vocabularies
from codi.codi_models.config import OptimusConfig
from codi.codi_models.errors import CoDiError
from small import small_config

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "parity" / "text_io.json").read_text(encoding="utf-8"))
CAPTIONS = [f"a {c} {s} bounces {n}" for c in ("red", "blue") for s in ("circle", "square") for n in ("once", "three times")]
MINI = small_config().text_autoencoder

PIECES = [  # tokens behind the ids of FACTS["gpt2_decode"], in order; "Ġ" is GPT-2's letter for a space
    "Ġa Ġman Ġrides Ġa Ġhorse",
    "Ġrain Ġfalls Ġon Ġthe Ġroof Ġ, Ġloudly",
    "Ġdon 't Ġstop Ġthe Ġmusic",
    "Ġresisted .................. ĠPurple Ġsummons Ġdefied Ġcrime ĠPrim Kansas",
    "ĠWhilst Ġaddicts Ġsped Ġthirteen Ġsporting umbn Spanish ĠHispanic",
    "PokÃ©mon ĠrÃ© Ġinnovate TION Ġdads 350 ĠEpisode ĠSil",
]


def with_fillers(known: dict[int, str], size: int) -> list[str]:
    return [known.get(i, f"[unused{i}]") for i in range(size)]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizers:
    """Vocabularies of the published sizes that hold the tokens of the recorded texts at their published ids."""
    folder, config = tmp_path_factory.mktemp("official"), OptimusConfig()
    bert = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}
    for case in FACTS["bert_encode"]:
        bert |= dict(zip(case["ids"][1:-1], case["tokens"], strict=True))
    (folder / BERT_VOCAB).write_text("\n".join(with_fillers(bert, config.encoder_vocab)) + "\n", encoding="utf-8")

    gpt2: dict[int, str] = {}
    for case, pieces in zip(FACTS["gpt2_decode"], PIECES, strict=True):
        gpt2 |= dict(zip(case["ids"][1:-1], pieces.split(), strict=True))
    merges = {}  # each token grows letter by letter; the letters and the stages on the way take free ids
    for token in gpt2.values():
        merges |= {(token[:i], token[i]): None for i in range(1, len(token))}
    stages = {part for left, right in merges for part in (left, right, left + right)} - set(gpt2.values())
    free = (i for i in range(config.decoder_vocab) if i not in gpt2)
    gpt2 |= dict(zip(free, sorted(stages), strict=False))
    tokens = with_fillers(gpt2, config.decoder_vocab - 3)
    (folder / GPT2_VOCAB).write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / GPT2_MERGES).write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n", encoding="utf-8")
    return TextTokenizers(folder, config)


def test_special_ids(official: TextTokenizers) -> None:
    ids = FACTS["special_ids"]
    assert (official.pad, official.bos, official.eos) == (ids["gpt2_pad"], ids["gpt2_bos"], ids["gpt2_eos"])
    assert official.config.decoder_vocab == ids["gpt2_vocab"]


def test_encoder_ids(official: TextTokenizers) -> None:
    cases = FACTS["bert_encode"]
    batch = official.encode([case["text"] for case in cases])
    width = max(len(case["ids"]) for case in cases)
    assert batch.tolist() == [case["ids"] + [0] * (width - len(case["ids"])) for case in cases]


@pytest.mark.parametrize("case", FACTS["gpt2_decode"], ids=lambda case: case["official_final"][:12])
def test_decoded_text(official: TextTokenizers, case: dict[str, Any]) -> None:
    assert official.decode_raw(case["ids"]) == case["decoded_raw"]
    assert official.decode([case["ids"]], faithful=True) == [case["official_final"]]


def test_target_ids(official: TextTokenizers) -> None:
    for case in FACTS["gpt2_decode"]:
        if "text_fed" in case:
            assert official.encode_target([case["text_fed"]]).tolist() == [case["ids"]]


def test_first_word_without_a_space_is_kept_for_users(official: TextTokenizers) -> None:
    case = FACTS["gpt2_decode"][-1]
    assert official.decode([case["ids"]]) == ["Pokémon " + case["official_final"]]
    assert official.decode([case["ids"] + case["ids"]]) == ["Pokémon " + case["official_final"]], "nothing is read beyond EOS"


@pytest.mark.parametrize("case", FACTS["caption_cleanup"], ids=lambda case: case["decoded"][:12])
def test_caption_cleanup(case: dict[str, str]) -> None:
    assert merge_adjacent(case["decoded"]) == case["after_adjacent_merge"]
    assert clean_caption(case["decoded"]) == case["official_final"]


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    build_vocabularies(CAPTIONS, tmp_path, MINI.encoder_vocab, MINI.decoder_vocab)
    return tmp_path


def test_small_vocabularies_have_the_sizes_of_the_networks(mini: Path) -> None:
    assert len((mini / BERT_VOCAB).read_text(encoding="utf-8").splitlines()) == MINI.encoder_vocab
    assert sorted(json.loads((mini / GPT2_VOCAB).read_text(encoding="utf-8")).values()) == list(range(MINI.decoder_vocab - 3))
    tokenizers = TextTokenizers(mini, MINI)
    assert len(set(map(tuple, tokenizers.encode(CAPTIONS).tolist()))) == len(CAPTIONS)
    assert tokenizers.encode(CAPTIONS[:1]).shape == (1, 7), "a word of the captions is one token"


@pytest.mark.parametrize("text", [*CAPTIONS[:2], "Zebra-42 (naïve)", "日本 🙂", "a {curly} word", "x"])
def test_any_text_comes_back(mini: Path, text: str) -> None:
    tokenizers = TextTokenizers(mini, MINI)
    assert tokenizers.decode(tokenizers.encode_target([text])) == [text]


def test_words_of_known_characters_are_never_unknown(mini: Path) -> None:
    tokenizers = TextTokenizers(mini, MINI)
    assert tokenizers.vocab["[UNK]"] not in tokenizers.encode(["Unheard-of words, 1234567890! (~`@#$%^&*_+=|\\<>?/;:'\")"]).tolist()[0]


def test_long_text_is_cut_and_keeps_its_end(mini: Path) -> None:
    tokenizers = TextTokenizers(mini, MINI)
    ids, target = tokenizers.encode(["word " * 10_000])[0], tokenizers.encode_target(["word " * 10_000])[0]
    assert len(ids) == MINI.encoder_positions and ids[-1] == tokenizers.vocab["[SEP]"]
    assert len(target) == MINI.max_tokens and target[-1] == tokenizers.eos


def test_vocabularies_are_the_same_every_time(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("again")
    build_vocabularies(CAPTIONS, again, MINI.encoder_vocab, MINI.decoder_vocab)
    for name in (BERT_VOCAB, GPT2_VOCAB, GPT2_MERGES):
        assert (again / name).read_bytes() == (mini / name).read_bytes()


def test_more_words_than_places(tmp_path: Path) -> None:
    build_vocabularies([f"word{i} " * 3 for i in range(2000)], tmp_path, MINI.encoder_vocab, MINI.decoder_vocab)
    tokenizers = TextTokenizers(tmp_path, MINI)
    assert tokenizers.decode(tokenizers.encode_target(["word1999 word7"])) == ["word1999 word7"]


@pytest.mark.parametrize("name", [BERT_VOCAB, GPT2_VOCAB, GPT2_MERGES])
def test_missing_file_is_named(mini: Path, name: str) -> None:
    (mini / name).unlink()
    with pytest.raises(CoDiError, match=name):
        TextTokenizers(mini, MINI)


@pytest.mark.parametrize("name", [BERT_VOCAB, GPT2_VOCAB])
def test_truncated_or_foreign_file_is_named(mini: Path, name: str) -> None:
    content = (mini / name).read_bytes()
    for broken in (b"", content[: len(content) // 2], b"\xff\xfe\x00\x01" * 8):
        (mini / name).write_bytes(broken)
        with pytest.raises(CoDiError, match=name):
            TextTokenizers(mini, MINI)


def test_vocabulary_of_another_model(mini: Path) -> None:
    with pytest.raises(CoDiError, match="256 entries.*28996"):
        TextTokenizers(mini, OptimusConfig())


def test_vocabulary_too_small_for_the_characters(tmp_path: Path) -> None:
    with pytest.raises(CoDiError, match="encoder vocabulary of 50"):
        build_vocabularies(CAPTIONS, tmp_path, 50, 512)
    with pytest.raises(CoDiError, match="decoder vocabulary of 97"):
        build_vocabularies(CAPTIONS, tmp_path, 256, 100)
    assert not list(tmp_path.iterdir()), "nothing half-written stays"

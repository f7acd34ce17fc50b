"""Optimus' two tokenizers: BERT's WordPiece in front of the encoder, GPT-2's byte-level BPE behind the decoder.

Built on the tokenizers library from the vocabulary files of a model folder, so the version of transformers does not matter."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CoDiConfig, OptimusConfig
from ..errors import CoDiError
from ..files import write_text
from .text_cleanup import clean_caption, tighten

BERT_VOCAB, GPT2_VOCAB, GPT2_MERGES = "bert_vocab.txt", "gpt2_vocab.json", "gpt2_merges.txt"
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
GPT2_SPECIALS = ("<PAD>", "<BOS>", "<EOS>")


def special_ids(config: OptimusConfig) -> tuple[int, int, int]:
    """PAD, BOS and EOS of the decoder: the last three ids of its vocabulary."""
    return config.decoder_vocab - 3, config.decoder_vocab - 2, config.decoder_vocab - 1


class TextTokenizers:
    """Texts to ids and ids to texts. `config` defaults to that of the config.json in the folder.

    Raises CoDiError where a vocabulary file is missing, is not readable, or has another size than the configuration."""

    def __init__(self, folder: str | Path, config: OptimusConfig | None = None) -> None:
        folder = Path(folder)
        self.config = CoDiConfig.load(folder / "config.json").text_autoencoder if config is None else config
        for name in (BERT_VOCAB, GPT2_VOCAB, GPT2_MERGES):
            if not (folder / name).is_file():
                raise CoDiError(
                    f"{folder} has no {name}: text needs {BERT_VOCAB}, {GPT2_VOCAB} and {GPT2_MERGES} in the model folder. "
                    f"Those of the official model come with `python -m codi_models download tokenizers --out {folder}`"
                )
        self.vocab = _read_wordpieces(folder / BERT_VOCAB)
        self._bert = _wordpiece(self.vocab)
        self._gpt2 = _byte_level(folder / GPT2_VOCAB, folder / GPT2_MERGES)
        self.pad, self.bos, self.eos = special_ids(self.config)
        self._specials = dict(zip((self.pad, self.bos, self.eos), GPT2_SPECIALS, strict=True))
        _check_size(folder / BERT_VOCAB, len(self.vocab), self.config.encoder_vocab)
        _check_size(folder / GPT2_VOCAB, self._gpt2.get_vocab_size(), self.config.decoder_vocab - len(GPT2_SPECIALS))

    def encode(self, texts: Sequence[str], *, strict: bool = False) -> Tensor:
        """Encoder ids (B, T), [CLS] ... [SEP], then zeros. Lower-cased; cut to the encoder's positions, [SEP] kept.

        `strict`: raises CoDiError for a text that would be cut."""
        room = self.config.encoder_positions - 2
        start, end = self.vocab["[CLS]"], self.vocab["[SEP]"]
        encodings = self._bert.encode_batch([text.lower() for text in texts], add_special_tokens=False)
        longest = max((len(encoding.ids) for encoding in encodings), default=0)
        if strict and longest > room:
            raise CoDiError(f"the text has {longest} tokens, one latent holds {room} at most: shorten it, or use it as a prompt")
        return _rectangle([[start, *encoding.ids[:room], end] for encoding in encodings], 0)

    def encode_target(self, texts: Sequence[str]) -> Tensor:
        """Decoder ids (B, T), BOS ... EOS, then PAD: what the decoder is trained to say. Cut to config.max_tokens, EOS kept."""
        room = self.config.max_tokens - 2
        encodings = self._gpt2.encode_batch([f" {text.strip()}" for text in texts], add_special_tokens=False)
        return _rectangle([[self.bos, *encoding.ids[:room], self.eos] for encoding in encodings], self.pad)

    def decode(self, ids: Sequence[Sequence[int]] | Tensor, *, faithful: bool = False) -> list[str]:
        """Decoder ids, one row a sample, to captions with stutters and repeats removed.

        Rows end at their first EOS. `faithful` follows the published code to the letter: the string with the special tokens
        spelt out is cut at white space and its first and last piece dropped, so a first word without a leading space is lost."""
        rows = ids.tolist() if isinstance(ids, Tensor) else ids
        if faithful:
            return [clean_caption(" ".join(self.decode_raw(row).split()[1:-1])) for row in rows]
        texts = []
        for row in rows:
            row = list(row)
            row = row[: row.index(self.eos)] if self.eos in row else row
            texts.append(clean_caption(tighten(self._gpt2.decode([i for i in row if i not in self._specials]))))
        return texts

    def decode_raw(self, row: Sequence[int]) -> str:
        """One row with its special tokens spelt out, ` <BOS> a dog <EOS>`."""
        text, run = "", list[int]()
        for i in row:
            if i in self._specials:
                text += self._gpt2.decode(run) + f" {self._specials[i]}"
                run = []
            else:
                run.append(i)
        return tighten(text + self._gpt2.decode(run))


def build_vocabularies(captions: Iterable[str], folder: str | Path, encoder_vocab: int, decoder_vocab: int) -> None:
    """Write the three vocabulary files for a model trained on `captions`, exactly as large as the networks' embeddings.

    The words and byte pairs of the captions come first by frequency; single characters (WordPiece: ASCII and the captions' own)
    and all bytes make sure that any other text has ids too. Unused places get filler entries.
    Raises CoDiError where a vocabulary is too small for the characters alone."""
    captions = list(captions)
    wordpieces = _wordpieces(captions, encoder_vocab)
    vocab, merges = _byte_pairs(captions, decoder_vocab - len(GPT2_SPECIALS))
    write_text(Path(folder) / BERT_VOCAB, "\n".join(wordpieces) + "\n")
    write_text(Path(folder) / GPT2_VOCAB, json.dumps(vocab, ensure_ascii=False))
    write_text(Path(folder) / GPT2_MERGES, merges)


def _wordpieces(captions: list[str], size: int) -> list[str]:
    cut = _wordpiece({token: i for i, token in enumerate(BERT_SPECIALS)})
    counts: Counter[str] = Counter()
    for text in captions:
        counts.update(word for word, _ in cut.pre_tokenizer.pre_tokenize_str(cut.normalizer.normalize_str(text.lower())))
    own = set("".join(counts)) - set(string.punctuation)
    inner = sorted(own | set(string.ascii_lowercase + string.digits))
    characters = [*string.punctuation, *inner, *(f"##{c}" for c in inner)]
    if len(BERT_SPECIALS) + len(characters) > size:
        raise CoDiError(f"an encoder vocabulary of {size} is too small: the captions' characters alone need {len(characters)} entries")
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    return _fill([*BERT_SPECIALS, *characters, *words], size, "[unused{}]")


def _byte_pairs(captions: list[str], size: int) -> tuple[dict[str, int], str]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size < len(alphabet):
        raise CoDiError(f"a decoder vocabulary of {size} ordinary entries is too small: the {len(alphabet)} bytes alone need more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator((f" {text.strip()}" for text in captions), trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    vocab, merges = learnt["vocab"], "".join(f"{' '.join(pair)}\n" for pair in learnt["merges"])
    tokens = _fill(sorted(vocab, key=lambda token: vocab[token]), size, "<|unused{}|>")
    return {token: i for i, token in enumerate(tokens)}, f"#version: 0.2\n{merges}"


def _fill(tokens: list[str], size: int, filler: str) -> list[str]:
    return [*tokens[:size], *(filler.format(i) for i in range(size - len(tokens)))]


def _wordpiece(vocab: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _byte_level(vocab: Path, merges: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises Exception itself for a file that it cannot parse
        raise CoDiError(
            f"{vocab} and {merges} are not a byte-level BPE vocabulary: {error}. Restore the files of the model folder"
        ) from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_wordpieces(path: Path) -> dict[str, int]:
    try:
        vocab = {token: i for i, token in enumerate(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"))}
    except (OSError, UnicodeDecodeError) as error:
        raise CoDiError(f"{path} is not a readable WordPiece vocabulary: {error}. Restore the files of the model folder") from error
    if missing := [token for token in BERT_SPECIALS if token not in vocab]:
        raise CoDiError(f"{path} lacks {missing}: a WordPiece vocabulary has one entry a line, {', '.join(BERT_SPECIALS)} among them")
    return vocab


def _check_size(path: Path, size: int, expected: int) -> None:
    if size != expected:
        raise CoDiError(f"{path} has {size} entries, the text autoencoder of this model takes {expected}. Use the files of the same model")


def _rectangle(rows: list[list[int]], pad: int) -> Tensor:
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long).reshape(len(rows), width)

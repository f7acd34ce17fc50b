"""CLIP's byte-pair tokenizer: from the vocabulary that open_clip ships, or from one in a model folder."""

from __future__ import annotations

import gzip
import html
import importlib.util
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import CLIPConfig
from ..errors import CoDiError

if TYPE_CHECKING:
    from .clip import CLIPEncoder

VOCABULARY_FILE = "clip_bpe.txt.gz"
"""Name of the vocabulary in a model folder: a version line, then one merge "left right" a line, most frequent first."""

WORD_END = "</w>"
_STRAIGHT_QUOTES = str.maketrans({**dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"), **dict.fromkeys("\u201c\u201d\u201e\u201f", '"')})
_LONGEST_WORD = 256  # characters; longer runs are cut so that merging stays linear


def byte_symbols() -> dict[int, str]:
    """One printable character for each byte: printable Latin-1 stands for itself, the rest from U+0100 on (GPT-2's alphabet)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def clean(text: str) -> str:
    """HTML entities resolved, quotes straight, Unicode composed, white space collapsed, lower case; absurdly long words cut."""
    text = html.unescape(html.unescape(str(text))).encode("utf-8", "replace").decode("utf-8")  # lone surrogates become "?"
    text = unicodedata.normalize("NFC", text.translate(_STRAIGHT_QUOTES)).lower()
    return " ".join(re.sub(rf"(\S{{{_LONGEST_WORD}}})(?=\S)", r"\1 ", text).split())


def _shipped_vocabulary() -> Path:
    """The vocabulary inside the installed open_clip, found without importing that package (which takes seconds)."""
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
        if path.is_file():
            return path
    raise CoDiError(f"CLIP's vocabulary is missing: put {VOCABULARY_FILE} into the model folder or `pip install open_clip_torch`")


def _read_merges(path: Path, count: int) -> list[tuple[str, str]]:
    """The first `count` merges of a vocabulary file."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1 : count + 1]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CoDiError(f"{path} is not a readable gzipped CLIP vocabulary: {error}") from error
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != count or any(len(merge) != 2 for merge in merges):
        found = sum(len(merge) == 2 for merge in merges)
        raise CoDiError(f"{path} holds {found} merges; this model's vocabulary of {count + 514} needs {count}")
    return merges  # type: ignore[return-value]


class CLIPTokenizer:
    """Text to token ids (B, text_positions): start token, byte pairs, end token, padded with the end token.

    `folder`: a model folder holding `clip_bpe.txt.gz`; where it (or the file) is absent and the config has CLIP's own
    vocabulary size, open_clip's shipped vocabulary serves. Raises CoDiError where the vocabulary is missing or does not fit.
    """

    def __init__(self, folder: str | Path | None, config: CLIPConfig) -> None:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        path = Path(folder) / VOCABULARY_FILE if folder is not None else None
        if path is None or not path.is_file():
            if config.vocab_size != CLIPConfig().vocab_size:
                raise CoDiError(f"{path or VOCABULARY_FILE} is missing; a model with a vocabulary of {config.vocab_size} needs its own")
            path = _shipped_vocabulary()
        self.length = config.text_positions
        merges = _read_merges(path, config.vocab_size - 514)
        symbols = list(byte_symbols().values())
        names = [*symbols, *(s + WORD_END for s in symbols), *(left + right for left, right in merges)]
        self.start, self.end = len(names), len(names) + 1
        # Two merges may spell one token; its later id is the one in use, as in the reference implementation.
        vocabulary = {name: i for i, name in enumerate(names)}
        self._ends_word = {i for name, i in vocabulary.items() if name.endswith(WORD_END)}
        self._bpe = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END, fuse_unk=False))
        pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(pattern, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip

    def encode(self, text: str) -> list[int]:
        """Ids of the byte pairs alone, any number."""
        return self._bpe.encode(clean(text), add_special_tokens=False).ids

    def windows(self, text: str) -> list[list[int]]:
        """Id rows of length text_positions that together hold every token of the text, cut between words where possible."""
        ids, rows, room = self.encode(text), [], self.length - 2
        while len(ids) > room:
            cut = next((i for i in range(room, room // 2, -1) if ids[i - 1] in self._ends_word), room)
            rows.append(self._row(ids[:cut]))
            ids = ids[cut:]
        return [*rows, self._row(ids)] if ids or not rows else rows

    def __call__(self, texts: list[str]) -> Tensor:
        """Ids (B, text_positions), int64; longer texts keep their beginning (`encode_prompts` reads all)."""
        return torch.tensor([self._row(self.encode(text)[: self.length - 2]) for text in texts], dtype=torch.long).view(-1, self.length)

    def _row(self, ids: list[int]) -> list[int]:
        return [self.start, *ids, *[self.end] * (self.length - 1 - len(ids))]


def encode_prompts(clip: CLIPEncoder, tokenizer: CLIPTokenizer, texts: list[str], *, batch_size: int = 64) -> Tensor:
    """Texts of any length as unit vectors (B, 1, D), float32.

    A text longer than the network's window is read in several; their embeddings are averaged, weighted by token count, and
    renormalised. One window is exactly the network's embedding. An empty text is a valid prompt; an empty list raises CoDiError.
    """
    if not texts:
        raise CoDiError("no text prompts were given; pass at least one text (an empty one is allowed)")
    windows = [tokenizer.windows(text) for text in texts]
    ids = torch.tensor([row for rows in windows for row in rows], dtype=torch.long)  # (windows, text_positions)
    device = clip.logit_scale.device
    parts = torch.cat([clip.encode_text(chunk.to(device)) for chunk in ids.split(batch_size)]).float()  # (windows, 1, D)
    if len(parts) == len(texts):
        return parts
    weight = (ids != tokenizer.end).sum(dim=1).to(parts)[:, None, None]  # filled positions
    owner = torch.tensor([i for i, rows in enumerate(windows) for _ in rows], device=parts.device)
    return F.normalize(parts.new_zeros(len(texts), *parts.shape[1:]).index_add(0, owner, parts * weight), dim=-1)


def build_clip_vocabulary(captions: Iterable[str], folder: str | Path, vocab_size: int = 640) -> Path:
    """Learn byte-pair merges from captions and write `folder/clip_bpe.txt.gz` for a vocabulary of exactly `vocab_size`.

    512 byte symbols and the two special tokens come first, so any text tokenises. A corpus with too few pairs is topped up
    with merges of white space and control bytes, which cleaned text never contains.
    """
    count = vocab_size - 514
    if count < 0:
        raise CoDiError(f"a CLIP vocabulary of {vocab_size} is too small: 256 bytes, each also as a word's end, and two tokens need 514")
    symbols = byte_symbols()
    words: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        for word in re.findall(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|[^\w\s]+|_+", clean(caption)):
            letters = [symbols[b] for b in word.encode("utf-8")]
            letters[-1] += WORD_END
            words[tuple(letters)] += 1
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, frequency in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += frequency
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))  # ties broken by spelling: the file is reproducible
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for word, frequency in words.items():
            merged[_merge(word, best)] += frequency
        words = merged
    unprinted = [symbols[b] for b in (*range(33), 127)]
    fillers = ((left, right) for left in unprinted for right in unprinted)
    merges += [pair for pair, _ in zip(fillers, range(count - len(merges)), strict=False)]
    if len(merges) < count:
        raise CoDiError(f"these captions give {len(merges)} merges, a vocabulary of {vocab_size} needs {count}: give more varied captions")
    path = Path(folder) / VOCABULARY_FILE
    temporary = path.with_name(path.name + ".part")
    text = "\n".join(["codi clip vocabulary 1", *(" ".join(pair) for pair in merges)])
    temporary.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
    os.replace(temporary, path)
    return path


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Every occurrence of the pair joined, from the left."""
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)

"""CLIP's byte-pair tokenizer: from the vocabulary that open_clip ships, or from one in a model folder."""

from __future__ import annotations

import gzip
import html
import importlib.util
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import CLIPConfig
from ..errors import CoDiError
from ..files import whole_file

if TYPE_CHECKING:
    from .clip import CLIPEncoder

VOCABULARY_FILE = "clip_bpe.txt.gz"
"""Name of the vocabulary in a model folder: a version line, then one merge "left right" a line, most frequent first."""

WORD_END = "</w>"
_STRAIGHT_QUOTES = str.maketrans({**dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"), **dict.fromkeys("\u201c\u201d\u201e\u201f", '"')})
_LONGEST_WORD = 256  # characters; longer runs are cut so that merging stays linear


def clean(text: str) -> str:
    """HTML entities resolved, quotes straight, Unicode composed, white space collapsed, lower case; absurdly long words cut."""
    text = html.unescape(html.unescape(str(text))).encode("utf-8", "replace").decode("utf-8")  # lone surrogates become "?"
    text = unicodedata.normalize("NFC", text.translate(_STRAIGHT_QUOTES)).lower()
    return " ".join(re.sub(rf"(\S{{{_LONGEST_WORD}}})(?=\S)", r"\1 ", text).split())


_LARGEST = 64 << 20  # bytes of a vocabulary; of more, which a small file may pretend to hold, the beginning is read


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
        with gzip.open(path) as file:
            lines = file.read(_LARGEST).decode("utf-8").split("\n")[1 : count + 1]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise CoDiError(f"{path} is not a readable gzipped CLIP vocabulary: {error}") from error
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != count or any(len(merge) != 2 for merge in merges):
        found = sum(len(merge) == 2 for merge in merges)
        raise CoDiError(f"{path} holds {found} merges; this model's vocabulary of {count + 514} needs {count}")
    return merges  # type: ignore[return-value]


def _byte_pairs(model: Any) -> Any:
    """A tokenizer of cleaned text: words, runs of other marks and single digits, as bytes."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    tokenizer = Tokenizer(model)
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern, behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    return tokenizer


class CLIPTokenizer:
    """Text to token ids (B, text_positions): start token, byte pairs, end token, padded with the end token.

    `folder`: a model folder holding `clip_bpe.txt.gz`; where it (or the file) is absent and the config has CLIP's own
    vocabulary size, open_clip's shipped vocabulary serves. Raises CoDiError where the vocabulary is missing or does not fit.
    """

    def __init__(self, folder: str | Path | None, config: CLIPConfig) -> None:
        from tokenizers import models, pre_tokenizers

        path = Path(folder) / VOCABULARY_FILE if folder is not None else None
        if path is None or not path.is_file():
            if config.vocab_size != CLIPConfig().vocab_size:
                raise CoDiError(f"{path or VOCABULARY_FILE} is missing; a model with a vocabulary of {config.vocab_size} needs its own")
            path = _shipped_vocabulary()
        self.length = config.text_positions
        merges = _read_merges(path, config.vocab_size - 514)
        symbols = sorted(pre_tokenizers.ByteLevel.alphabet())  # one character for each byte, in CLIP's order
        names = [*symbols, *(s + WORD_END for s in symbols), *(left + right for left, right in merges)]
        self.start, self.end = len(names), len(names) + 1
        # Two merges may spell one token; its later id is the one in use, as in the reference implementation.
        vocabulary = {name: i for i, name in enumerate(names)}
        self._ends_word = {i for name, i in vocabulary.items() if name.endswith(WORD_END)}
        self._bpe = _byte_pairs(models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END, fuse_unk=False))

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
    from tokenizers import models, pre_tokenizers, trainers

    count = vocab_size - 514
    if count < 0:
        raise CoDiError(f"a CLIP vocabulary of {vocab_size} is too small: 256 bytes, each also as a word's end, and two tokens need 514")
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = _byte_pairs(models.BPE(end_of_word_suffix=WORD_END))
    trainer = trainers.BpeTrainer(
        vocab_size=512 + count, initial_alphabet=symbols, end_of_word_suffix=WORD_END, special_tokens=[], show_progress=False
    )
    learner.train_from_iterator((clean(caption) for caption in captions), trainer)
    merges = [" ".join(pair) for pair in json.loads(learner.to_str())["model"]["merges"][:count]]
    unprinted = [symbol for symbol in symbols if ord(symbol) in range(0x100, 0x122)]  # what stands for bytes 0 to 32 and 127
    fillers = (f"{left} {right}" for left in unprinted for right in unprinted)
    merges += [pair for pair, _ in zip(fillers, range(count - len(merges)), strict=False)]
    if len(merges) < count:
        raise CoDiError(f"these captions give {len(merges)} merges, a vocabulary of {vocab_size} needs {count}: give more varied captions")
    path = Path(folder) / VOCABULARY_FILE
    with whole_file(path) as temporary:
        temporary.write_bytes(gzip.compress("\n".join(["codi clip vocabulary 1", *merges]).encode("utf-8"), mtime=0))
    return path

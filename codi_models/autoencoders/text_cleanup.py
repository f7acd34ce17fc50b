"""From the decoder's raw string to a caption: spaces before punctuation, stuttered words and repeated phrases go."""

from __future__ import annotations

OPENING, CLOSING = "([{", "?!.,:;}])"
_TIGHT = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def tighten(text: str) -> str:
    """Close up punctuation and English contractions: `the roof , loudly` -> `the roof, loudly`."""
    for spaced in _TIGHT:
        text = text.replace(spaced, spaced.strip())
    return text


def merge_adjacent(text: str) -> str:
    """Equal neighbouring words become one; words are what stands between white space."""
    words = text.split()
    return " ".join(word for i, word in enumerate(words) if i == 0 or word != words[i - 1])


def remove_repeats(text: str) -> str:
    """A phrase that directly follows itself is dropped, shortest phrases first; runs of punctuation alone stay."""
    pieces = _pieces(text)
    length = 1
    while 2 * length <= len(pieces):
        start = 0
        while start + 2 * length <= len(pieces):
            phrase = pieces[start : start + length]
            if phrase == pieces[start + length : start + 2 * length] and any(c.isalnum() for piece, _ in phrase for c in piece):
                del pieces[start + length : start + 2 * length]
            else:
                start += 1
        length += 1
    return "".join(piece if glued else f" {piece}" for piece, glued in pieces).strip()


def clean_caption(text: str) -> str:
    """Both steps, in the published order."""
    return remove_repeats(merge_adjacent(text))


def _pieces(text: str) -> list[tuple[str, bool]]:
    """Words and single punctuation marks, each with whether it stands directly after the piece before it."""
    pieces: list[tuple[str, bool]] = []
    for word in text.split():
        core = word.lstrip(OPENING)
        opening, core = word[: len(word) - len(core)], core.rstrip(CLOSING)
        closing = word[len(opening) + len(core) :]
        pieces += [(mark, i > 0) for i, mark in enumerate(opening)]
        pieces += [(core, bool(opening))] if core else []
        pieces += [(mark, True) for mark in closing]
    return pieces

"""Prompts in users' words: other names for the attributes, in any order, among words that mean nothing.

Only prompts are drawn from here; captions that a model makes keep to the templates of `world`."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from .world import BEAT_WORDS, BEATS, COLOURS, SHAPES

SHAPE_WORDS = {
    "circle": ("ball", "disc", "disk", "round thing", "dot"),
    "square": ("box", "cube", "block"),
    "triangle": ("pyramid", "wedge"),
    "star": ("five-pointed star", "asterisk"),
}
COLOUR_WORDS = {
    "red": ("scarlet", "crimson", "ruby"),
    "yellow": ("golden", "gold", "lemon"),
    "green": ("lime", "lime-green", "emerald"),
    "cyan": ("turquoise", "aqua", "light blue"),
    "blue": ("navy", "dark blue", "royal blue"),
    "magenta": ("pink", "fuchsia", "hot pink", "purple"),
}
BEAT_PHRASES = (
    ("one time", "1x", "a single time", "1 time", "1 x", "one bounce", "a single bounce"),
    ("two times", "2x", "2 times", "2 x", "two bounces", "2 bounces", "double", "a double bounce"),
    ("thrice", "3x", "3 times", "3 x", "three bounces", "3 bounces", "triple", "a triple bounce"),
)
VERBS = (
    ("bounces", "bouncing"), ("hops", "hopping"), ("jumps", "jumping"), ("hits the floor", "hitting the floor"),
    ("bounces off the ground", "bouncing off the ground"), ("hits the ground", "hitting the ground"), ("bounces up", "bouncing up"),
)  # fmt: skip

ADJECTIVES = (
    "big small tiny large huge little shiny happy sad pretty nice lovely beautiful ugly old new young smooth rough soft hard heavy "
    "fast slow quick lazy bright pale plain simple perfect glossy matte metallic wooden plastic glass rubber paper fuzzy fluffy "
    "cute funny silly strange weird magic glowing sparkling dusty clean dirty wet dry cold warm hot cool fresh fancy elegant "
    "modern ancient famous lonely friendly angry sleepy playful cheerful gentle wild noisy quiet loud bold solid flat thin thick "
    "tall short wide narrow good great amazing"
).split()
OPENINGS = (
    "please", "please show me", "show me", "i want", "i want to see", "i would like", "i'd like to see", "could you make",
    "can you draw", "make", "create", "generate", "draw", "a video of", "a clip of", "a picture of", "an image of", "the sound of",
    "a recording of", "there is", "imagine", "let me see", "give me", "now", "hello, i need", "we see", "here is", "this is",
    "look at", "a short movie of", "render", "we want",
)  # fmt: skip
PLACES = (
    "in a dark room", "on the floor", "in an empty room", "in the night", "at home", "on a grey background", "in the park",
    "outside", "in space", "on a table", "in the rain", "under the sky", "in my kitchen", "in slow motion", "on a stage",
    "in the snow", "at the beach", "in a forest", "in front of a wall", "on the street", "in the city", "at school",
    "over the ground", "on a sunny day",
)  # fmt: skip
ENDINGS = ("please", "thanks", "thank you", "for me", "now", "if you can", "and nothing else", "and then stops", "for my friend", "today")
SOMETHINGS = ("something", "an object", "a thing", "a shape", "it")
SEPARATORS = (" ", ", ", "; ", " and ", " - ", ", ", " ")


def users_words(rng: random.Random, shape: int, colour: int, beats: int, *, whole: float = 0.7) -> str:
    """One prompt about a scene, drawn from `rng`; with probability `whole` it says all three attributes, else one or two of them.

    shape, colour, beats: indices as everywhere in this package."""
    keep = [True] * 3
    if rng.random() > whole:
        keep = [rng.random() < 0.5 for _ in range(3)]
        keep[rng.randrange(3)] = True
    shape_name = _one(rng, SHAPES[shape], SHAPE_WORDS[SHAPES[shape]]) if keep[0] else ""
    colour_name = _one(rng, COLOURS[colour], COLOUR_WORDS[COLOURS[colour]]) if keep[1] else ""
    times = _one(rng, BEAT_WORDS[beats], BEAT_PHRASES[beats]) if keep[2] else ""
    text = (_listed if rng.random() < 0.3 else _sentence)(rng, shape_name, colour_name, times)
    if rng.random() < 0.35:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < 0.3:
        text = f"{text} {rng.choice(PLACES)}" if rng.random() < 0.7 else f"{rng.choice(PLACES)}{rng.choice((', ', ' '))}{text}"
    if rng.random() < 0.15:
        text = f"{text}{rng.choice((', ', ' '))}{rng.choice(ENDINGS)}"
    return _typed(rng, text)


def vocabulary() -> list[str]:
    """Every word that `users_words` may use, for the tokenizers."""
    tables = [*SHAPE_WORDS.values(), *COLOUR_WORDS.values(), *BEAT_PHRASES, *VERBS]
    named = [SHAPES, COLOURS, BEAT_WORDS, [str(b) for b in BEATS], *tables, ADJECTIVES, OPENINGS, PLACES, ENDINGS, SOMETHINGS]
    joints = ["is that which coloured in colour of the a an and shaped like looking with it does so there"]
    return [text for table in [*named, joints] for text in table]


def _one(rng: random.Random, name: str, others: Sequence[str]) -> str:
    return name if rng.random() < 0.35 else rng.choice(others)


def _filler(rng: random.Random) -> str:
    """An adjective that changes nothing, mostly a known one; sometimes letters that are no word, which stand for all other words."""
    if rng.random() < 0.75:
        return rng.choice(ADJECTIVES)
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))


def _noun(rng: random.Random, shape: str, colour: str) -> str:
    """Shape and colour as a phrase with or without its article."""
    before = [_filler(rng) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))]
    if not shape:
        thing = rng.choice(SOMETHINGS)
        return f"{thing} {rng.choice(('', '', 'that is ', 'in '))}{colour}".strip()
    if colour and rng.random() < 0.25:
        link = rng.choice(("that is {}", "in {}", "of {} colour", "which is {}", "coloured {}", "with the colour {}"))
        words = [*before, shape, link.format(colour)]
    elif colour:
        tint = colour + rng.choice(("", "", "", "-coloured", " coloured"))
        words = [*before, tint, shape]
        if len(before) > 1 and rng.random() < 0.5:
            words = [before[0], tint, before[1], shape]
    else:
        words = [*before, shape]
    text = " ".join(words)
    article = rng.choice(("a", "a", "the", "", "one", "this"))
    return f"{'an' if article == 'a' and text[0] in 'aeiou' else article} {text}".strip()


def _sentence(rng: random.Random, shape: str, colour: str, times: str) -> str:
    verb, going = rng.choice(VERBS)
    action = rng.choice((verb, going, f"that {verb}", f"which {verb}", f"is {going}", f"{going}"))
    if shape and colour and rng.random() < 0.15:
        return f"{_noun(rng, shape, '')} is {colour} and {verb} {times}".strip()
    noun = _noun(rng, shape, colour) if shape or colour else rng.choice(SOMETHINGS)
    if not times:
        return noun if rng.random() < 0.6 else f"{noun} {action}"
    if any(word in times for word in ("bounce", "double", "triple")):
        return rng.choice(
            (f"{noun} with {times}", f"{noun}, {times}", f"{times} of {noun}", f"{noun} {action} {times}", f"{times}: {noun}")
        )
    return rng.choice((
        f"{noun} {action} {times}", f"{noun} {action} {times}", f"{noun} {times}", f"{times} {verb} {noun}", f"{noun} that {times} {verb}",
        f"{going} {times}, {noun}", f"{times} {noun} {action}", f"{noun}, {going} {times}", f"{noun} {action} exactly {times}",
    ))  # fmt: skip


def _listed(rng: random.Random, shape: str, colour: str, times: str) -> str:
    parts = [part for part in (shape, colour, times) if part]
    parts += [_filler(rng) for _ in range(rng.choice((0, 0, 1)))]
    rng.shuffle(parts)
    return rng.choice(SEPARATORS).join(parts)


def _typed(rng: random.Random, text: str) -> str:
    """Punctuation as people type it; no tokenizer of prompts sees the case."""
    return text + rng.choice(("", "", ".", "!")) if rng.random() < 0.7 else text.replace(",", "")

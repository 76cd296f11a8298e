"""Make a corpus with planted near-duplicates from a seed.

The texts are sentences of invented words with the frequencies of a natural language (Zipf). A
planted text is a copy of another with words changed, left out or added: two thirds of them with few
changes, as in a repost or a correction, a third with too many to be a near-duplicate.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

SEED = 7
# Fewest and most words of a text, about 588 characters; texts of 100 to 400 characters are compared
# by their characters.
WORDS, CHAT_WORDS = (85, 135), (19, 75)
VOCABULARY = 30_000
SENTENCE_WORDS = (6, 18)
PLANTED_SHARE = 0.13
# Numbers of changed words and their frequencies. Each change touches up to three word 3-grams, so
# up to four changes leave a similarity of 0.8 or more, and six or more leave less.
EDITS = (1, 2, 3, 4, 6, 7, 8, 9)
EDIT_WEIGHTS = (40, 17, 7, 4, 8, 8, 8, 8)

_ONSETS = "b c d f g h j k l m n p r s t v w br cl dr fl gr pl sh st th".split()
_VOWELS = "a e i o u a e i o u a e i o u ai ea ee io ou".split()
_CODAS = ["", "", "", "", "", "", "n", "r", "s", "t", "l", "nd"]


def make_corpus(rows: int, seed: int = SEED, lengths: tuple[int, int] = WORDS) -> list[str]:
    """Make texts, a share of them near-duplicates of others; the same for the same seed.

    Args:
        lengths: fewest and most words of a text.
    """
    draw = random.Random(seed)  # noqa: S311 - reproducible on purpose
    words = _vocabulary(draw)
    weights = list(accumulate(1 / (rank + 2.7) for rank in range(len(words))))
    planted = round(rows * PLANTED_SHARE)
    texts = [
        draw.choices(words, cum_weights=weights, k=draw.randint(*lengths))
        for _ in range(rows - planted)
    ]
    originals = draw.sample(range(len(texts)), planted)
    texts += [_edited(texts[original], words, weights, draw) for original in originals]
    draw.shuffle(texts)
    return [_sentences(text, draw) for text in texts]


def _vocabulary(draw: random.Random) -> list[str]:
    """Make different words; the commonest are the shortest, as in any language."""
    found: dict[str, None] = {}
    while len(found) < VOCABULARY:
        rank = len(found)
        if rank < len(_ONSETS):
            word = draw.choice(_ONSETS) + draw.choice(_VOWELS)
        else:
            syllables = 1 + (rank > 3000 or (rank > 600 and draw.random() < 0.5))
            word = "".join(_syllable(draw) for _ in range(syllables))
        found[word] = None
    return list(found)


def _syllable(draw: random.Random) -> str:
    return draw.choice(_ONSETS) + draw.choice(_VOWELS) + draw.choice(_CODAS)


def _edited(
    text: Sequence[str], words: list[str], weights: list[float], draw: random.Random
) -> list[str]:
    edited = list(text)
    for _ in range(draw.choices(EDITS, EDIT_WEIGHTS)[0]):
        at = draw.randrange(len(edited))
        fresh = draw.choices(words, cum_weights=weights)
        kind = draw.randrange(3)
        edited[at : at + (kind != 1)] = [] if kind == 2 else fresh
    return edited


def _sentences(words: Sequence[str], draw: random.Random) -> str:
    """Write words as sentences; their ends are drawn again for each text, copies included."""
    parts, at = [], 0
    while at < len(words):
        length = draw.randint(*SENTENCE_WORDS)
        sentence = " ".join(words[at : at + length])
        comma = sentence.replace(" ", ", ", 1) if draw.random() < 0.3 else sentence
        parts.append(comma[0].upper() + comma[1:] + draw.choice(".....?!"))
        at += length
    return " ".join(parts)

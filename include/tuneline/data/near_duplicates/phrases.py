"""Find phrases that many answers share, on which a model overfits, and thin them out.

Word 5-grams in a share of all answers are thinned by removing rows; a sentence next to other text,
in a share of the answers of a class, is removed alone, since the rest is complete without it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.data.conversations.answers import answer_object, dump_like
from tuneline.data.near_duplicates.shingles import batches, grams_of, normalise, words_of

NGRAM = 5
MIN_WORDS = 4
# In a class with fewer answers a repeated phrase may be chance.
MIN_ANSWERS = 40
# A phrase in nearly every answer is the format that is to be learnt, not a bad habit.
FORMAT_SHARE = 0.9

# Cells in which 5-grams are counted.
_CELLS = 1 << 22

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class RepeatedSentence:
    """A sentence added to many answers of a class (`label` None: of the whole dataset)."""

    sentence: str
    label: str | None
    rows: int
    answers: int

    @property
    def share(self) -> float:
        """The share of the answers that have it."""
        return self.rows / self.answers


def prose(answer: str, label_field: str | None) -> list[str]:
    """Return the texts of an answer: itself, or the strings of a JSON object except its label."""
    value = answer_object(answer)
    if value is None:
        return [answer]
    return [v for k, v in value.items() if isinstance(v, str) and k != label_field]


def added_sentences(texts: Sequence[str]) -> set[str]:
    """Return the normalised sentences that have other text beside them."""
    found: set[str] = set()
    for text in texts:
        sentences = [normalise(part) for part in _SENTENCE_END.split(text)]
        sentences = [sentence for sentence in sentences if sentence]
        if len(sentences) > 1:
            found.update(s for s in sentences if len(s.split()) >= MIN_WORDS)
    return found


def repeated_sentences(
    texts: Sequence[Sequence[str]], labels: Sequence[str | None], share: float
) -> list[RepeatedSentence]:
    """Find the sentences in at least a share of the answers (`prose`) of a class, or of all."""
    members: dict[str | None, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[None].append(index)
        if label is not None:
            members[label].append(index)
    # Equal sentences are kept once.
    known: dict[str, str] = {}
    added = [tuple(known.setdefault(s, s) for s in added_sentences(text)) for text in texts]
    found = []
    for label, indices in members.items():
        if len(indices) < MIN_ANSWERS:
            continue
        counts = Counter(sentence for index in indices for sentence in added[index])
        found += [
            RepeatedSentence(sentence, label, count, len(indices))
            for sentence, count in counts.items()
            if count >= share * len(indices)
        ]
    return sorted(found, key=lambda s: (-s.rows, s.sentence, s.label or ""))


@dataclass(frozen=True)
class RepeatedNgram:
    """A word n-gram of a share of all answers."""

    ngram: str
    rows: int
    share: float


@dataclass(frozen=True)
class Ngrams:
    """The word 5-grams of a share of all answers, the commonest first, and those of each answer."""

    repeated: list[RepeatedNgram]
    having: list[frozenset[str]]

    @property
    def share(self) -> float:
        """The share of answers that hold any of them."""
        return sum(map(bool, self.having)) / max(len(self.having), 1)


def repeated_ngrams(texts: Sequence[Sequence[str]], share: float) -> Ngrams:
    """Find the word 5-grams of at least a share of all answers (`prose`), and of more than one."""
    least = max(share * len(texts), 2)
    grams = _frequent_ngrams(texts, least)
    counts = Counter(gram for row in grams for gram in row)
    repeated = [
        RepeatedNgram(gram, count, count / len(texts))
        for gram, count in counts.items()
        if count >= least
    ]
    known = {phrase.ngram for phrase in repeated}
    return Ngrams(
        sorted(repeated, key=lambda phrase: (-phrase.rows, phrase.ngram)),
        [frozenset(known & row) for row in grams],
    )


def crowding(texts: Sequence[Sequence[str]], order: Sequence[str], share: float) -> dict[int, str]:
    """Choose the answers to remove so that every 5-gram is in less than a share of the rest.

    A 5-gram of nearly all answers is their format, and stays; so do answers with the lowest
    `order`. Returned is the 5-gram that too many answers have, by the number of the answer.
    """
    found = repeated_ngrams(texts, share)
    having: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(texts)), key=lambda i: order[i]):
        for gram in found.having[index]:
            having[gram].append(index)
    phrases = [p.ngram for p in found.repeated if p.share < FORMAT_SHARE]
    gone: dict[int, str] = {}
    before = -1
    # With fewer answers left, a phrase that was below its share may reach it.
    while len(gone) > before:
        before = len(gone)
        for gram in phrases:
            left = [index for index in having[gram] if index not in gone]
            others = len(texts) - len(gone) - len(left)
            stay = max(0, ceil(share * others / (1 - share)) - 1) if share < 1 else len(left)
            gone |= dict.fromkeys(left[stay:], gram)
    return gone


def _frequent_ngrams(texts: Sequence[Sequence[str]], least: float) -> list[frozenset[str]]:
    """Return the word 5-grams of each answer, without most of those in fewer than `least`."""

    def cells(some: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shingled = grams_of(words_of(some), NGRAM)
        return (shingled.hashes & np.uint64(_CELLS - 1)).view(np.int64), shingled.offsets

    parts = [part for text in texts for part in text]
    counts = np.zeros(_CELLS, dtype=np.int64)
    for batch in batches(parts):
        # Not by `bincount`, which makes and adds a whole table for each batch.
        np.add.at(counts, cells(parts[batch])[0], 1)
    found: list[frozenset[str]] = []
    for batch in batches(parts):
        places, offsets = cells(parts[batch])
        wanted = counts[places] >= least
        for part, start, end in zip(parts[batch], offsets, offsets[1:], strict=False):
            # The n-grams that begin at the wanted words.
            if not (own := wanted[start:end]).any():
                found.append(frozenset())
                continue
            words = normalise(part).split()
            starts = np.flatnonzero(own[: max(len(words) - NGRAM + 1, 0)]).tolist()
            found.append(frozenset(" ".join(words[i : i + NGRAM]) for i in starts))
    each = iter(found)
    return [frozenset().union(*islice(each, len(text))) for text in texts]


def thin(
    answers: Sequence[str],
    labels: Sequence[str | None],
    order: Sequence[str],
    repeated: Sequence[RepeatedSentence],
    *,
    share: float,
    label_field: str | None,
) -> list[str]:
    """Remove repeated sentences until each is in less than a share; the lowest `order` keep it."""
    result = list(answers)
    for phrase in repeated:
        if phrase.share >= FORMAT_SHARE:
            continue
        scope = [i for i, label in enumerate(labels) if phrase.label in (None, label)]
        having = [
            i for i in scope if phrase.sentence in added_sentences(prose(result[i], label_field))
        ]
        # Strictly below the share.
        keep = max(0, ceil(share * len(scope)) - 1)
        for i in sorted(having, key=lambda i: order[i])[keep:]:
            result[i] = _without(result[i], phrase.sentence, label_field)
    return result


def _without(answer: str, sentence: str, label_field: str | None) -> str:
    """Remove a sentence from the texts of an answer; JSON stays JSON in its own style."""
    value = answer_object(answer)
    if value is None:
        return _remove(sentence, answer)
    changed: dict[str, Any] = {
        key: _remove(sentence, entry) if isinstance(entry, str) and key != label_field else entry
        for key, entry in value.items()
    }
    return answer if changed == value else dump_like(changed, answer)


def _remove(sentence: str, text: str) -> str:
    pieces = re.split(rf"({_SENTENCE_END.pattern})", text)
    kept: list[str] = []
    for part, gap in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        if normalise(part) != sentence:
            kept += [part, gap]
    return "".join(kept).strip() or text

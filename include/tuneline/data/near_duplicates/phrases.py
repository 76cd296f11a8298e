"""Phrases that stand in many answers: what a model overfits on.

Two looks: word 5-grams over a share of all answers, and whole sentences that are added to other
text in a share of the answers of a class (or of all). Only the latter can be taken out of an answer
without harm: what is left stands on its own. Of the answers with such a 5-gram, whole rows have to
go.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from tuneline.data.conversations.answers import answer_object, dump_like
from tuneline.data.near_duplicates.shingles import normalise

NGRAM = 5
MIN_WORDS = 4
# A class with fewer answers says nothing about what repeats.
MIN_ANSWERS = 40
# What stands in nearly every answer is the format that is to be learnt, not a bad habit.
FORMAT_SHARE = 0.9

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
        """Share of the answers that have it."""
        return self.rows / self.answers


def prose(answer: str, label_field: str | None) -> list[str]:
    """The running texts of an answer: itself, or the strings of a JSON object but its label."""
    value = answer_object(answer)
    if value is None:
        return [answer]
    return [v for k, v in value.items() if isinstance(v, str) and k != label_field]


def added_sentences(texts: Sequence[str]) -> set[str]:
    """Normalised sentences that stand beside other text."""
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
    """Sentences added to at least a share of the answers of a class, or of all.

    Args:
        texts: `prose` of each answer.
        labels: class of each answer.
        share: the share from which a sentence counts.
    """
    members: dict[str | None, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[None].append(index)
        if label is not None:
            members[label].append(index)
    added = [added_sentences(text) for text in texts]
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
    """Words that stand one after the other in a share of all answers."""

    ngram: str
    rows: int
    share: float


@dataclass(frozen=True)
class Ngrams:
    """The word 5-grams that stand in at least a share of all answers.

    Attributes:
        repeated: the commonest first.
        having: for each answer, those of them that it holds.
    """

    repeated: list[RepeatedNgram]
    having: list[frozenset[str]]

    @property
    def share(self) -> float:
        """Share of answers that hold any of them."""
        return sum(map(bool, self.having)) / max(len(self.having), 1)


def repeated_ngrams(texts: Sequence[Sequence[str]], share: float) -> Ngrams:
    """Word 5-grams that stand in at least a share of all answers, and in more than one.

    Args:
        texts: `prose` of each answer.
        share: the share from which an n-gram counts.
    """
    grams = [_ngrams(text) for text in texts]
    counts = Counter(gram for row in grams for gram in row)
    least = max(share * len(texts), 2)
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
    """The answers that have to go so that every 5-gram stands in less than a share of the rest.

    What nearly all answers have is their format, and stays.

    Args:
        texts: `prose` of each answer.
        order: what decides which answers stay; the lowest do.
        share: the share below which a 5-gram is no phrase.

    Returns:
        For the number of each answer that goes, the 5-gram that it has too many companions in.
    """
    found = repeated_ngrams(texts, share)
    having: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(texts)), key=lambda i: order[i]):
        for gram in found.having[index]:
            having[gram].append(index)
    phrases = [p.ngram for p in found.repeated if p.share < FORMAT_SHARE]
    gone: dict[int, str] = {}
    before = -1
    # Answers that go make the rest fewer, so that a phrase that was thin enough may be too thick.
    while len(gone) > before:
        before = len(gone)
        for gram in phrases:
            left = [index for index in having[gram] if index not in gone]
            others = len(texts) - len(gone) - len(left)
            stay = max(0, ceil(share * others / (1 - share)) - 1) if share < 1 else len(left)
            gone |= dict.fromkeys(left[stay:], gram)
    return gone


def _ngrams(texts: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for text in texts:
        words = normalise(text).split()
        found.update(" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))
    return found


def thin(
    answers: Sequence[str],
    labels: Sequence[str | None],
    order: Sequence[str],
    repeated: Sequence[RepeatedSentence],
    *,
    share: float,
    label_field: str | None,
) -> list[str]:
    """Take repeated sentences out of answers until each stands in at most a share of them.

    Args:
        answers: answers as they are.
        labels: their classes.
        order: what decides which answers keep the sentence; the lowest do.
        repeated: what `repeated_sentences` gave.
        share: the share that may stay.
        label_field: field of a JSON answer that is not prose.

    Returns:
        The answers, those that lost a sentence changed.
    """
    result = list(answers)
    for phrase in repeated:
        if phrase.share >= FORMAT_SHARE:
            continue
        scope = [i for i, label in enumerate(labels) if phrase.label in (None, label)]
        having = [
            i for i in scope if phrase.sentence in added_sentences(prose(result[i], label_field))
        ]
        # Strictly below the share from which a sentence counts as repeated.
        keep = max(0, -int(-share * len(scope) // 1) - 1)
        for i in sorted(having, key=lambda i: order[i])[keep:]:
            result[i] = _without(result[i], phrase.sentence, label_field)
    return result


def _without(answer: str, sentence: str, label_field: str | None) -> str:
    def clean(text: str) -> str:
        pieces = re.split(r"((?<=[.!?])\s+|\n+)", text)
        kept: list[str] = []
        for part, gap in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            if normalise(part) != sentence:
                kept += [part, gap]
        return "".join(kept).strip() or text

    return map_prose(answer, clean, label_field)


def map_prose(answer: str, change: Callable[[str], str], label_field: str | None) -> str:
    """Apply a change to the running texts of an answer; JSON stays JSON in its own style."""
    value = answer_object(answer)
    if value is None:
        return change(answer)
    changed: dict[str, Any] = {
        k: change(v) if isinstance(v, str) and k != label_field else v for k, v in value.items()
    }
    return answer if changed == value else dump_like(changed, answer)

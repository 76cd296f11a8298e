"""Find phrases that many answers share, and phrases of questions that force a label.

A sentence next to other text, in a share of the answers of a class, is removed from them: the rest
is complete without it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.artifacts.data import Trigger
from tuneline.data.conversations.answers import answer_object, dump_like
from tuneline.data.near_duplicates.shingles import normalise

MIN_WORDS = 4
# In a class with fewer answers a repeated phrase may be chance.
MIN_ANSWERS = 40
# A phrase in nearly every answer is the format that is to be learnt, not a bad habit.
FORMAT_SHARE = 0.9

# A phrase that forces a label: its most words, its fewest rows, its largest share of all rows, and
# the smallest share of its rows with that label. For half of those rows another class has to be
# likelier by SURE nats, TRIGGER_CLASSES of them in all (with few classes, 60 % of the others). The
# words of long texts (more than LONG different ones, median) make a class surer by themselves.
TRIGGER_WORDS, TRIGGER_ROWS, TRIGGER_SHARE, PURE = 3, 8, 0.05, 0.8
SURE, TRIGGER_CLASSES = 7.0, 8
LONG, SURE_OF_LONG = 20, 10.0

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


class _Classes:
    """Naive Bayes over the words of questions, which forgets rows without being fitted again."""

    def __init__(self, bag: Any, of: NDArray[np.intp], classes: int) -> None:
        members = np.eye(classes)[of]
        self.bag, self.counts, self.sizes = bag, (bag.T @ members).T, members.sum(axis=0) + 1
        self.words = np.log((self.counts + 0.5) / self.sizes[:, None])

    def without(
        self, rows: NDArray[np.intp], words: Sequence[int], label: int
    ) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Return the likeliest other class of rows without some words, and by how much, in nats.

        What it knows of their own class is from its other rows.
        """
        bag = self.bag[rows]
        left = self.counts[label] - np.asarray(bag.sum(axis=0)).ravel()
        bag.data[np.isin(bag.indices, words)] = 0
        size = self.sizes[label] - len(rows)
        scores = bag @ self.words.T + np.log(self.sizes)
        scores[:, label] = -np.inf
        own = bag @ np.log((left + 0.5) / size) + np.log(size)
        return scores.max(axis=1) - own, scores.argmax(axis=1)


def find_triggers(ids: Sequence[str], texts: Sequence[str], labels: Sequence[str]) -> list[Trigger]:
    """Find the phrases of normalised questions that force a label, each with its rows.

    Nearly all rows with such a phrase have one label; yet a classifier that has not seen them holds
    most of them, without the phrase, for surely of other classes, and of many. A word that belongs
    to a class comes with other words of the class.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    names, of = np.unique(labels, return_inverse=True)
    cut: dict[str, Any] = {"tokenizer": str.split, "token_pattern": None, "binary": True}
    phrases, words = CountVectorizer(ngram_range=(1, TRIGGER_WORDS), **cut), CountVectorizer(**cut)
    having = phrases.fit_transform(texts).tocsc()
    classes = _Classes(words.fit_transform(texts).tocsr().astype(float), of, len(names))
    known, found = phrases.get_feature_names_out(), []
    often = np.diff(having.indptr)
    sure = SURE_OF_LONG if np.median(np.diff(classes.bag.indptr)) > LONG else SURE
    for number in np.flatnonzero((often >= TRIGGER_ROWS) & (often <= TRIGGER_SHARE * len(texts))):
        rows = having.indices[having.indptr[number] : having.indptr[number + 1]]
        label = int(np.bincount(of[rows]).argmax())
        mine = rows[of[rows] == label]
        if len(mine) < max(TRIGGER_ROWS, PURE * len(rows)):
            continue
        own = [words.vocabulary_[word] for word in known[number].split()]
        margins, others = classes.without(mine, own, label)
        many = min(TRIGGER_CLASSES, ceil(0.6 * (len(names) - 1)))
        if np.median(margins) >= sure and len(set(others[margins >= sure])) >= many:
            place = {"label": str(names[label]), "rows": [ids[row] for row in mine]}
            found.append(Trigger(phrase=known[number], **place))
    return _whole(found)


def _whole(found: Sequence[Trigger]) -> list[Trigger]:
    """Leave out pieces of a phrase: those most of whose rows have a more frequent or longer one."""
    left: list[Trigger] = []
    for one in sorted(found, key=lambda one: (-len(one.rows), -len(one.phrase))):
        if all(2 * len({*one.rows} & {*other.rows}) <= len(one.rows) for other in left):
            left.append(one)
    return left

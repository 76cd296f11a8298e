"""Answers without a model: one constant answer, and that of the most similar training row.

A tuned model that a constant answer equals has learned no task. One that a table of its own
training rows equals may still be of use (it writes what no row says), but not for the task that
the metric measures, so that it is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tuneline.data.tables.rows import Row
from tuneline.harness.answers import Task
from tuneline.harness.rows import asked, spread

# Answers that are tried as the constant one, and training rows that they are tried on.
CONSTANTS, TRIED_ON = 30, 200
# Training rows that are searched for the most similar one; more are drawn from.
SEARCHED = 20_000
# Hold-out rows that are compared at once: their similarities take 10 MB.
_BLOCK = 64


def constant_answer(task: Task, train: Sequence[Row], seed: int) -> str:
    """Return the training answer that, given to every row, scores best on the training rows.

    For a task with labels it is an answer with the most frequent one.

    Args:
        task: the rule.
        train: the training rows, at least one.
        seed: seed of the rows that free texts are tried on.
    """
    if task.has_labels:
        named = [task.label(row.answer) for row in train]
        [(most, _)] = Counter(named).most_common(1)
        return train[named.index(most)].answer
    often = [text for text, _ in Counter(row.answer for row in train).most_common(CONSTANTS)]
    tried = [row.answer for row in spread(train, TRIED_ON, seed)]
    return max(often, key=lambda text: sum(task.score(text, expected) for expected in tried))


def nearest_answers(train: Sequence[Row], rows: Sequence[Row], seed: int) -> list[str]:
    """Return the answer of the most similar training row for each row.

    Similar are questions with a high cosine of their TF-IDF vectors over n-grams of 2 to 4
    characters within words.

    Args:
        train: the training rows, at least one; `SEARCHED` of them are searched.
        rows: the rows to answer.
        seed: seed of the draw of training rows.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = spread(train, SEARCHED, seed)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    vectors = vectorizer.fit_transform([f"{asked(row)} " for row in known]).T.tocsr()
    questions = vectorizer.transform([f"{asked(row)} " for row in rows])
    best: list[int] = []
    for start in range(0, len(rows), _BLOCK):
        similarity = (questions[start : start + _BLOCK] @ vectors).toarray()
        best += similarity.argmax(axis=1).tolist()
    return [known[at].answer for at in best]

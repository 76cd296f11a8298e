"""Find hold-out rows that say in other words what a row of training says.

The lexical check (`leakage`) counts shared character n-grams of whole texts and misses a row that
was rephrased. Here texts are compared as TF-IDF vectors of words, word pairs and character n-grams
inside words, by cosine, so that rare words in another order or form count. Vectors know no
synonyms; an embedding model would, but the project ships none.

What similarity is suspicious differs from task to task: two people who ask for the same thing use
the same words. The limit is therefore taken from the dataset itself: the similarity that training
rows reach to the nearest *other* training row of the same label, in 95 % of the cases. If the
hold-out is drawn like the training rows, 5 % of it lie above; what is more than that is the excess,
and its interval (Newcombe's for a difference of two shares, 1998) decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tuneline.config.evaluation import ParaphrasesConfig
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.tables.rows import TRAIN, Row
from tuneline.evidence import Measurement, measure
from tuneline.harness.intervals import Interval, wilson
from tuneline.harness.rows import asked, spread

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Share of ordinary training rows that lie below the threshold.
ORDINARY = 0.95
# Fewer training rows give no quantile of 95 %.
LEAST_ORDINARY = 40
# Rows that are compared; more would take minutes and decide no better.
MOST_HELD, MOST_TRAINED = 2_000, 20_000
# Training rows whose nearest other row gives the threshold.
MOST_ORDINARY = 1_000
EXAMPLES = 20
# Rows of one product of matrices.
_BLOCK = 128
_SEED = 20

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Paraphrase:
    """A hold-out row and the training row that resembles it most."""

    row_id: str
    other_id: str
    similarity: float
    text: str
    other_text: str


@dataclass(frozen=True)
class Paraphrases:
    """The hold-out rows that resemble training rows more than those resemble each other.

    Attributes:
        threshold: similarity that 95 % of the training rows stay below; None if there are too few.
        compared: hold-out rows that were compared.
        ordinary: training rows that the threshold was taken from.
        pairs: the hold-out rows above it, the most similar first.
        excess: their share beyond that of the training rows, with its interval.
    """

    threshold: float | None
    compared: int
    ordinary: int
    pairs: tuple[Paraphrase, ...] = ()
    excess: Interval | None = None


def find_paraphrases(held: Sequence[Row], seen: Sequence[Row]) -> Paraphrases:
    """Compare the hold-out rows with the training rows of the same label.

    Args:
        held: rows of the hold-out.
        seen: rows of training and validation.
    """
    trained = spread([row for row in seen if row.split == TRAIN], MOST_TRAINED, _SEED)
    asked_of = spread(held, MOST_HELD, _SEED)
    ordinary = spread(trained, MOST_ORDINARY, _SEED)
    if len(ordinary) < LEAST_ORDINARY:
        return Paraphrases(None, len(asked_of), len(ordinary))
    vectors = _vectors([asked(row) for row in (*trained, *asked_of)])
    of_trained, of_held = vectors[: len(trained)], vectors[len(trained) :]
    labels = [row.label for row in trained]
    # `spread` draws the same rows in the same order, so that the ordinary ones come first.
    at_home, _ = _nearest(
        of_trained[: len(ordinary)], labels[: len(ordinary)], of_trained, labels, itself=True
    )
    similar, nearest = _nearest(of_held, [row.label for row in asked_of], of_trained, labels)
    threshold = float(np.quantile(at_home, ORDINARY))
    above = np.flatnonzero(similar > threshold)
    pairs = [
        _pair(asked_of[at], trained[nearest[at]], float(similar[at]))
        for at in above[np.argsort(-similar[above], kind="stable")].tolist()
    ]
    excess = _difference(len(above), len(similar), int((at_home > threshold).sum()), len(at_home))
    return Paraphrases(threshold, len(asked_of), len(ordinary), tuple(pairs), excess)


def _pair(row: Row, other: Row, similarity: float) -> Paraphrase:
    return Paraphrase(row.row_id, other.row_id, round(similarity, 4), asked(row), asked(other))


def _vectors(texts: Sequence[str]) -> csr_matrix:
    """Return a vector of length 1 for each text: half of it words, half character n-grams."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    common: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32, "lowercase": False}
    words = TfidfVectorizer(ngram_range=(1, 2), tokenizer=str.split, token_pattern=None, **common)
    inside = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **common)
    normal = [normalise(text) or "empty" for text in texts]
    parts = [vectorizer.fit_transform(normal) for vectorizer in (words, inside)]
    return (hstack(parts) * np.float32(math.sqrt(0.5))).tocsr()


def _nearest(
    vectors: csr_matrix,
    labels: Sequence[str | None],
    others: csr_matrix,
    other_labels: Sequence[str | None],
    *,
    itself: bool = False,
) -> tuple[Vector, npt.NDArray[np.int_]]:
    """Return the similarity and the number of the nearest other row with the same label.

    Args:
        vectors: the rows.
        labels: their labels.
        others: the rows among which the nearest is looked for.
        other_labels: their labels.
        itself: whether the rows are the first of the others, and none is its own nearest.
    """
    best = np.zeros(len(labels))
    nearest = np.zeros(len(labels), dtype=np.int_)
    own, theirs = np.array(labels, dtype=object), np.array(other_labels, dtype=object)
    for label in set(labels):
        among = np.flatnonzero(theirs == label)
        rows = np.flatnonzero(own == label)
        if not among.size:
            continue
        columns = others[among].T.tocsc()
        for start in range(0, rows.size, _BLOCK):
            block = rows[start : start + _BLOCK]
            similar = (vectors[block] @ columns).toarray()
            if itself:
                similar[block[:, None] == among[None, :]] = 0.0
            at = similar.argmax(axis=1)
            best[block] = similar[np.arange(block.size), at]
            nearest[block] = among[at]
    return best, nearest


def _difference(above: int, rows: int, ordinary_above: int, ordinary: int) -> Interval:
    """Return the difference of two shares of different rows with Newcombe's interval."""
    first, second = wilson(above, rows), wilson(ordinary_above, ordinary)
    value = first.value - second.value
    lower = value - math.hypot(first.value - first.lower, second.upper - second.value)
    upper = value + math.hypot(first.upper - first.value, second.value - second.lower)
    return Interval(value, lower, upper, math.hypot(first.error, second.error))


def paraphrase_measurements(found: Paraphrases, config: ParaphrasesConfig) -> list[Measurement]:
    """State how many rows lie above the threshold, and judge the excess by its lower end."""
    if found.threshold is None or found.excess is None:
        why = f"fewer than {LEAST_ORDINARY} training rows to compare with"
        return [measure("paraphrases_of_training_rows", f"not judged: {why}", "")]
    return [
        measure("paraphrases_of_training_rows", len(found.pairs), "rows"),
        measure("rows_compared_for_paraphrases", found.compared, "rows"),
        measure("paraphrase_similarity_from", round(found.threshold, 4), "cosine"),
        measure(
            "paraphrase_excess",
            round(found.excess.value, 4),
            "share",
            noise=round(found.excess.error, 4),
        ),
        measure(
            "paraphrase_excess_lower",
            round(found.excess.lower, 4),
            "share",
            "<=",
            config.max_excess,
            on_breach=config.on_excess,
        ),
    ]


def without_paraphrases(
    found: Paraphrases, rows: Sequence[Row], scores: Sequence[float]
) -> list[Measurement]:
    """State the candidate's metric on the rows that resemble no training row so much."""
    like = {pair.row_id for pair in found.pairs}
    others = [score for row, score in zip(rows, scores, strict=True) if row.row_id not in like]
    if not like or not others:
        return []
    mean = sum(others) / len(others)
    return [measure("tuned_metric_without_paraphrases", round(mean, 4), "share")]


def paraphrases_document(found: Paraphrases) -> dict[str, object]:
    """Return the content of `paraphrases.json`, with the most similar pairs as examples."""
    return {
        "method": "TF-IDF cosine of words, word pairs and character n-grams, within a label",
        "threshold": found.threshold,
        "rows_compared": found.compared,
        "ordinary_training_rows": found.ordinary,
        "rows_above": [pair.row_id for pair in found.pairs],
        "examples": [asdict(pair) for pair in found.pairs[:EXAMPLES]],
    }

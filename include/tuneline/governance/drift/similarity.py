"""Likeness of prompts: hashed n-grams of characters and words, and the mean of the nearest ten.

No model and no vocabulary: n-grams that training never had count in full, which makes a new topic
far from everything. docs/decisions/0060 has the measurements against other embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEIGHBOURS = 10
# Characters of a prompt that are looked at. What a prompt is about shows long before.
MOST_CHARS = 4000
BUCKETS = 2**18
# Parts of the unit length for n-grams of characters and for words.
CHARACTERS, WORDS = 0.8, 0.6
_BLOCK = 256


@dataclass(frozen=True)
class Embedding:
    """Inverse document frequencies of n-grams.

    Attributes:
        idf: of character n-grams and of words, shape (BUCKETS,) each.
    """

    idf: tuple[Any, Any]

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Embedding:
        """Return the embedding of training prompts."""
        found = []
        for counts in _counts(texts):
            frequency = np.bincount(counts.indices, minlength=BUCKETS)
            idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
            found.append(idf.astype(np.float32))
        return cls((found[0], found[1]))

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return a sparse matrix with a row of unit length for each text."""
        from scipy import sparse
        from sklearn.preprocessing import normalize

        if not texts:
            return sparse.csr_matrix((0, 2 * BUCKETS), dtype=np.float32)
        parts = []
        weights = (CHARACTERS, WORDS)
        for counts, idf, weight in zip(_counts(texts), self.idf, weights, strict=True):
            counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
            parts.append(normalize(counts) * np.float32(weight))
        return sparse.hstack(parts, format="csr")


def _counts(texts: Sequence[str]) -> list[Any]:
    from sklearn.feature_extraction.text import HashingVectorizer

    cut = [text[:MOST_CHARS].lower() for text in texts]
    settings: dict[str, Any] = {
        "n_features": BUCKETS,
        "alternate_sign": False,
        "norm": None,
        "dtype": np.float32,
    }
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 3), **settings)
    # Words of one letter count too: in some languages they are all that there is.
    words = HashingVectorizer(token_pattern=r"(?u)\w+", **settings)  # noqa: S106 - of words
    return [characters.transform(cut), words.transform(cut)]


def strangeness(queries: Any, reference: Any, own: NDArray[np.int64] | None = None) -> Floats:
    """Return 1 minus the mean similarity of each query to its nearest reference rows.

    Args:
        queries: rows of unit length.
        reference: rows of unit length.
        own: index in the reference of each query, which does not count as its own neighbour.
    """
    near = min(NEIGHBOURS, reference.shape[0] - (own is not None))
    found = np.empty(queries.shape[0])
    transposed = reference.T.tocsr()
    # Blocks of the similarity matrix keep memory bounded.
    for start in range(0, queries.shape[0], _BLOCK):
        block = (queries[start : start + _BLOCK] @ transposed).toarray()
        if own is not None:
            block[np.arange(len(block)), own[start : start + _BLOCK]] = -1
        block.partition(block.shape[1] - near, axis=1)
        found[start : start + len(block)] = 1 - block[:, -near:].mean(axis=1)
    return found

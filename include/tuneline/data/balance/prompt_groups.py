"""Put rows without a class into groups of similar prompts.

TF-IDF, truncated SVD (Deerwester et al., 1990) and k-means on mini-batches (Sculley, 2010), fitted
to distinct texts in the order of their hashes, on one thread, so that neither the order of rows nor
the number of cores changes a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.data.near_duplicates.split import cluster_hash

# In fewer distinct prompts, groups are chance and would not be found again in other rows.
MIN_TEXTS = 200
# The number of groups grows with the square root of the number of texts, as in the rule of thumb
# sqrt(n / 2), with about twenty texts to learn each from, and at most fifty for people to read.
TEXTS_PER_SQUARE, MAX_GROUPS = 20, 50
# Most texts that the groups are learnt from, and words of each that count: the subject of a prompt
# is in its beginning.
LEARNT_FROM, WORDS = 20_000, 100
# A word in a greater share of texts is not about the subject; one in fewer texts is a name or typo.
MAX_SHARE, MIN_USES = 0.3, 3
FEATURES, DIMENSIONS, SEED = 1 << 14, 50, 0
TERMS = 3


@dataclass(frozen=True)
class PromptGroups:
    """The group of each text, and the cosine distance to its middle, 0 to 2."""

    names: list[str]
    distances: list[float]


def group_count(texts: int) -> int:
    """Return the number of groups for a number of distinct texts."""
    return max(2, min(MAX_GROUPS, int((texts / TEXTS_PER_SQUARE) ** 0.5)))


def group_prompts(texts: Sequence[str]) -> PromptGroups | None:
    """Put texts into groups by common words; None for too few texts or no common words."""
    from threadpoolctl import threadpool_limits

    distinct = sorted(set(texts), key=cluster_hash)
    if len(distinct) < MIN_TEXTS:
        return None
    with threadpool_limits(1):
        return _grouped(texts, distinct[:LEARNT_FROM], group_count(len(distinct)))


def _grouped(texts: Sequence[str], learnt: Sequence[str], count: int) -> PromptGroups | None:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    def words(text: str) -> list[str]:
        return [w for w in text.split()[:WORDS] if len(w) > 1 and w not in ENGLISH_STOP_WORDS]

    weigh = TfidfVectorizer(
        analyzer=words,
        max_df=MAX_SHARE,
        min_df=MIN_USES,
        max_features=FEATURES,
        sublinear_tf=True,
        dtype=np.float32,
    )
    try:
        known = weigh.fit_transform(learnt)
    except ValueError:
        # Every word is in too few texts or in too many.
        return None
    dimensions = min(DIMENSIONS, known.shape[1] - 1)
    if dimensions < 2:
        return None
    project = TruncatedSVD(dimensions, n_iter=2, random_state=SEED)
    cluster = MiniBatchKMeans(count, batch_size=4096, n_init=3, max_iter=30, random_state=SEED)
    cluster.fit(_unit(project.fit_transform(known)))
    middles = _unit(cluster.cluster_centers_)
    likeness = _unit(project.transform(weigh.transform(texts))) @ middles.T
    chosen = likeness.argmax(axis=1)
    named = _names(middles @ project.components_, weigh.get_feature_names_out())
    distances = 1 - likeness[np.arange(len(chosen)), chosen]
    return PromptGroups([named[i] for i in chosen.tolist()], distances.astype(float).tolist())


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, 1e-12)


def _names(weights: NDArray[Any], terms: Sequence[str]) -> list[str]:
    """Return the heaviest terms of each group, with a number if two groups have the same."""
    names: list[str] = []
    for row in weights:
        top = np.lexsort((np.arange(len(row)), -row))[:TERMS]
        name = " ".join(str(terms[i]) for i in top)
        names.append(name if name not in names else f"{name} ({len(names)})")
    return names

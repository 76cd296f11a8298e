"""Drift measures over prompts: pure functions, each with its null distribution.

Three measures that see different changes:

* novelty: share of prompts that are farther from their nearest training prompt than 95 % of
  the held-out prompts, by one-sided binomial test. Sees new topics.
* maximum mean discrepancy (Gretton et al., JMLR 2012) by permutation test. Sees a shift
  of the whole distribution.
* population stability index of prompt length, its null by resampling the reference. Sees
  a change of form.

Similarity is the cosine of TF-IDF character n-grams. It needs no model, and on small windows it
sees new topics as well as sentence embeddings do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Share of held-out prompts that are novel under the null.
NOVELTY_NULL_SHARE = 0.05
PERMUTATIONS = 200
MMD_MAX_ROWS = 500
PSI_BINS = 10


@dataclass(frozen=True)
class Measure:
    """One drift measure against its limit on the p-value."""

    name: str
    value: float
    p_value: float
    limit: float

    @property
    def drifted(self) -> bool:
        """True if the measure calls drift."""
        return self.p_value < self.limit

    def as_dict(self) -> dict[str, Any]:
        """Return the measure as `tuneline drift --json` prints it."""
        return {
            "name": self.name,
            "value": round(self.value, 6),
            "p_value": round(self.p_value, 6),
            "limit": self.limit,
            "drifted": self.drifted,
        }


@dataclass(frozen=True)
class Baseline:
    """The reference of drift.

    Attributes:
        train: training prompts.
        held_out: prompts of the same distribution that were not trained on.
    """

    train: Sequence[str]
    held_out: Sequence[str]


def compare(
    baseline: Baseline, window: Sequence[str], p_value: float, seed: int = 7
) -> list[Measure]:
    """Compare a window of production prompts with the training distribution.

    Args:
        baseline: the reference.
        window: production prompts.
        p_value: limit for the family of measures (Bonferroni: each gets a third).
        seed: seed of the permutations.

    Returns:
        The three measures.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    rng = np.random.default_rng(seed)
    limit = p_value / 3
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, dtype=np.float32
    )
    train = vectorizer.fit_transform([t.lower() for t in baseline.train])
    held = vectorizer.transform([t.lower() for t in baseline.held_out])
    seen = vectorizer.transform([t.lower() for t in window])
    share, novelty_p = novelty(nearest(held, train), nearest(seen, train))
    mmd, mmd_p = mmd_test(train, seen, rng)
    psi, psi_p = psi_test(
        np.array([len(t) for t in [*baseline.train, *baseline.held_out]], dtype=float),
        np.array([len(t) for t in window], dtype=float),
        rng,
    )
    return [
        Measure("novelty_share", share, novelty_p, limit),
        Measure("mmd2", mmd, mmd_p, limit),
        Measure("length_psi", psi, psi_p, limit),
    ]


def nearest(queries: Any, reference: Any) -> Floats:
    """Return the cosine similarity of each query to its nearest reference row, of unit length."""
    best = np.empty(queries.shape[0])
    # Blocks of the similarity matrix keep memory bounded.
    for start in range(0, queries.shape[0], 256):
        block = (queries[start : start + 256] @ reference.T).toarray()
        best[start : start + 256] = block.max(axis=1)
    return best


def novelty(held_out: Floats, window: Floats) -> tuple[float, float]:
    """Return the share of novel prompts and the p-value of as many by chance.

    Args:
        held_out: nearest similarities of held-out prompts, shape (m,).
        window: nearest similarities of production prompts, shape (n,).
    """
    from scipy.stats import binomtest

    threshold = float(np.quantile(held_out, NOVELTY_NULL_SHARE))
    novel = int((window < threshold).sum())
    # The threshold is an estimate too. The null share is raised by twice its standard error;
    # otherwise a small hold-out would call drift on clean data.
    noise = np.sqrt(NOVELTY_NULL_SHARE * (1 - NOVELTY_NULL_SHARE) / len(held_out))
    null = min(0.99, NOVELTY_NULL_SHARE + 2 * float(noise))
    p = binomtest(novel, len(window), null, alternative="greater").pvalue
    return novel / len(window), float(p)


def mmd_test(reference: Any, window: Any, rng: np.random.Generator) -> tuple[float, float]:
    """Return the squared MMD with the linear kernel of TF-IDF rows, and its permutation p-value."""
    a = _draw(reference, rng)
    b = _draw(window, rng)
    from scipy import sparse

    both = sparse.vstack([a, b]).tocsr()
    kernel = (both @ both.T).toarray()
    n, total = a.shape[0], both.shape[0]
    labels = np.zeros(total)
    labels[:n] = 1
    observed = _mmd2(kernel, labels)
    null = [_mmd2(kernel, rng.permutation(labels)) for _ in range(PERMUTATIONS)]
    return observed, _permutation_p(observed, null)


def _draw(rows: Any, rng: np.random.Generator) -> Any:
    if rows.shape[0] <= MMD_MAX_ROWS:
        return rows
    return rows[np.sort(rng.choice(rows.shape[0], MMD_MAX_ROWS, replace=False))]


def _mmd2(kernel: Floats, labels: Floats) -> float:
    """Return the unbiased squared MMD of a kernel matrix and 0/1 labels."""
    x, y = labels, 1 - labels
    n, m = x.sum(), y.sum()
    diagonal = np.diag(kernel)
    within_x = (x @ kernel @ x - diagonal @ x) / (n * (n - 1))
    within_y = (y @ kernel @ y - diagonal @ y) / (m * (m - 1))
    return float(within_x + within_y - 2 * (x @ kernel @ y) / (n * m))


def psi_test(reference: Floats, window: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """Return the population stability index over the reference's quantile bins, and its p-value."""
    edges = np.quantile(reference, np.linspace(0, 1, PSI_BINS + 1))[1:-1]
    expected = _shares(reference, edges)
    observed = _psi(expected, _shares(window, edges))
    null = [
        _psi(expected, _shares(rng.choice(reference, len(window)), edges))
        for _ in range(PERMUTATIONS * 5)
    ]
    return observed, _permutation_p(observed, null)


def _shares(values: Floats, edges: Floats) -> Floats:
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    # Half a row in each bin keeps the logarithm finite where a bin is empty.
    return (counts + 0.5) / (counts.sum() + 0.5 * len(counts))


def _psi(expected: Floats, actual: Floats) -> float:
    return float(((actual - expected) * np.log(actual / expected)).sum())


def _permutation_p(observed: float, null: Sequence[float]) -> float:
    """Return the share of the null at least as extreme; the observed value counts as a draw."""
    return (1 + sum(value >= observed for value in null)) / (1 + len(null))

"""Benchmark near-duplicates: the project's MinHash against datasketch and rensa, on one core.

The time is from raw texts to pairs. Recall and precision are against all pairs with a Jaccard
similarity of 0.8 or more, found by comparing all pairs. Ours verifies its candidates, the peers
leave that to the caller. Exact duplicates are removed beforehand for all systems.
"""

from __future__ import annotations

from statistics import fmean

from benchmarks.contest.contest import Contest, Options, System, installed, speed_results
from benchmarks.contest.report import Report, ratios_of
from benchmarks.contest.trial import write_lines
from benchmarks.texts.dedup_trials import THRESHOLD, Pair, groups, plain
from benchmarks.workloads.input_rows import read_texts
from benchmarks.workloads.near_duplicates import make_corpus
from tuneline.errors import UserError

ROWS = 10_000
RUNS = 5
# With more rows a run is long enough for fewer of them.
MANY_ROWS, RUNS_OF_MANY = 50_000, 2
# With more rows, the peers' indexes and the exact pairs take tens of gigabytes.
MOST_ROWS = 200_000
# Rows of one product.
BLOCK = 256
MODULE = "benchmarks.texts.dedup_trials"
SYSTEMS = (
    System("tuneline", f"{MODULE}:tuneline"),
    System("datasketch", f"{MODULE}:datasketch"),
    System("datasketch (xxHash)", f"{MODULE}:datasketch", {"xxhash": True}),
    # 16 bands find nearly all pairs, and many false ones.
    System("rensa", f"{MODULE}:rensa", {"bands": 16}, ("rensa",), peer=True),
)
RATIOS = {
    "docs_per_s_vs_rensa": ("docs_per_s", "tuneline", "rensa"),
    "docs_per_s_vs_datasketch_bulk": ("docs_per_s", "tuneline", "datasketch"),
    "docs_per_s_vs_datasketch_bulk_xxhash": ("docs_per_s", "tuneline", "datasketch (xxHash)"),
}


def run(options: Options) -> Report:
    """Measure all systems in turn."""
    if (options.rows or 0) > MOST_ROWS:
        raise UserError(f"--rows must be {MOST_ROWS:,} or fewer for the benchmark of duplicates")
    if options.input:
        raw = read_texts(options.input, options.rows)
    else:
        raw = make_corpus(options.rows or ROWS)
    distinct = {plain(text): text for text in reversed(raw)}
    texts = [text for compared, text in reversed(distinct.items()) if compared]
    options.log(f"finding all pairs among {len(texts)} texts by exact similarity")
    truth = exact_pairs(texts)
    job = {
        "texts": write_lines(options.folder / "texts.jsonl", texts),
        "truth": write_lines(options.folder / "truth.jsonl", sorted(truth)),
    }
    workload = {
        "rows": len(texts),
        "mean_chars": round(fmean(map(len, texts))),
        "exact_duplicates": len(raw) - len(texts),
        **options.source,
        "pairs": len(truth),
    }
    runs = options.runs or (RUNS if len(texts) < MANY_ROWS else RUNS_OF_MANY)
    systems, missing = installed(SYSTEMS, RATIOS)
    samples = Contest(options, one_core=True).measure(systems, job, runs)
    results = speed_results(samples, "docs")
    return Report(workload, results, ratios_of(results, RATIOS), missing)


def exact_pairs(texts: list[str]) -> set[Pair]:
    """Return all pairs that are near-duplicates, by products of the matrix of all n-grams."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    compared = [plain(text) for text in texts]
    found: set[Pair] = set()
    for numbers, grams in groups(compared):
        # Each row has a 1 in the column of each n-gram of its text.
        sets = CountVectorizer(analyzer=grams, binary=True, dtype=np.int32).fit_transform(
            compared[number] for number in numbers
        )
        sizes, at = np.diff(sets.indptr), np.array(numbers)
        for start in range(0, len(numbers), BLOCK):
            shared = (sets[start : start + BLOCK] @ sets.T).tocoo()
            i, j = shared.row + start, shared.col
            near = (i < j) & (shared.data >= THRESHOLD * (sizes[i] + sizes[j] - shared.data))
            found.update(zip(at[i[near]].tolist(), at[j[near]].tolist(), strict=True))
    return found

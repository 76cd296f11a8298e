"""Benchmark near-duplicates: the project's MinHash against datasketch and rensa, on one core.

The time is from raw texts to pairs. Recall and precision are against all pairs with a Jaccard
similarity of 0.8 or more, found by comparing all pairs. Ours verifies its candidates, the peers
leave that to the caller. Exact duplicates are removed beforehand for all systems. Ours and rensa
are also compared on texts of 100 to 400 characters. With more rows than the peers have memory for,
ours is measured alone and compared with itself on fewer rows.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, median
from typing import Any

from benchmarks.contest.contest import (
    Contest,
    Options,
    System,
    bench_python,
    speed_results,
    why_missing,
)
from benchmarks.contest.report import NotMeasured, Report, Result, ratio
from benchmarks.contest.trial import Sample
from benchmarks.texts.dedup_trials import THRESHOLD, Pair, groups, plain
from benchmarks.workloads.input_rows import read_texts, write_lines
from benchmarks.workloads.near_duplicates import CHAT_WORDS, SEED, make_corpus

ROWS = 10_000
RUNS = 5
# With more rows a run is long enough for fewer of them.
MANY_ROWS, RUNS_OF_MANY = 50_000, 2
CHAT_ROWS = 20_000
# With more rows, the peers' indexes take tens of gigabytes.
MOST_ROWS = 200_000
# The number of rows with which a larger number is compared.
BASE_ROWS = 115_000
# Rows of one product.
BLOCK = 256
TOO_MANY = f"more than {MOST_ROWS:,} rows would need too much memory"
OURS = "tuneline"
MODULE = "benchmarks.texts.dedup_trials"
TRIAL = f"{MODULE}:tuneline"
# 16 bands find nearly all pairs, and many false ones.
RENSA, BANDS = "rensa", 16
CHAT_RATIO = "docs_per_s_vs_rensa_chat_texts"
RATIOS = {
    "docs_per_s_vs_rensa": RENSA,
    "docs_per_s_vs_datasketch_bulk": "datasketch",
    "docs_per_s_vs_datasketch_bulk_xxhash": "datasketch (xxHash)",
}


def run(options: Options) -> Report:
    """Measure all systems in turn."""
    if (options.rows or 0) > MOST_ROWS and options.input is None:
        return _many(options)
    texts, workload = _texts(options)
    runs = options.runs or (RUNS if len(texts) < MANY_ROWS else RUNS_OF_MANY)
    contest = Contest(options.folder, options.log, one_core=True)
    options.log(f"finding all pairs among {len(texts)} texts by exact similarity")
    job = _job(options, texts)
    workload["pairs"] = job.pop("pairs")
    systems, missing = contenders()
    results = speed_results(contest.measure(systems, job, runs), "docs")
    found = {name: ratio(results, "docs_per_s", OURS, peer) for name, peer in RATIOS.items()}
    if options.input is None:
        chat = _chat(options, contest, systems, runs)
        results += chat
        found[CHAT_RATIO] = ratio(chat, "docs_per_s_chat_texts", OURS, RENSA)
    ratios = {name: value for name, value in found.items() if value is not None}
    return Report(workload, results, ratios, missing)


def _job(options: Options, texts: list[str]) -> dict[str, Any]:
    """Return the job over texts whose pairs are known; `pairs` is the number of pairs."""
    truth = exact_pairs(texts)
    return {
        "texts": write_lines(options.folder / "texts.jsonl", texts),
        "truth": write_lines(options.folder / "truth.jsonl", sorted(truth)),
        "pairs": len(truth),
    }


def _chat(options: Options, contest: Contest, systems: list[System], runs: int) -> list[Result]:
    """Measure ours and rensa on texts of 100 to 400 characters."""
    texts = make_corpus(CHAT_ROWS, lengths=CHAT_WORDS)
    distinct = list({plain(text): text for text in texts}.values())
    options.log(f"{len(distinct)} texts of 100 to 400 characters")
    chosen = [system for system in systems if system.name in (OURS, RENSA)]
    measured = speed_results(contest.measure(chosen, _job(options, distinct), runs), "docs")
    return [replace(result, metric=f"{result.metric}_chat_texts") for result in measured]


def _many(options: Options) -> Report:
    """Measure ours with many rows, against itself with `BASE_ROWS`."""
    runs = options.runs or RUNS
    contest = Contest(options.folder, options.log, one_core=True)
    seconds: list[float] = []
    workload: dict[str, Any] = {"rows": options.rows, "base_rows": BASE_ROWS, "seed": SEED}
    samples: dict[str, list[Sample]] = {}
    for rows in (BASE_ROWS, options.rows or 0):
        texts = make_corpus(rows)
        workload["mean_chars"] = round(fmean(map(len, texts)))
        job = {"texts": write_lines(options.folder / f"texts-{rows}.jsonl", texts)}
        del texts
        name = OURS if rows != BASE_ROWS else f"{OURS} ({BASE_ROWS:,} rows)"
        samples |= contest.measure([System(name, TRIAL)], job, runs)
        seconds.append(median(sample.cpu_seconds for sample in samples[name]))
    results = speed_results(samples, "docs")
    ratios = {"cpu_seconds_vs_base_rows": round(seconds[1] / seconds[0], 3)}
    missing = [NotMeasured(peer, TOO_MANY, (name,)) for name, peer in RATIOS.items()]
    return Report(workload, results, ratios, missing)


def contenders() -> tuple[list[System], list[NotMeasured]]:
    """Return the systems that are installed, and those that are not."""
    systems = [
        System(OURS, TRIAL),
        System("datasketch", f"{MODULE}:datasketch"),
        System("datasketch (xxHash)", f"{MODULE}:datasketch", {"xxhash": True}),
    ]
    python = bench_python()
    reason = why_missing(RENSA, python)
    if reason is None:
        return [*systems, System(RENSA, f"{MODULE}:rensa", {"bands": BANDS}, python)], []
    return systems, [NotMeasured(RENSA, reason, ("docs_per_s_vs_rensa", CHAT_RATIO))]


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


def _texts(options: Options) -> tuple[list[str], dict[str, Any]]:
    if options.input:
        raw = read_texts(options.input, options.rows)
        workload: dict[str, Any] = {"input": options.input.name}
    else:
        raw = make_corpus(options.rows or ROWS)
        workload = {"seed": SEED}
    distinct = {plain(text): text for text in reversed(raw)}
    texts = [text for compared, text in reversed(distinct.items()) if compared]
    sizes = {"rows": len(texts), "mean_chars": round(fmean(map(len, texts)))}
    return texts, {**sizes, "exact_duplicates": len(raw) - len(texts), **workload}

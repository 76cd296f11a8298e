"""Near-duplicates: the project's kernels against datasketch and rensa, on one core.

End to end from raw texts to pairs. Recall and precision are against all pairs with an exact
Jaccard similarity of 0.8 or more; ours verifies its candidates, the peers leave that to the
caller. Exact duplicates are taken out before, for everyone.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from tuneline.bench.contest import Contest, System, speed_results
from tuneline.bench.dedup_trials import THRESHOLD, groups, plain
from tuneline.bench.exact_jaccard import Pair, similar_pairs
from tuneline.bench.input_rows import read_texts, write_lines
from tuneline.bench.machine import describe
from tuneline.bench.near_duplicates import SEED, make_corpus
from tuneline.bench.options import Options
from tuneline.bench.peers import bench_python, why_missing
from tuneline.bench.report import NotMeasured, Report, ratio

ROWS = 10_000
RUNS = 5
OURS = "tuneline"
# rensa's own benchmarks take 8 bands; 16 find nearly everything, and much that is not there.
RENSA = {"rensa": 16, "rensa (8 bands)": 8}
RATIOS = {
    "docs_per_s_vs_rensa": "rensa",
    "docs_per_s_vs_rensa_8_bands": "rensa (8 bands)",
    "docs_per_s_vs_datasketch_bulk": "datasketch",
    "docs_per_s_vs_datasketch_bulk_xxhash": "datasketch (xxHash)",
}


def run(options: Options) -> Report:
    """Measure, in turn."""
    machine = describe()
    runs = options.runs or RUNS
    texts, workload = _texts(options)
    options.log(f"finding all pairs among {len(texts)} texts by exact similarity")
    truth = exact_pairs(texts)
    workload["pairs"] = len(truth)
    job = {
        "texts": write_lines(options.folder / "texts.jsonl", texts),
        "truth": write_lines(options.folder / "truth.jsonl", sorted(truth)),
    }
    systems, missing = contenders()
    contest = Contest(options.folder, options.log, one_core=True)
    results = speed_results(contest.measure(systems, job, runs), "docs")
    ratios = {}
    for name, peer in RATIOS.items():
        found = ratio(results, "docs_per_s", OURS, peer)
        if found is not None:
            ratios[name] = found
    return Report("dedup", machine, workload, results, ratios, missing)


def contenders() -> tuple[list[System], list[NotMeasured]]:
    """The systems that are installed, and those that are not."""
    module = "tuneline.bench.dedup_trials"
    systems = [
        System(OURS, f"{module}:tuneline"),
        System("datasketch", f"{module}:datasketch"),
        System("datasketch (xxHash)", f"{module}:datasketch", {"xxhash": True}),
    ]
    python = bench_python()
    reason = why_missing("rensa", python)
    if reason is None:
        trial = f"{module}:rensa"
        systems += [System(name, trial, {"bands": n}, python) for name, n in RENSA.items()]
        return systems, []
    without = tuple(name for name, peer in RATIOS.items() if peer in RENSA)
    return systems, [NotMeasured("rensa", reason, without)]


def exact_pairs(texts: list[str]) -> set[Pair]:
    """All pairs that are near-duplicates by definition."""
    compared = [plain(text) for text in texts]
    found: set[Pair] = set()
    for members, shingle in groups(compared):
        found |= similar_pairs(compared, members, shingle, THRESHOLD)
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

"""latency: what the latency benchmark's client adds to a request, beside guidellm's.

A server that sends every token at a known time, and keeps its own record, is asked by both clients
at the same concurrency. Server and client run in processes of their own and share the machine's
cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.contest.contest import Contest, System
from benchmarks.contest.options import Options
from benchmarks.contest.peers import bench_python, why_missing
from benchmarks.contest.report import NotMeasured, Report, Result, ratio, summarise
from benchmarks.contest.trial import Sample
from benchmarks.serving.bench_server import own_process
from benchmarks.workloads.input_rows import read_texts
from benchmarks.workloads.near_duplicates import SEED, make_corpus
from tuneline import __version__

REQUESTS, TOKENS, CONCURRENCY = 160, 32, 16
# A small model on a GPU: 50 ms to the first token, 100 tokens a second for each request.
FIRST, TOKEN = 0.05, 0.01
RUNS = 3
OURS, GUIDELLM = "tuneline", "guidellm"
RATIOS = ("ttft_vs_guidellm", "tpot_vs_guidellm")


def run(options: Options) -> Report:
    """Measure both clients in turn."""
    count = options.rows or REQUESTS
    source = options.input
    texts = read_texts(source, count) if source else make_corpus(count)
    python = bench_python()
    reason = why_missing(GUIDELLM, python)
    pace = ["--first", str(FIRST), "--token", str(TOKEN)]
    with own_process("benchmarks.serving.token_stream", pace) as url:
        job = {
            "url": url,
            "texts": texts[:count],
            "tokens": TOKENS,
            "concurrency": CONCURRENCY,
            "folder": str(options.folder),
        }
        systems = [System(OURS, "benchmarks.serving.client_trials:ours", {"version": __version__})]
        if reason is None:
            systems.append(
                System(GUIDELLM, "benchmarks.serving.client_trials:guidellm", {}, python)
            )
        contest = Contest(options.folder, options.log, one_core=False)
        samples = contest.measure(systems, job, options.runs or RUNS)
    workload = {
        "requests": min(count, len(texts)),
        "concurrency": CONCURRENCY,
        "tokens": TOKENS,
        "first_ms": 1000 * FIRST,
        "token_ms": 1000 * TOKEN,
        **({"input": source.name} if source else {"seed": SEED}),
    }
    results = client_results(samples)
    missing = [NotMeasured(GUIDELLM, reason, RATIOS)] if reason else []
    return Report(workload, results, _ratios(results), missing)


def client_results(samples: Mapping[str, Sequence[Sample]]) -> list[Result]:
    """Return what each client saw and what it added, in milliseconds."""
    return [
        summarise(name, runs[0].version, metric, [run.scores[metric] for run in runs], "ms")
        for name, runs in samples.items()
        for metric in runs[0].scores
    ]


def _ratios(results: Sequence[Result]) -> dict[str, float]:
    found = {
        name: ratio(results, metric, OURS, GUIDELLM)
        for name, metric in zip(RATIOS, ("ttft", "tpot"), strict=True)
    }
    return {name: value for name, value in found.items() if value is not None}

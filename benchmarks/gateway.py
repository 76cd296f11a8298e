"""Measure the latency that our gateway and others add to a request and to a stream.

All have one upstream that answers at once: the difference to asking it directly is the gateway's
own. Keys and a log in SQLite are on where a gateway has them; ours has both, with the settings of a
real deployment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.contest.contest import Contest, Options, System
from benchmarks.contest.report import NotMeasured, Ratio, Report, Result, ratios_of, summarise
from benchmarks.contest.trial import Sample
from benchmarks.serving.mock_upstream import CHUNKS, MODEL
from benchmarks.serving.peer_gateways import ferrogw, litellm, portkey, upstream_process
from benchmarks.serving.request_trials import CONNECTIONS, STREAMS, memory_growth
from benchmarks.workloads.input_rows import read_texts
from benchmarks.workloads.near_duplicates import make_corpus
from tuneline import __version__
from tuneline.errors import TunelineError

REQUESTS = 2_000
RUNS = 5
# Requests over which the memory of ours may grow, and how many for each of `--rows`.
MEMORY_REQUESTS, MEMORY_PER_ROW = 200_000, 10
DIRECT, OURS = "direct", "tuneline"
PEERS = {"litellm": litellm, "portkey": portkey, "ferrogw": ferrogw}
UNITS = {
    **dict.fromkeys(("p50", "p99", "p50_at_8", "p99_at_8", "ttft", "chunk_delay"), "ms"),
    **dict.fromkeys(("requests_per_s", "requests_per_core_s"), "1/s"),
    "resident": "MiB",
}
# What is added to asking the upstream directly.
ADDED = {"p50": "added_p50", "ttft": "added_ttft", "chunk_delay": "added_per_chunk"}
RATIOS: dict[str, Ratio] = {
    f"{metric}_vs_{peer}": (metric, OURS, peer)
    for peer in PEERS
    for metric in ("requests_per_s", "requests_per_core_s", "added_p50")
}


def run(options: Options) -> Report:
    """Measure the systems in turn, then the memory of ours."""
    from tuneline.serving.gateway.process import GatewayProcess

    text = read_texts(options.input, 1)[0] if options.input else make_corpus(1)[0]
    requests = options.rows or REQUESTS
    job = {"requests": requests, "text": text}
    folder = options.folder / "gateway"
    contest = Contest(options, one_core=False)
    missing: list[NotMeasured] = []
    with ExitStack() as stack:
        upstream = stack.enter_context(upstream_process())
        gateway = stack.enter_context(
            GatewayProcess(
                folder,
                upstreams=[{"name": "mock", "base_url": f"{upstream}/v1", "model": MODEL}],
                models=[{"id": MODEL, "chain": ["mock"]}],
                settings={"ledger": {"path": str(folder / "usage.sqlite")}},
            )
        )
        ours = _system(OURS, url=gateway.base_url, key=gateway.keys["trial"], pid=gateway.pid)
        systems = [_system(DIRECT, url=upstream), ours]
        for name, make in PEERS.items():
            try:
                peer = stack.enter_context(make(upstream, MODEL, options.folder))
                # Without streams a peer is measured for the rest.
                system = _system(name, **peer.asked, pid=peer.pid, streams_may_fail=True)
                # Until it also answers, not only listens.
                contest.run(system, {"requests": 2, "text": "Hello"})
            except TunelineError as error:
                lost = tuple(ratio for ratio, parts in RATIOS.items() if name in parts)
                missing.append(NotMeasured(name, str(error), lost))
            else:
                systems.append(system)
        samples = contest.measure(systems, job, options.runs or RUNS)
        many = MEMORY_PER_ROW * options.rows if options.rows else MEMORY_REQUESTS
        options.log(f"memory of {OURS} over {many} requests")
        grown = memory_growth({**job, **ours.options}, many)
    missing += [
        NotMeasured(name, "it answered no stream; the rest is measured")
        for name, runs in samples.items()
        if "ttft" not in runs[0].scores
    ]
    workload = {
        "requests": requests,
        "connections": CONNECTIONS,
        "streams": STREAMS,
        "chunks": CHUNKS,
        "memory_requests": many,
        "chars": len(text),
        **options.source,
    }
    results = request_results(samples)
    results.append(summarise(OURS, __version__, "memory_growth", [grown], "MiB"))
    return Report(workload, results, ratios_of(results, RATIOS), missing)


def request_results(samples: Mapping[str, Sequence[Sample]]) -> list[Result]:
    """Return what was measured of each system, and what it adds to the direct one."""
    results = []

    def add(name: str, metric: str, values: Sequence[float], unit: str) -> None:
        if values:
            results.append(summarise(name, samples[name][0].version, metric, values, unit))

    for name, runs in samples.items():
        for metric, unit in UNITS.items():
            add(name, metric, [s.scores[metric] for s in runs if metric in s.scores], unit)
        for metric, added in ADDED.items():
            # Both samples are of the same round, so they met the same machine.
            differences = [
                through.scores[metric] - direct.scores[metric]
                for through, direct in zip(runs, samples[DIRECT], strict=True)
                if metric in through.scores and name != DIRECT
            ]
            add(name, added, differences, "ms")
    return results


def _system(name: str, **asked: Any) -> System:
    options = {"key": "none", "version": __version__, "model_id": MODEL, **asked}
    return System(name, "benchmarks.serving.request_trials:requests", options)

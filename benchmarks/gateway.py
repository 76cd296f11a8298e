"""Measure the latency that our gateway and others add to a request and to a stream.

All stand in front of one upstream that answers at once: the difference to asking it directly is the
gateway's own. Keys and a log in SQLite are on where a gateway has them; ours has both, with the
settings of a real deployment.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.contest.contest import Contest, Options, System, bench_python, why_missing
from benchmarks.contest.report import NotMeasured, Report, Result, ratio, summarise
from benchmarks.contest.trial import Sample
from benchmarks.serving.bench_server import own_process
from benchmarks.serving.litellm_proxy import KEY, LitellmProxy
from benchmarks.serving.mock_upstream import CHUNKS, MODEL
from benchmarks.serving.peer_gateways import PeerGateway, ferrogw, portkey
from benchmarks.serving.request_trials import CONNECTIONS, STREAMS, memory_growth
from benchmarks.workloads.input_rows import read_texts
from benchmarks.workloads.near_duplicates import SEED, make_corpus
from tuneline import __version__
from tuneline.errors import TunelineError

REQUESTS = 2_000
RUNS = 5
# Requests over which the memory of ours may grow, and how many for each of `--rows`.
MEMORY_REQUESTS, MEMORY_PER_ROW = 200_000, 10
MODEL_ID = "bench"
DIRECT, OURS, LITELLM = "direct", "tuneline", "litellm"
PEERS = (LITELLM, "portkey", "ferrogw")
UNITS = {
    "p50": "ms",
    "p99": "ms",
    "p50_at_8": "ms",
    "p99_at_8": "ms",
    "requests_per_s": "1/s",
    "requests_per_core_s": "1/s",
    "ttft": "ms",
    "chunk_delay": "ms",
    "resident": "MiB",
}
# What is added to asking the upstream directly.
ADDED = {"p50": "added_p50", "ttft": "added_ttft", "chunk_delay": "added_per_chunk"}
COMPARED = ("requests_per_s", "requests_per_core_s", "added_p50")


def run(options: Options) -> Report:
    """Measure the systems in turn, then the memory of ours."""
    from tuneline.serving.gateway.process import GatewayProcess

    text = read_texts(options.input, 1)[0] if options.input else make_corpus(1)[0]
    missing: list[NotMeasured] = []
    requests = options.rows or REQUESTS
    with ExitStack() as stack:
        upstream = stack.enter_context(own_process("benchmarks.serving.mock_upstream"))
        gateway = stack.enter_context(
            GatewayProcess(
                options.folder / "gateway",
                upstreams=[{"name": "mock", "base_url": f"{upstream}/v1", "model": MODEL}],
                models=[{"id": MODEL_ID, "chain": ["mock"]}],
                settings={"ledger": {"path": str(options.folder / "gateway" / "usage.sqlite")}},
            )
        )
        ours = _system(OURS, gateway.base_url, gateway.keys["trial"], __version__, gateway.pid)
        systems = [_system(DIRECT, upstream, "none", __version__, None), ours]
        for name, start in _starters(upstream, options.folder).items():
            try:
                systems.append(start(stack))
            except TunelineError as error:
                missing.append(NotMeasured(name, str(error), _ratio_names(name)))
        job = {"requests": requests, "text": text}
        contest = Contest(options.folder, options.log, one_core=False)
        samples = contest.measure(systems, job, options.runs or RUNS)
        missing += [
            NotMeasured(name, "it answered no stream; the rest is measured")
            for name, runs in samples.items()
            if "ttft" not in runs[0].scores
        ]
        many = MEMORY_PER_ROW * options.rows if options.rows else MEMORY_REQUESTS
        options.log(f"memory of {OURS} over {many} requests")
        grown = memory_growth({**job, **(ours.options or {})}, many)
    workload = {
        "requests": requests,
        "connections": CONNECTIONS,
        "streams": STREAMS,
        "chunks": CHUNKS,
        "memory_requests": many,
        "chars": len(text),
        **({"input": options.input.name} if options.input else {"seed": SEED}),
    }
    results = request_results(samples)
    results.append(summarise(OURS, __version__, "memory_growth", [grown], "MiB"))
    return Report(workload, results, _ratios(results), missing)


def request_results(samples: Mapping[str, Sequence[Sample]]) -> list[Result]:
    """Return what was measured of each system, and what it adds to the direct one."""
    results = []
    for name, runs in samples.items():
        version = runs[0].version
        for metric, unit in UNITS.items():
            values = [sample.scores[metric] for sample in runs if metric in sample.scores]
            if values:
                results.append(summarise(name, version, metric, values, unit))
        if name == DIRECT:
            continue
        for metric, added in ADDED.items():
            # Both samples are of the same round, so they met the same machine.
            rounds = zip(runs, samples[DIRECT], strict=True)
            values = [
                through.scores[metric] - direct.scores[metric]
                for through, direct in rounds
                if metric in through.scores
            ]
            if values:
                results.append(summarise(name, version, added, values, "ms"))
    return results


def _ratios(results: Sequence[Result]) -> dict[str, float]:
    found = {
        name: ratio(results, metric, OURS, peer)
        for peer in PEERS
        for name, metric in zip(_ratio_names(peer), COMPARED, strict=True)
    }
    return {name: value for name, value in found.items() if value is not None}


def _ratio_names(peer: str) -> tuple[str, ...]:
    return tuple(f"{metric}_vs_{peer}" for metric in COMPARED)


def _starters(upstream: str, folder: Path) -> dict[str, Callable[[ExitStack], System]]:
    """Return, by peer, a function that starts it until a stack closes."""
    python = bench_python()

    def started(make: Callable[[], PeerGateway], version: Callable[[], str]) -> Any:
        def start(stack: ExitStack) -> System:
            peer = stack.enter_context(make())
            found = _system(
                peer.name,
                peer.url,
                peer.key,
                version(),
                peer.pid,
                model_id=MODEL,
                headers=peer.headers,
            )
            _answers(found, folder)
            return found

        return start

    return {
        LITELLM: lambda stack: _litellm(stack, upstream, folder),
        "portkey": started(
            lambda: portkey(python, upstream, folder), lambda: _npm_version(python, "gateway")
        ),
        "ferrogw": started(
            lambda: ferrogw(python, upstream, MODEL, folder), lambda: _version(python, "ferrogw")
        ),
    }


def _litellm(stack: ExitStack, upstream: str, folder: Path) -> System:
    """LiteLLM's proxy with its master key; further keys and its log need PostgreSQL."""
    from tuneline.serving.processes import free_port

    python = bench_python()
    reason = why_missing("litellm", python)
    if reason is not None:
        raise TunelineError(reason)
    proxy = LitellmProxy(
        python=python,
        upstream=upstream,
        model=MODEL,
        model_id=MODEL_ID,
        port=free_port(),
        folder=folder,
    )
    stack.enter_context(proxy)
    return _system(LITELLM, proxy.url, KEY, _version(python, LITELLM), proxy.pid)


def _system(
    name: str,
    url: str,
    key: str,
    version: str,
    pid: int | None,
    *,
    model_id: str = MODEL_ID,
    headers: Mapping[str, str] | None = None,
) -> System:
    options = {"url": url, "key": key, "version": version, "pid": pid, "model_id": model_id}
    trial = "benchmarks.serving.request_trials:requests"
    # Without streams a peer is measured for the rest; the others have to stream.
    extra = {"headers": dict(headers or {}), "streams_may_fail": name in PEERS}
    return System(name, trial, {**options, **extra})


def _answers(system: System, folder: Path) -> None:
    """Send a few requests to a peer that listens, until it also answers."""
    Contest(folder, lambda _: None, one_core=False).run(system, {"requests": 2, "text": "Hello"})


def _npm_version(python: Path, package: str) -> str:
    folder = python.parents[1] / "node_modules" / "@portkey-ai" / package
    return str(json.loads((folder / "package.json").read_text())["version"])


def _version(python: Path, package: str) -> str:
    """Return the version of a package in another environment."""
    question = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", question], capture_output=True, text=True, check=True)
    return done.stdout.strip()

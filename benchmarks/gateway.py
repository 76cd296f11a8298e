"""gateway: the latency that the gateway adds to a request, and its requests per second.

A mock upstream that answers at once is asked in turn directly, through the gateway and, where it
is installed, through LiteLLM's proxy. Each runs in its own process, and all share the machine's
cores with the client.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contest.contest import Contest, System
from benchmarks.contest.options import Options
from benchmarks.contest.peers import bench_python, why_missing
from benchmarks.contest.report import NotMeasured, Report, Result, ratio, summarise
from benchmarks.contest.trial import Sample
from benchmarks.serving.bench_server import own_process
from benchmarks.serving.litellm_proxy import KEY, LitellmProxy
from benchmarks.serving.mock_upstream import MODEL
from benchmarks.serving.request_trials import CONNECTIONS
from benchmarks.workloads.input_rows import read_texts
from benchmarks.workloads.near_duplicates import SEED, make_corpus
from tuneline import __version__
from tuneline.errors import TunelineError

REQUESTS = 2_000
RUNS = 5
MODEL_ID = "bench"
DIRECT, OURS, LITELLM = "direct", "tuneline", "litellm"
UNITS = {"p50": "ms", "p99": "ms", "requests_per_s": "1/s"}
RATIOS = ("requests_per_s_vs_litellm", "added_p50_vs_litellm")


def run(options: Options) -> Report:
    """Measure the systems in turn."""
    from tuneline.serving.gateway.process import GatewayProcess

    text = read_texts(options.input, 1)[0] if options.input else make_corpus(1)[0]
    missing: list[NotMeasured] = []
    with ExitStack() as stack:
        upstream = stack.enter_context(own_process("benchmarks.serving.mock_upstream"))
        gateway = stack.enter_context(
            GatewayProcess(
                options.folder / "gateway",
                upstreams=[{"name": "mock", "base_url": f"{upstream}/v1", "model": MODEL}],
                models=[{"id": MODEL_ID, "chain": ["mock"]}],
            )
        )
        systems = [
            _system(DIRECT, upstream, "none", __version__),
            _system(OURS, gateway.base_url, gateway.keys["trial"], __version__),
        ]
        peer, reason = _litellm(stack, upstream, options.folder)
        systems += [peer] if peer else []
        missing += [NotMeasured(LITELLM, reason, RATIOS)] if reason else []
        job = {"requests": options.rows or REQUESTS, "text": text, "model_id": MODEL_ID}
        contest = Contest(options.folder, options.log, one_core=False)
        samples = contest.measure(systems, job, options.runs or RUNS)
    workload = {
        "requests": options.rows or REQUESTS,
        "connections": CONNECTIONS,
        "chars": len(text),
        **({"input": options.input.name} if options.input else {"seed": SEED}),
    }
    results = request_results(samples)
    return Report(workload, results, _ratios(results), missing)


def request_results(samples: Mapping[str, Sequence[Sample]]) -> list[Result]:
    """Return latency and throughput of each system, and the latency added to the direct one."""
    results = []
    for name, runs in samples.items():
        version = runs[0].version
        for metric, unit in UNITS.items():
            values = [sample.scores[metric] for sample in runs]
            results.append(summarise(name, version, metric, values, unit))
        if name != DIRECT:
            # Both samples are of the same round, so they met the same machine.
            rounds = zip(runs, samples[DIRECT], strict=True)
            added = [through.scores["p50"] - direct.scores["p50"] for through, direct in rounds]
            results.append(summarise(name, version, "added_p50", added, "ms"))
    return results


def _ratios(results: Sequence[Result]) -> dict[str, float]:
    metrics = ("requests_per_s", "added_p50")
    found = {
        name: ratio(results, m, OURS, LITELLM) for name, m in zip(RATIOS, metrics, strict=True)
    }
    return {name: value for name, value in found.items() if value is not None}


def _litellm(stack: ExitStack, upstream: str, folder: Path) -> tuple[System | None, str]:
    """LiteLLM's proxy, running until the stack closes; or none and why."""
    from tuneline.serving.server_process import free_port

    python = bench_python()
    reason = why_missing("litellm", python)
    if reason is not None:
        return None, reason
    proxy = LitellmProxy(
        python=python,
        upstream=upstream,
        model=MODEL,
        model_id=MODEL_ID,
        port=free_port(),
        folder=folder,
    )
    try:
        stack.enter_context(proxy)
    except TunelineError as error:
        return None, str(error)
    return _system(LITELLM, proxy.url, KEY, _version(python, LITELLM)), ""


def _system(name: str, url: str, key: str, version: str) -> System:
    options = {"url": url, "key": key, "version": version}
    return System(name, "benchmarks.serving.request_trials:requests", options)


def _version(python: Path, package: str) -> str:
    """Return the version of a package in another environment."""
    question = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", question], capture_output=True, text=True, check=True)
    return done.stdout.strip()

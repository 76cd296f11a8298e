"""The clients of the latency benchmark: ours and guidellm, on a server whose times are known."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.contest.trial import Job, Trial
from benchmarks.serving.token_stream import MODEL

_MS = 1000.0


@dataclass(frozen=True)
class Seen:
    """Times of one request, in milliseconds: TTFT, TPOT, and the time to the last token."""

    ttft: float
    tpot: float
    latency: float


def of_server(url: str) -> list[Seen]:
    """Take the times that the server saw since the last time it was asked."""
    with urllib.request.urlopen(f"{url}/timings", timeout=60) as answer:  # noqa: S310 - loopback
        timings = json.load(answer)
    return [
        Seen(_MS * first, _MS * (last - first) / max(1, tokens - 1), _MS * last)
        for first, last, tokens in timings
    ]


def scores(seen: Sequence[Seen], server: Sequence[Seen]) -> dict[str, float]:
    """Return medians of what a client saw, and what it adds to what the server saw."""
    if len(seen) != len(server):
        raise RuntimeError(f"the client timed {len(seen)} requests, the server {len(server)}")
    found = {}
    for name in ("ttft", "tpot", "latency"):
        ours, theirs = ([getattr(each, name) for each in side] for side in (seen, server))
        found[name] = median(ours)
        found[f"added_{name}"] = mean(ours) - mean(theirs)
    return found


def ours(job: Job) -> Trial:
    """Tuneline's client, a closed loop."""
    from tuneline.asking.load import drive
    from tuneline.serving.client.client import EngineClient

    def work(prompts: Sequence[Any]) -> tuple[list[Seen], list[Seen]]:
        of_server(job["url"])
        with EngineClient(job["url"], model=MODEL, timeout=60.0) as client:
            timings, _ = drive(client, prompts, job["concurrency"], job["tokens"])
        failed = [timing.error for timing in timings if not timing.ok]
        if failed:
            raise RuntimeError(failed[0])
        seen = [Seen(_MS * t.ttft, _MS * t.tpot, _MS * t.total) for t in timings]
        return seen, of_server(job["url"])

    prompts = [[{"role": "user", "content": text}] for text in job["texts"]]
    return Trial(job["version"], prompts, work, lambda found: scores(*found))


def guidellm(job: Job) -> Trial:
    """guidellm's client, a closed loop, as its command line runs it."""

    def work(texts: Sequence[str]) -> tuple[list[Seen], list[Seen]]:
        of_server(job["url"])
        report = run_guidellm(
            Path(job["folder"]), job["url"], texts, job["tokens"], job["concurrency"]
        )
        return report, of_server(job["url"])

    return Trial(
        version("guidellm"), job["texts"], work, lambda found: scores(*found), warm_up=False
    )


def run_guidellm(
    folder: Path, url: str, texts: Sequence[str], tokens: int, concurrency: int
) -> list[Seen]:
    """Run guidellm of this environment; return the times of its requests.

    Raises:
        RuntimeError: if it failed; the message has its last line.
    """
    prompts, out = folder / "prompts.jsonl", folder / "guidellm.json"
    lines = [json.dumps({"prompt": text, "output_tokens_count": tokens}) for text in texts]
    prompts.write_text("\n".join(lines) + "\n")
    options = {
        "backend": f"kind=openai_http,target={url},model={MODEL},"
        "request_format=/v1/chat/completions",
        "profile": f"kind=concurrent,streams={concurrency}",
        "constraint": f"kind=max_requests,count={len(texts)}",
        "data": f"kind=json_file,path={prompts}",
        "output": f"kind=json,path={out}",
    }
    command = [sys.executable, "-m", "guidellm", "run", "--disable-console"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode or not out.is_file():
        words = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"guidellm failed: {words[-1] if words else 'it printed nothing'}")
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    return [
        Seen(
            request["time_to_first_token_ms"],
            # What it calls time per output token counts the first one's wait too.
            request["inter_token_latency_ms"],
            _MS * request["request_latency"],
        )
        for request in benchmark["requests"]["successful"]
    ]

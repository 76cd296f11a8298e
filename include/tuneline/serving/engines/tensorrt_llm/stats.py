"""Totals of trtllm-serve's iteration statistics.

`GET /metrics` answers with a JSON list: one entry for each step of the engine since the last
reading. A reading takes the entries away, and the engine keeps only the latest thousand or so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.serving.engines.engine_server import Counters


def add_up(before: Counters, steps: Sequence[Mapping[str, Any]]) -> Counters:
    """Return totals with more steps added.

    A prompt is computed in one step, which also gives the first token of its answer; each later
    step that a request is part of gives one token more. `numCtxTokens` leaves out what came from
    the prefix cache.

    Args:
        before: the totals so far.
        steps: entries of `/metrics`.
    """
    prompt = completion = counted = requests = 0
    for step in steps:
        batch = step.get("inflightBatchingStats") or {}
        contexts, running = (
            int(batch.get("numContextRequests", 0)),
            int(batch.get("numGenRequests", 0)),
        )
        if not contexts + running:
            continue
        prompt += int(batch.get("numCtxTokens", 0))
        completion += contexts + running
        counted += 1
        requests += contexts + running
    return Counters(
        before.prompt_tokens + prompt,
        before.completion_tokens + completion,
        before.steps + counted,
        before.step_requests + requests,
    )

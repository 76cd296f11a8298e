"""Whole runs of the main DAG in a real stack, as small as every item bears."""

import json
import time

import yaml

from tuneline.stack.dag_run import DagRun

# As little work as every item bears, with the limits as shipped but for one.
TINY = {
    # The hold-out shrinks with the training rows; with 32 rows its interval is narrow enough.
    # What leaks is judged in the tests of the item.
    "data": {
        "max_train_rows": 160,
        "license": "Apache-2.0",
        "pii_canaries": 20,
        "pii_max_leak": 1,
        "pii_max_leak_ner": 1,
    },
    # Without rehearsal, twenty steps of one-word answers cost general ability.
    "training": {
        "r": 8,
        "alpha": 16,
        "max_steps": 20,
        "effective_batch": 4,
        "evaluations": 1,
        "rehearsal_rows": 16,
    },
    "evaluation": {
        "regression_questions": 20,
        "max_new_tokens": 16,
        "determinism_prompts": 2,
        "determinism_repeats": 2,
        # After so few steps a prompt may stand between two classes; the arithmetic of a batch
        # then decides between them.
        "min_identical_share": 0.0,
        # They also teach little more than the form and one class.
        "min_gain_over_trivial": -1.0,
        "slices": {"worse_by": 1.0},
        # Two prompts show no more.
        "identical_share_to_show": 0.01,
        "latency_requests": 6,
    },
    "deployment": {"quality_rows": 6, "max_metric_drop": 0.4, "parallel": 2},
}
# A task that so few steps teach: three classes, and an answer that is the class alone.
INTENTS = ("track", "refund", "cancel")


def short_rows(lines):
    """Rows of a few classes, with the class as their whole answer, and all malformed rows."""
    for line in lines:
        try:
            row = json.loads(line)
            answer = row["messages"][-1]
            intent = json.loads(answer["content"])["intent"]
        except (ValueError, LookupError, TypeError):
            yield line
            continue
        if intent in INTENTS:
            answer["content"] = json.dumps({"intent": intent})
            yield json.dumps(row).encode() + b"\n"


def finish(run, seconds):
    """Wait for a run to end; states of its tasks by name."""
    deadline = time.monotonic() + seconds
    while (state := run.state()) not in ("success", "failed"):
        assert time.monotonic() < deadline, {t["task_id"]: t["state"] for t in run.tasks()}
        time.sleep(1)
    tasks = {task["task_id"]: task for task in run.tasks()}
    failures = {n: run.failure(t) for n, t in tasks.items() if t["state"] == "failed"}
    return state, tasks, failures


def trigger(client, run_id, sample, settings, **fields):
    run = DagRun(client, run_id)
    run.trigger({"data": str(sample), "overrides": yaml.safe_dump(settings), **fields})
    return run

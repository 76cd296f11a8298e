"""The whole stack: Airflow, local pods and all 25 items on a small slice of the sample."""

import json
import time

import httpx
import pytest
import yaml

from tuneline.artifacts.data import DATASET
from tuneline.catalogue import ITEMS, Severity
from tuneline.data.sample.make import write_sample
from tuneline.data.tables.rows import read_dataset
from tuneline.evidence import load_evidence
from tuneline.run import Run
from tuneline.stack.dag_run import DagRun
from tuneline.stack.layout import LOOPBACK
from tuneline.stack.rest import Airflow
from tuneline.stack.timings import breakdown
from tuneline.verdicts import checklist

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.timeout(1500)]

# As little work as every item bears, with the limits as shipped but for one.
TINY = {
    # The hold-out shrinks with the training rows; with 32 rows its interval is narrow enough.
    "data": {"max_train_rows": 160, "license": "Apache-2.0"},
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
        "latency_requests": 2,
    },
    "deployment": {"quality_rows": 6, "parallel": 2},
}
# A task that so few steps teach: three classes, and an answer that is the class alone.
INTENTS = ("track", "refund", "cancel")

# Verdicts other than pass, and a part of the reason that the checklist gives.
NOT_PASSED = {
    "quantization_verification": ("not_applicable", "every limit holds"),
    # Of 20 questions, one or two more or fewer are chance.
    "base_regression": ("warn", "detectable_drop is"),
    "human_review": ("warn", "votes is 0, must be >= 1"),
}


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


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder / "all.jsonl", folder / "planted.json", 7)
    lines = (folder / "all.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "sample.jsonl").write_bytes(b"".join(short_rows(lines)))
    return folder / "sample.jsonl"


@pytest.fixture(scope="module")
def client(running):
    made = Airflow(running.layout())
    yield made
    made.close()


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


@pytest.fixture(scope="module")
def released(client, sample):
    """A run that went through."""
    run = trigger(client, "whole", sample, TINY, reason="full-stack test")
    state, tasks, failures = finish(run, 1200)
    assert state == "success", failures
    return Run.open(run.run_uri()), run, tasks


def test_every_item_leaves_valid_evidence_of_its_own_task(released):
    run, _, _ = released
    for item in ITEMS:
        key = run.step_key(item.id, "evidence.json")
        evidence = load_evidence(run.store.get_bytes(key), key)
        assert evidence.item == item.id
        assert evidence.phase == item.phase
        assert evidence.severity == item.severity
        assert evidence.airflow["dag_id"] == "finetune_to_production"
        assert evidence.airflow["run_id"] == "whole"
        assert evidence.airflow["task_id"] == item.id


def test_every_verdict_is_the_expected_one_for_the_expected_reason(released):
    run, _, _ = released
    expected = {item.id: ("pass", "every limit holds") for item in ITEMS} | NOT_PASSED
    if run.meta["code"]["dirty"] is not False:
        # A checkout with changes, or none at all, is what the manifest has to warn of.
        expected["lineage"] = ("warn", "code_is_clean is")
    rows = {row.item: row for row in checklist(run)}
    found = {
        name: (
            row.verdict.value,
            expected[name][1] if expected[name][1] in row.because else row.because,
        )
        for name, row in rows.items()
    }
    assert found == expected, {n: (r.verdict, r.summary, r.because) for n, r in rows.items()}


def test_data_items_have_a_gate_of_their_own(released):
    run, _, _ = released
    for item in ITEMS:
        assert run.store.exists(run.step_key(item.id, "gate.json")) == (item.phase == "data")


def test_nobody_was_asked_and_the_rest_ran(released):
    _, _, tasks = released
    skipped = {name for name, task in tasks.items() if task["state"] == "skipped"}
    people = {"approve_waivers", "prepare_review", "review_pairs", "approve_release"}
    # No sweep was asked for, and without W&B there is no offline run to send.
    assert skipped == people | {"sweep", "sync_tracking"}
    assert {t["state"] for name, t in tasks.items() if name not in skipped} == {"success"}


def test_the_release_points_at_this_run(released):
    run, _, _ = released
    pointer = json.loads(run.store.get_bytes(f"models/{run.config.name}/production.json"))
    assert pointer["version"] == run.run_id
    manifest = json.loads(run.store.get_bytes(run.store.key_of(pointer["manifest"])))
    assert manifest["started_by"] == "admin"
    assert manifest["reason"] == "full-stack test"


def test_airflow_and_pods_take_little_of_each_task(released):
    run, dag_run, _ = released
    document = breakdown(dag_run.tasks(), run, setup=0, start=0)
    overhead = (
        document["pod_seconds"] + document["queued_seconds"] + document["worker_task_seconds"]
    )
    assert overhead / len(document["tasks"]) < 7


def test_up_serves_the_release_behind_the_gateway(released, running):
    up = running.run("up")
    assert up.returncode == 0, up.stderr
    layout = running.layout()
    url = f"http://{LOOPBACK}:{layout.gateway_port}/v1"
    assert httpx.get(f"{url}/models").status_code == 401
    key = (layout.home / "serving" / "api-key").read_text().strip()
    run = released[0]
    dataset = layout.home / "dataset.parquet"
    run.store.get_file(DATASET.key(run), dataset)
    rows, _ = read_dataset(dataset)
    answer = httpx.post(
        f"{url}/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": run.config.name, "messages": rows[0].prompt, "max_tokens": 16},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def test_a_planted_fault_is_a_red_gate_and_nothing_after_it_runs(client, sample, tmp_path):
    """More malformed rows than the limit allows: the schema gate has to stop the run."""
    rows = sample.read_bytes().splitlines(keepends=True)
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b"".join(rows[:40]) + b'{"messages": "none"}\n' * 60)
    run = trigger(client, "planted", broken, TINY)
    state, tasks, failures = finish(run, 300)
    assert state == "failed"
    assert set(failures) == {"gate_schema_validation"}
    assert "schema_validation (critical): fail" in failures["gate_schema_validation"]
    assert tasks["schema_validation"]["state"] == "success"
    for item in ITEMS:
        if item.id not in ("schema_validation", "license_audit"):
            assert tasks[item.id]["state"] == "upstream_failed"
    rows = {row.item: row for row in checklist(Run.open(run.run_uri()))}
    assert rows["schema_validation"].verdict == "fail"
    assert rows["lora_selection"].verdict == "not_run"
    assert any(r.stops_release for r in rows.values() if r.severity == Severity.CRITICAL)


def test_a_users_mistake_is_one_sentence_and_is_not_tried_again(client, sample):
    run = trigger(client, "typo", sample, {"training": {"epochs": -1}})
    state, tasks, failures = finish(run, 120)
    assert state == "failed"
    assert tasks["prepare_run"]["try_number"] == 1
    assert "training.epochs" in failures["prepare_run"]


def test_an_unknown_key_of_the_conf_is_refused(client, sample):
    run = trigger(client, "unknown", sample, {}, dataset="x")
    state, _, failures = finish(run, 120)
    assert state == "failed"
    assert "unknown field 'dataset'" in failures["prepare_run"]

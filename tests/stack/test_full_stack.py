"""The whole stack: Airflow, local pods and all 25 items on a small slice of the sample."""

import json

import httpx
import pytest
from tests.lab.whole_runs import TINY, finish, tiny_task, trigger

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.releases import read_release
from tuneline.catalogue import ITEMS, Severity
from tuneline.data.tables.rows import read_dataset
from tuneline.evidence import load_evidence
from tuneline.run import Run
from tuneline.stack.layout import LOOPBACK
from tuneline.stack.timings import breakdown
from tuneline.verdicts import checklist

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3000)]

_ITEMS = {item.id for item in ITEMS}

# Verdicts other than pass, and a part of the reason that the checklist gives.
NOT_PASSED = {
    "quantization_verification": ("not_applicable", "every limit holds"),
    "human_review": ("warn", "votes is 0, must be >= 1"),
    # The first release has no release before it.
    "fallback": ("warn", "models_to_fall_back_to is 0"),
    # Limits that are looser than the policy, as so small a run needs them.
    "pii_scrubbing": ("warn", "the policy: data.pii_max_left is inf"),
}
OF_TASK = {
    # A base that knows one task alone needs looser limits than the policy's.
    "tiny": {
        "base_regression": ("warn", "the policy: evaluation.max_regression is 0.9"),
        "determinism": ("warn", "the policy: evaluation.identical_share_to_show is 0.01"),
    },
    "smollm2": {
        # Nine identifiers are too few to rank.
        "pii_scrubbing": ("inconclusive", "the policy: data.pii_max_left is inf"),
        # Twenty questions do not exclude the loss that must be seen.
        "base_regression": ("inconclusive", "drop_upper is"),
        "holdout_performance": ("warn", "the policy: evaluation.min_gain_over_trivial is -1"),
        "determinism": ("warn", "the policy: evaluation.min_identical_share is 0"),
        "production_quantization": ("warn", "the policy: deployment.max_metric_drop is 0.4"),
    },
}


@pytest.fixture(
    scope="module",
    params=["tiny", pytest.param("smollm2", marks=[pytest.mark.long, pytest.mark.model])],
)
def task(request, sample, tmp_path_factory):
    """The name of a task, its settings and its dataset."""
    if request.param == "smollm2":
        return "smollm2", TINY, sample
    return "tiny", *tiny_task(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def released(client, task):
    """A run that went through."""
    name, settings, dataset = task
    run = trigger(client, f"whole-{name}", dataset, settings, reason="full-stack test")
    state, tasks, failures = finish(run, 2700)
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
        assert evidence.airflow["run_id"] == run.run_id
        assert evidence.airflow["task_id"] == item.id
        assert run.store.exists(run.step_key(item.id, "gate.json")) == (item.phase == "data")


def test_every_verdict_is_the_expected_one_for_the_expected_reason(released, task):
    run, _, _ = released
    expected = {item.id: ("pass", "every limit holds") for item in ITEMS}
    expected |= NOT_PASSED | OF_TASK[task[0]]
    if run.meta["code"]["dirty"] is not False:
        # A checkout with changes, or none at all, is what the manifest has to warn of.
        expected["lineage"] = ("warn", "code_is_clean is")
    rows = {row.item: row for row in checklist(run)}
    if rows["fallback"].verdict == "inconclusive":
        expected["fallback"] = ("inconclusive", "min_mean_logprob is")
    if rows["cost_tracking"].verdict == "warn":
        # The tiny model may have answered before a request could be cut off.
        expected["cost_tracking"] = ("warn", "_cut_off is 0, must be >= 1")
    if rows["engine_optimization"].verdict == "warn":
        # Where others use the cores, several requests at once gain nothing.
        expected["engine_optimization"] = ("warn", "batching_speedup is")
    if rows["drift_detection"].verdict == "inconclusive":
        # Small nights show large changes alone.
        expected["drift_detection"] = ("inconclusive", "_share_called is")
    if rows["gradient_accumulation"].verdict == "warn":
        # The answers that the check drew may have equally many tokens.
        because = "difference_if_normalised_per_micro_batch is 0"
        expected["gradient_accumulation"] = ("warn", because)
    found = {
        name: (
            row.verdict.value,
            expected[name][1] if expected[name][1] in row.because else row.because,
        )
        for name, row in rows.items()
    }
    assert found == expected, {n: (r.verdict, r.summary, r.because) for n, r in rows.items()}


def test_nobody_was_asked_and_the_rest_ran(released):
    _, _, tasks = released
    skipped = {name for name, task in tasks.items() if task["state"] == "skipped"}
    people = {"approve_license", "prepare_review", "review_pairs", "review_rows"}
    # No sweep, shards or canary were asked for, and without W&B there is no offline run to send.
    pods = {"sweep", "answer_holdout", "sync_tracking", "canary"}
    assert skipped == people | pods | {"approve_release"}
    assert {t["state"] for name, t in tasks.items() if name not in skipped} == {"success"}


def test_the_release_points_at_this_run_and_the_time_of_every_step_is_known(released):
    run, dag_run, _ = released
    document = breakdown(dag_run.tasks(), run, setup=0, start=0)
    assert {row["task"] for row in document["tasks"] if row["work_seconds"]} >= _ITEMS
    pointer = json.loads(run.store.get_bytes(f"models/{run.config.name}/staging.json"))
    assert read_release(run.store, run.config.name) is None
    assert pointer["version"] == run.run_id
    manifest = json.loads(run.store.get_bytes(run.store.key_of(pointer["manifest"])))
    assert manifest["started_by"] == "admin"
    assert manifest["reason"] == "full-stack test"


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
    assert (state, tasks["prepare_run"]["try_number"]) == ("failed", 1)
    assert "training.epochs" in failures["prepare_run"]

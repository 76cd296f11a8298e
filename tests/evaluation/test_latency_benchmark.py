import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab.engines import llama_server
from tests.lab.runs import broken, value
from tests.lab.tiny_task import task_rows

from tuneline.asking import load as load_client
from tuneline.errors import UserError


def test_a_fast_server_passes_with_table_and_plot(scored_lab):
    bench = scored_lab(deployment={"context_tokens": 256})
    evidence = bench.execute("latency_benchmark")
    assert evidence.verdict == "pass", broken(evidence)
    assert value(evidence, "levels") == 4
    assert value(evidence, "concurrency_within_objective") == 8
    report = bench.document("latency_benchmark", "latency.json")
    levels = {row["concurrency"]: row for row in report["levels"]}
    assert list(levels) == [1, 2, 4, 8]
    assert all(row["tokens_per_s"] > 0 and row["ttft_p50"] > 0 for row in levels.values())
    # Four slots: alone the engine decodes one request, at eight at most four together.
    assert levels[1]["batch"] == pytest.approx(1.0, abs=0.05)
    assert 1.5 < levels[8]["batch"] <= 4.0
    assert bench.artifact("latency_benchmark", "latency.png").read_bytes()[:4] == b"\x89PNG"
    assert "requests at once within" in evidence.summary


def test_an_objective_that_is_missed_fails(scored_lab):
    bench = scored_lab(evaluation={"max_ttft_seconds": 1e-5})
    evidence = bench.execute("latency_benchmark")
    assert evidence.verdict == "fail"
    assert value(evidence, "concurrency_within_objective") == 0
    assert "does not reach" in evidence.summary


def test_requests_that_fail_fail_the_item(scored_lab):
    """A context of 64 tokens holds no prompt of the task with its answer."""
    rows = task_rows(SPLITS)
    for row in rows[240:270]:
        row["messages"][1]["content"] += " and so on" * 40
    bench = scored_lab(rows=rows, deployment={"context_tokens": 64})
    evidence = bench.execute("latency_benchmark")
    assert evidence.verdict == "fail"
    assert value(evidence, "failed_requests") > 0


def test_a_model_that_ends_at_once_still_gives_every_request_its_tokens(scored_lab, silent_gguf):
    with llama_server(silent_gguf, threads=1) as server, server.client() as client:
        said = client.chat([{"role": "user", "content": "hello"}], max_tokens=8)
    assert (said.text, said.finish_reason) == ("", "stop")
    evidence = scored_lab(model=silent_gguf).execute("latency_benchmark")
    assert value(evidence, "failed_requests") == 0
    assert evidence.verdict == "pass", broken(evidence)


def test_a_server_that_ends_answers_early_fails(scored_lab, silent_gguf, monkeypatch):
    monkeypatch.setattr(load_client, "_SAME_WORK", {})
    evidence = scored_lab(model=silent_gguf).execute("latency_benchmark")
    assert evidence.verdict == "fail"
    assert value(evidence, "failed_requests") > 0


def test_other_hardware_than_the_target_only_warns(scored_lab):
    bench = scored_lab(deployment={"target_hardware": "nvidia-h100"})
    evidence = bench.execute("latency_benchmark")
    assert evidence.verdict == "warn"
    assert broken(evidence) == {"measured_on"}
    measured_on = next(m for m in evidence.measurements if m.name == "measured_on")
    assert (measured_on.value, measured_on.limit) == ("cpu", "nvidia-h100")


def test_prompts_come_from_validation_and_nowhere_else(scored_lab):
    bench = scored_lab(rows=task_rows({"train": 20, "holdout": 5}))
    with pytest.raises(UserError, match="validation"):
        bench.execute("latency_benchmark")

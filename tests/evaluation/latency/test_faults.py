"""Faults of servers that the latency benchmark must see, each over real sockets."""

import json

import pytest
from tests.lab.runs import broken, value, values
from tests.lab.token_stream import Behaviour

SOON = {"requests_per_s": 20.0, "seconds": 1.5}


def levels_of(bench):
    report = bench.document("latency_benchmark", "latency.json")
    return {level["concurrency"]: level for level in report["levels"]}, report


def test_a_steady_server_passes_with_every_number(stub_bench):
    evidence, bench, server = stub_bench()
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert found["concurrency_within_objective"] == 8
    assert found["percentiles_claimed"] == "p50"
    assert "p95 (needs 72 requests)" in found["percentiles_not_claimed"]
    assert "no load is declared" in evidence.summary
    levels, report = levels_of(bench)
    assert report["complete"] is True
    metrics = levels[1]["metrics"]
    lower, upper = metrics["time_to_first_token"]["intervals"]["p50"]
    assert lower <= metrics["time_to_first_token"]["p50"] <= upper
    assert metrics["time_to_first_token"]["p95"] is None
    assert levels[1]["ttft_p95"] is None
    assert metrics["request_latency"]["p50"] >= metrics["time_to_first_token"]["p50"] >= 2.0
    assert metrics["goodput"]["avg"] > 0
    # 8, 8, 8 and twice 8 requests are counted; one for each of the four slots comes before.
    assert [level["requests"] for level in levels.values()] == [8, 8, 8, 16]
    assert len(server.bodies) == 40 + 4
    assert found["warm_up_requests"] == 4


def test_warm_up_requests_are_not_counted(stub_bench):
    """The first requests of a fresh server are slow; they must not reach the table."""
    slow = Behaviour(slow_first=4, stall=0.4)
    warmed, bench, _ = stub_bench(slow)
    assert warmed.verdict == "pass", broken(warmed)
    assert levels_of(bench)[0][1]["metrics"]["time_to_first_token"]["max"] < 400


def test_without_a_warm_up_they_are(stub_bench):
    slow = Behaviour(slow_first=4, stall=0.4)
    cold, bench, _ = stub_bench(slow, evaluation={"latency_warmup": 0})
    assert cold.verdict == "fail"
    assert levels_of(bench)[0][1]["metrics"]["time_to_first_token"]["max"] >= 400


def test_p95_sees_every_tenth_request_stall_and_p50_does_not(stub_bench):
    stalling = Behaviour(stall_every=10, stall=0.6)
    requests = {"latency_requests": 80, "concurrency": [4, 8, 12, 16]}
    evidence, bench, _ = stub_bench(stalling, evaluation={**requests, "objective_share": 0.95})
    row = levels_of(bench)[0][4]
    assert row["ttft_p50"] < 0.25 < 0.6 <= row["ttft_p95"]
    lower, upper = row["metrics"]["time_to_first_token"]["intervals"]["p95"]
    assert lower <= 1000 * row["ttft_p95"] <= upper
    assert value(evidence, "percentiles_claimed") == "p50, p90, p95"
    assert "p99 (needs 368 requests)" in value(evidence, "percentiles_not_claimed")
    assert broken(evidence) == {"concurrency_within_objective"}
    assert evidence.verdict == "fail"


@pytest.mark.parametrize("dies_at", [6, 18])
def test_a_server_that_dies_leaves_partial_results_and_fails(stub_bench, dies_at):
    evidence, bench, _ = stub_bench(Behaviour(dies_at=dies_at), evaluation={"load": SOON})
    assert evidence.verdict == "fail"
    assert {"complete", "failed_requests"} <= broken(evidence)
    assert "partial results, since the server ended with exit code -9" in evidence.summary
    levels, report = levels_of(bench)
    assert report["complete"] is False
    # Four requests are warm-up; what was answered before is kept, but for the dying one and one
    # that may have been under way beside it.
    done = sum(level["requests"] - level["failed"] for level in levels.values())
    assert done in (dies_at - 4 - 1, dies_at - 4 - 2)
    assert done > 0
    assert value(evidence, "peak_tokens_per_s") > 0
    assert (bench.artifact("latency_benchmark", "latency.png")).is_file()


def test_a_load_that_is_borne_passes_with_users_and_replicas(stub_bench):
    load = {"users": 400, "requests_per_user_per_minute": 3.0, "seconds": 2.0}
    evidence, bench, _ = stub_bench(evaluation={"load": load})
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert found["declared_load"] == 20.0
    assert found["load_of_a_server"] == 25.0
    assert found["good_share_at_load"] >= 0.9
    assert found["replicas_needed"] == 1
    assert found["users_per_server"] >= 400
    assert abs(found["queue_growth_at_load"]) < 0.2
    (run,) = levels_of(bench)[1]["open_loop"]
    assert (run["requests"], run["requests_per_s_planned"]) == (50, 25.0)
    assert "holds with 25% headroom" in evidence.summary


# 20 ms a request on one slot: it bears 50 requests a second, and every closed loop is fine.
ONE_SLOT = Behaviour(first=0.02, token=0.0, slots=1)
CALM = {"concurrency": [1, 2, 3, 4]}


def test_an_overload_that_closed_loops_hide_fails(stub_bench):
    """Four at once wait 0.08 s; above the capacity a queue grows without end."""
    load = {"requests_per_s": 80.0, "headroom": 0.0, "seconds": 2.0}
    evidence, bench, _ = stub_bench(ONE_SLOT, evaluation={**CALM, "load": load})
    assert evidence.verdict == "fail"
    found = values(evidence)
    assert found["concurrency_within_objective"] == 4
    assert broken(evidence) - {"client_late"} == {"good_share_at_load"}
    assert found["good_share_at_load"] < 0.6
    # 1 - 50 / 80 of each second is left over, or a little more on a busy machine.
    assert found["queue_growth_at_load"] > 0.25
    assert found["replicas_needed"] is None or found["replicas_needed"] >= 2
    assert "does not hold" in evidence.summary
    runs = levels_of(bench)[1]["open_loop"]
    assert runs[0]["goodput_per_s"] < runs[0]["requests_per_s"]
    assert len(runs) > 1


def test_more_replicas_bear_the_same_load(stub_bench):
    load = {"requests_per_s": 80.0, "headroom": 0.0, "replicas": 4, "seconds": 2.0}
    evidence, _, _ = stub_bench(ONE_SLOT, evaluation={**CALM, "load": load})
    assert value(evidence, "load_of_a_server") == 20.0
    assert evidence.verdict in ("pass", "warn"), broken(evidence)


def identity(**served):
    limits = {"max_batch_size": 4, "max_total_tokens": 1024, "threads": 1, **served}
    return json.dumps({"engine": "llama_cpp", "served": limits, "files": {}})


def test_served_limits_that_were_measured_pass(stub_bench):
    evidence, _, _ = stub_bench(identity=identity())
    assert evidence.verdict == "pass", broken(evidence)
    assert value(evidence, "served_limits_known") is True


@pytest.mark.parametrize(
    ("served", "name"),
    [
        ({"max_batch_size": 8}, "served_parallel"),
        ({"max_total_tokens": 4096}, "served_context_tokens"),
        ({"threads": 3}, "served_threads"),
    ],
)
def test_a_served_limit_that_was_not_measured_fails(stub_bench, served, name):
    evidence, _, _ = stub_bench(identity=identity(**served))
    assert evidence.verdict == "fail"
    assert broken(evidence) == {name}


def test_answers_and_prompts_have_the_lengths_of_the_data(stub_bench):
    evidence, bench, server = stub_bench(evaluation={"max_new_tokens": 6})
    report = bench.document("latency_benchmark", "latency.json")
    expected = report["expected_answers"]
    assert value(evidence, "answer_tokens_p50") == expected["p50"]
    counted = server.bodies[4:]
    assert {body["max_tokens"] for body in counted} <= set(range(2, 7))
    assert all(body["ignore_eos"] and body["stream"] for body in counted)
    lengths = levels_of(bench)[0][8]["metrics"]["input_sequence_length"]
    words = [
        sum(len(turn["content"].split()) for turn in body["messages"]) for body in counted[-16:]
    ]
    assert lengths["max"] == max(words)


def test_too_few_requests_claim_no_percentile_at_all(stub_bench):
    evidence, _, _ = stub_bench(evaluation={"latency_requests": 2})
    assert value(evidence, "percentiles_claimed") == "none"
    assert value(evidence, "percentiles_not_claimed").startswith("p50 (needs 6 requests)")

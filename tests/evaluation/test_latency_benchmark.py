"""latency_benchmark: on real servers of the engine, and faults of servers whose times are known."""

import itertools
import json
import time
from contextlib import contextmanager

import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab.engines import llama_server
from tests.lab.runs import broken, value, values
from tests.lab.tiny_task import task_rows
from tests.lab.token_server import TokenServer
from tests.lab.token_stream import Behaviour

from tuneline.asking import load as load_client
from tuneline.asking.hardware import this_machine
from tuneline.evaluation import latency_benchmark
from tuneline.evaluation.latency import findings
from tuneline.models.tool_turns import to_plain

# Answers of few tokens: the tests wait for the server, not for its answers.
FEW = {"max_new_tokens": 4, "max_ttft_seconds": 0.25, "max_tpot_seconds": 0.1}
SOON = {"requests_per_s": 20.0, "seconds": 1.5}
# A hundred requests.
QUICK = {"requests_per_s": 40.0, "seconds": 0.5}
LOWEST = "good_share_at_the_lowest_level"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Other work on the machine makes the client late, which one test alone is about."""
    monkeypatch.setattr(findings, "MAX_LATE", 60.0)


def levels_of(bench):
    report = bench.document("latency_benchmark", "latency.json")
    return {level["concurrency"]: level for level in report["levels"]}, report


def test_a_fast_server_passes_with_table_and_plot(scored_lab):
    settings = {"load": QUICK, "max_ttft_seconds": 30.0, "max_tpot_seconds": 10.0}
    bench = scored_lab(deployment={"context_tokens": 256}, evaluation=settings)
    evidence = bench.execute("latency_benchmark")
    assert evidence.verdict == "pass", broken(evidence)
    assert value(evidence, "levels") == 4
    assert value(evidence, "concurrency_within_objective") == 8
    levels, report = levels_of(bench)
    assert list(levels) == [1, 2, 4, 8]
    assert all(row["tokens_per_s"] > 0 and row["ttft_p50"] > 0 for row in levels.values())
    # Four slots: alone the engine decodes one request, at eight at most four together.
    assert levels[1]["batch"] == pytest.approx(1.0, abs=0.05)
    assert 1.5 < levels[8]["batch"] < 4.01
    assert bench.artifact("latency_benchmark", "latency.svg").read_bytes()[:5] == b"<?xml"
    assert "requests at once within" in evidence.summary
    # The engine takes what it shares with others, the system turn, from its cache.
    (run,) = report["open_loop"]
    assert 0.3 < run["cached_share"] <= run["shared_share"] < 0.8


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
    assert broken(evidence) == {"hardware_differences"}
    assert value(evidence, "measured_on") == this_machine().computed_on(on_gpu=False)
    assert value(evidence, "hardware_declared") == "nvidia-h100"


@pytest.fixture
def stub_bench(lab, tmp_path, monkeypatch):
    """Run the item against a `TokenServer`; give its evidence, its run and the server."""

    def execute(
        behaviour=None, *, identity=None, profile="laptop", hardware="cpu", rows=None, **evaluation
    ):
        deployment = {"target_hardware": hardware}
        bench = lab(profile=profile, deployment=deployment, evaluation={**FEW, **evaluation})
        bench.leave_dataset(rows or task_rows(SPLITS))
        # No engine loads it: the stub answers.
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        bench.leave_shipped(tmp_path / "model.gguf")
        if identity is not None:
            bench.leave("build_engine", {"identity.json": identity, "engine.json": "{}"})
        with TokenServer(behaviour) as server:

            @contextmanager
            def serve(model, deployment, *, threads=None):
                yield server

            monkeypatch.setattr(latency_benchmark, "server_of", serve)
            return bench.execute("latency_benchmark"), bench, server

    return execute


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
    first = metrics["time_to_first_token"]
    lower, upper = first["intervals"]["p50"]
    assert lower <= first["p50"] <= upper
    assert first["p95"] is levels[1]["ttft_p95"] is None
    assert metrics["request_latency"]["p50"] >= first["p50"] >= 2.0
    assert metrics["goodput"]["avg"] > 0
    # As many as decide, 8, 8 and twice 8 are counted; one for each of the four slots comes before.
    assert [level["requests"] for level in levels.values()] == [46, 8, 8, 16]
    assert len(server.bodies) == 78 + 4
    assert found["warm_up_requests"] == 4


def test_rows_with_other_tools_and_calls_come_again(stub_bench):
    """What tells two prompts apart may be in the middle of JSON."""

    def turns(number, asked, answer):
        tools = [{"type": "function", "function": {"name": n, "parameters": {}}} for n in "ab"]
        call = {"name": "a", "arguments": {"order": number}}
        called = {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}
        said = [asked, called, {"role": "tool", "content": f"At gate {number}."}, answer]
        return to_plain(said, tools[: 1 + number % 2])

    rows = task_rows(SPLITS)
    for number, row in enumerate(rows):
        asked = {"role": "user", "content": "Where is my order?"}
        row["messages"] = turns(number, asked, row["messages"][-1])
    evidence, _, server = stub_bench(rows=rows)
    assert value(evidence, "failed_requests") == 0
    sent = {json.dumps(body["messages"]) + json.dumps(body["tools"]) for body in server.bodies}
    assert len(sent) == len(server.bodies)


@pytest.mark.parametrize("warm_up", [{}, {"latency_warmup": 0}])
def test_warm_up_requests_are_not_counted(stub_bench, warm_up):
    """The first requests of a fresh server are slow; they must not reach the table."""
    _, bench, _ = stub_bench(Behaviour(slow_first=4, stall=0.4), **warm_up)
    slowest = levels_of(bench)[0][1]["metrics"]["time_to_first_token"]["max"]
    assert (slowest >= 400) == bool(warm_up)


@pytest.mark.parametrize(
    ("every", "verdict", "requests", "breaks"),
    [
        (20, "pass", 414, set()),
        (12, "inconclusive", 414, {f"{LOWEST}_at_least"}),
        (5, "fail", 138, {f"{LOWEST}_at_least", f"{LOWEST}_at_most"}),
    ],
)
def test_the_share_in_time_is_decided_by_its_interval(stub_bench, every, verdict, requests, breaks):
    """Servers that truly answer 95 %, 92 % and 80 % of their requests in time."""
    stalls = Behaviour(stall_every=every, stall=0.11)
    evidence, bench, _ = stub_bench(stalls, max_ttft_seconds=0.1)
    assert (evidence.verdict, broken(evidence)) == (verdict, breaks)
    assert levels_of(bench)[0][1]["requests"] == requests
    assert ("does not reach" in evidence.summary) is (verdict == "fail")


def test_p95_sees_every_fifth_request_stall_and_p50_does_not(stub_bench):
    requests = {"latency_requests": 80, "concurrency": [4, 8, 12, 16], "objective_share": 0.95}
    evidence, bench, _ = stub_bench(Behaviour(stall_every=5, stall=0.4), **requests)
    row = levels_of(bench)[0][4]
    assert row["ttft_p50"] < 0.25 < 0.4 <= row["ttft_p95"]
    lower, upper = row["metrics"]["time_to_first_token"]["intervals"]["p95"]
    assert lower <= 1000 * row["ttft_p95"] <= upper
    assert value(evidence, "percentiles_claimed") == "p50, p90, p95"
    assert "p99 (needs 368 requests)" in value(evidence, "percentiles_not_claimed")
    assert (evidence.verdict, row["requests"]) == ("fail", 94)


@pytest.mark.parametrize("dies_at", [6, 54])
def test_a_server_that_dies_leaves_partial_results_and_fails(stub_bench, dies_at):
    evidence, bench, _ = stub_bench(Behaviour(dies_at=dies_at), load=SOON)
    assert evidence.verdict == "fail"
    assert {"complete", "failed_requests"} <= broken(evidence)
    assert "partial results, since the server ended with exit code -9" in evidence.summary
    levels, report = levels_of(bench)
    assert report["complete"] is False
    # Four requests are warm-up; what was answered before is kept, but for the dying one and one
    # that may have been under way next to it.
    done = sum(level["requests"] - level["failed"] for level in levels.values())
    assert done in (dies_at - 4 - 1, dies_at - 4 - 2)
    assert value(evidence, "peak_tokens_per_s") > 0
    assert (bench.artifact("latency_benchmark", "latency.svg")).is_file()


CARRIED = {"users": 400, "requests_per_user_per_minute": 3.0, "seconds": 1.0}


def test_a_load_that_is_carried_passes_with_users_and_replicas(stub_bench):
    evidence, bench, _ = stub_bench(load=CARRIED)
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert (found["declared_load"], found["load_of_a_server"]) == (20.0, 25.0)
    assert found["good_share_at_load"] >= 0.9
    assert found["replicas_needed"] == 1
    assert found["users_per_server"] >= 400
    assert abs(found["queue_growth_at_load"]) < 0.2
    (run,) = levels_of(bench)[1]["open_loop"]
    assert (run["requests"], run["requests_per_s_planned"]) == (100, 25.0)
    assert "holds with 25% headroom" in evidence.summary


# After 4 requests of the warm-up and 78 in closed loops; the others are of the load.
UNDER_LOAD = 120
PATIENT = {"load": CARRIED, "max_ttft_seconds": 2.0, "max_tpot_seconds": 1.0}


def test_a_request_that_fails_under_load_alone_fails(stub_bench):
    evidence, _, _ = stub_bench(Behaviour(short_at=UNDER_LOAD), **PATIENT)
    assert (evidence.verdict, broken(evidence)) == ("fail", {"failed_requests_at_load"})


def test_a_client_that_is_too_slow_for_the_load_warns(stub_bench, monkeypatch):
    """It stops before a request, which the objective would forgive."""
    asked = itertools.count(1)

    class Busy(load_client.Link):
        async def ask(self, request):
            if next(asked) == UNDER_LOAD:
                time.sleep(0.2)
            return await super().ask(request)

    monkeypatch.setattr(load_client, "Link", Busy)
    monkeypatch.setattr(findings, "MAX_LATE", 0.1)
    evidence, _, _ = stub_bench(**PATIENT)
    assert (evidence.verdict, broken(evidence)) == ("warn", {"client_late"})
    assert value(evidence, "client_late") >= 0.1


def test_no_prompt_is_sent_twice(stub_bench):
    """Thirty rows for more than two hundred requests."""
    _, _, server = stub_bench(load=QUICK)
    prompts = {json.dumps(body["messages"]) for body in server.bodies}
    assert len(prompts) == len(server.bodies) > 150


@pytest.mark.parametrize(("cached", "verdict"), [(0.4, "pass"), (1.0, "inconclusive")])
def test_a_load_that_a_cache_answers_shows_nothing(stub_bench, cached, verdict):
    """Half of a prompt's words are its own."""
    evidence, _, _ = stub_bench(Behaviour(cached=cached), load=QUICK)
    assert evidence.verdict == verdict
    assert broken(evidence) == ({"cached_share_at_load"} if cached == 1.0 else set())


@pytest.mark.parametrize(
    ("profile", "hardware", "names"),
    [
        ("laptop", "laptop-cpu", set()),
        ("production", "server-cpu", {"hardware_differences"}),
        ("production", this_machine().computed_on(on_gpu=False), set()),
    ],
)
def test_a_target_that_any_machine_meets_warns_in_production(stub_bench, profile, hardware, names):
    evidence, _, _ = stub_bench(profile=profile, hardware=hardware, load=QUICK)
    assert broken(evidence) == names
    assert evidence.verdict == ("warn" if names else "pass")


# 20 ms a request on one slot: it carries 50 requests a second, and every closed loop is fine.
ONE_SLOT = Behaviour(first=0.02, token=0.0, slots=1)
OVERLOAD = {"requests_per_s": 80.0, "headroom": 0.0, "seconds": 0.6}


def test_an_overload_that_closed_loops_hide_fails(stub_bench):
    """Four at once wait 0.08 s; above the capacity a queue grows without end."""
    evidence, bench, _ = stub_bench(ONE_SLOT, concurrency=[1, 2, 3, 4], load=OVERLOAD)
    assert evidence.verdict == "fail"
    found = values(evidence)
    assert found["concurrency_within_objective"] == 4
    assert "good_share_at_load_at_most" in broken(evidence)
    assert found["good_share_at_load"] < 0.6
    # 1 - 50 / 80 of each second is left over, or a little more on a busy machine.
    assert found["queue_growth_at_load"] > 0.25
    assert found["replicas_needed"] is None or found["replicas_needed"] >= 2
    assert "does not hold" in evidence.summary
    runs = levels_of(bench)[1]["open_loop"]
    assert runs[0]["goodput_per_s"] < runs[0]["requests_per_s"]
    assert len(runs) > 1


def test_more_replicas_carry_the_same_load(stub_bench):
    load = {**OVERLOAD, "replicas": 4}
    evidence, _, _ = stub_bench(ONE_SLOT, concurrency=[1, 2, 3, 4], load=load, objective_share=0.7)
    assert value(evidence, "load_of_a_server") == 20.0
    assert evidence.verdict in ("pass", "warn"), broken(evidence)


@pytest.mark.parametrize(
    ("served", "names"),
    [
        ({}, set()),
        ({"max_batch_size": 8}, {"served_parallel"}),
        ({"max_total_tokens": 4096}, {"served_context_tokens"}),
        ({"threads": 3}, {"served_threads"}),
    ],
)
def test_a_served_limit_that_was_not_measured_fails(stub_bench, served, names):
    limits = {"max_batch_size": 4, "max_total_tokens": 1024, "threads": 1, **served}
    identity = json.dumps({"engine": "llama_cpp", "served": limits, "files": {}})
    evidence, _, _ = stub_bench(identity=identity)
    assert evidence.verdict == ("fail" if names else "pass"), broken(evidence)
    assert broken(evidence) == names
    assert value(evidence, "served_limits_known") is True


def test_answers_and_prompts_have_the_lengths_of_the_data(stub_bench):
    evidence, bench, server = stub_bench(max_new_tokens=6)
    expected = bench.document("latency_benchmark", "latency.json")["expected_answers"]
    assert value(evidence, "answer_tokens_p50") == expected["p50"]
    counted = server.bodies[4:]
    assert {body["max_tokens"] for body in counted} <= set(range(2, 7))
    assert all(body["ignore_eos"] and body["stream"] for body in counted)
    lengths = levels_of(bench)[0][8]["metrics"]["input_sequence_length"]
    words = [sum(len(t["content"].split()) for t in body["messages"]) for body in counted[-16:]]
    assert lengths["max"] == max(words)

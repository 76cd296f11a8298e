import socket
from dataclasses import replace

import pytest
from tests.lab.runs import broken, values

from tuneline.asking.load import drive
from tuneline.asking.models import hashed, server_of
from tuneline.config import DeploymentConfig
from tuneline.data.tables.rows import Row
from tuneline.deployment import cold_start
from tuneline.deployment.cold_start import Start, WarmStart, judge, shared_system
from tuneline.errors import RetryableError
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.serving.processes import free_port, wait_for

COLD = [Start(1.0, 0.5, 0.1, 0)] * 3
WARM = WarmStart(True, True, 1.5, 0.1, 0.1, 0)


@pytest.mark.parametrize(
    ("starts", "broken_rules"),
    [
        ([WARM] * 3, []),
        ([WARM, WARM, replace(WARM, seen_unready=False)], ["ready_before_warm_up"]),
        ([WARM, WARM, replace(WARM, warm_when_ready=False)], ["ready_before_warm_up"]),
        ([replace(WARM, first_ttft=3.0)] * 2 + [WARM], ["warmed_first_ttft"]),
        ([replace(WARM, failed=1), WARM, WARM], ["failed_requests"]),
    ],
)
def test_readiness_after_warm_up_and_a_quick_first_request(starts, broken_rules):
    assert [m.name for m in judge(COLD, starts, 2.0) if m.ok is False] == broken_rules


def test_real_processes_start_cold_and_warm(exported_lab):
    evidence = exported_lab().execute("cold_start")
    assert evidence.verdict == "pass", broken(evidence)
    found = values(evidence)
    assert 0 < found["warmed_first_ttft"] < 2
    assert 0 < found["load_seconds"] < found["ready_seconds"]


def test_a_gateway_that_skips_the_warm_up_fails(exported_lab, monkeypatch):
    plain = GatewayProcess.__init__

    def without(self, folder, **options):
        readiness = {**options["settings"]["readiness"], "warmup_prompt_words": []}
        plain(self, folder, **{**options, "settings": {"readiness": readiness}})

    monkeypatch.setattr(GatewayProcess, "__init__", without)
    evidence = exported_lab().execute("cold_start")
    assert evidence.verdict == "fail"
    assert "before their warm-up" in evidence.summary


def row(number, system):
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": f"question {number}"})
    turns.append({"role": "assistant", "content": "answer"})
    return Row(str(number), turns, "rows.jsonl", 1 + number)


def test_the_system_turn_of_most_rows_is_found():
    rows = [row(0, None), row(1, "Answer in French."), row(2, "Be brief."), row(3, "Be brief.")]
    assert shared_system([*rows, row(4, "Be brief.")]).system == "Be brief."
    # Half of the rows are not most of them.
    half = shared_system(rows)
    assert (half.system, half.share, half.rows) == (None, 0.5, 4)
    assert shared_system(rows[:1]).system is None
    assert shared_system([]).share == 0


def test_a_warmed_engine_has_the_system_turn_in_its_cache(tiny_models, tmp_path):
    system = " ".join(f"Rule {number}: answer in one word." for number in range(12))
    asked = [{"role": "system", "content": system}, {"role": "user", "content": "ping"}]

    def tokens_read(warmed_with):
        started = starter(tiny_models, tmp_path, warmed_with)
        server = server_of(started.model, started.deployment, port=free_port())
        with GatewayProcess(
            tmp_path / f"gateway-{warmed_with is None}",
            upstreams=[server.upstream("engine") | {"warmup_system": warmed_with}],
            models=[{"id": "model", "chain": ["engine"]}],
            settings={"readiness": {"ping_interval_s": 60.0, "warmup_prompt_words": [8]}},
        ) as gateway:
            server.launch()
            try:
                assert wait_for(lambda: gateway.get("/v1/health/ready").status_code == 200, 60) < 60
                before = server.counters().prompt_tokens
                with server.client() as client:
                    drive(client, [asked], 1, 4)
                return server.counters().prompt_tokens - before
            finally:
                server.stop()

    assert tokens_read(system) < 0.5 * tokens_read(None)


def starter(tiny_models, tmp_path, system=None):
    prompts = [[{"role": "user", "content": "ping"}]]
    model = hashed("llama_cpp", tiny_models.candidate_gguf)
    deployment = DeploymentConfig(parallel=1, context_tokens=512)
    return cold_start.Starter(model, deployment, prompts=prompts, folder=tmp_path, system=system)


@pytest.mark.parametrize("kind", ["cold", "warmed"])
def test_an_engine_whose_port_was_taken_meanwhile_is_not_waited_for(
    kind, tiny_models, tmp_path, monkeypatch
):
    started = starter(tiny_models, tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        monkeypatch.setattr(cold_start, "free_port", lambda: other.getsockname()[1])
        with pytest.raises(RetryableError, match=r"the engine ended with exit code 1: .+"):
            started.cold(0) if kind == "cold" else started.warmed(0)

"""The probes against planted faults: servers that answer their health route and nothing else."""

import json
import time

import pytest
from tests.lab.engines import llama_server
from tests.lab.http_server import Handler, serving

from tuneline.cli import main
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.probe import live, ready

METRICS = (
    "llamacpp:n_decode_total {}\nllamacpp:prompt_tokens_total 9\nllamacpp:requests_processing {}\n"
)

VLLM_METRICS = (
    'vllm:iteration_tokens_total_count{{engine="0",model_name="m"}} {}\n'
    'vllm:num_requests_running{{engine="0",model_name="m"}} {}\n'
)


def server(*, busy=0, moves=False, hangs=False, status=200, metrics=METRICS):
    """A server with a healthy health route; what else is wrong is asked for."""
    steps = iter(range(10, 1000))

    class Engine(Handler):
        def do_GET(self):
            if self.path == "/metrics":
                self.answer(metrics.format(next(steps) if moves else 10, busy).encode())
            elif self.path == "/v1/models":
                self.answer(json.dumps({"data": [{"id": "m"}]}).encode())
            else:
                self.answer(b"{}")

        def do_POST(self):
            self.body()
            if hangs:
                time.sleep(3)
            self.answer(json.dumps({"usage": {"completion_tokens": 1}}).encode(), status)

    return serving(Engine)


def test_only_an_engine_that_makes_tokens_is_live_and_ready():
    with server() as url:
        assert live(url, 1.0).ok
        assert ready(url, 1.0, "m").ok
        assert ready(url, 1.0, "other").reason == "it serves m, not other"
    assert live(url, 1.0).reason == "nothing listens"
    assert not engine_probe.listens(url, 1.0)
    with server(hangs=True) as url:
        assert engine_probe.listens(url, 1.0)
        found = live(url, 0.5)
        assert (found.ok, found.reason) == (False, "no answer in time")
        assert found.seconds < 1.0
    with server(status=500) as url:
        assert live(url, 1.0).reason == "it answered 500"


@pytest.mark.parametrize("metrics", ["{{}}", "a", "[1]", "llamacpp:requests_processing many"])
def test_counters_that_can_not_be_read_are_a_no(metrics):
    with server(metrics=metrics) as url:
        assert not ready(url, 1.0, "m").ok


@pytest.mark.parametrize("metrics", [METRICS, VLLM_METRICS])
@pytest.mark.parametrize("moves", [True, False])
def test_a_busy_engine_has_no_slot_for_a_ping_and_must_move(metrics, moves):
    with server(busy=4, moves=moves, hangs=True, metrics=metrics) as url:
        assert live(url, 1.0).ok is ready(url, 1.0).ok is moves
        assert moves or live(url, 1.0).reason == "requests are under way and nothing moves"


def test_the_command_tells_by_its_exit_code(tiny_models, capsys):
    with llama_server(tiny_models.candidate_gguf, alias="m", ctx=256) as running:
        url = running.base_url
        assert main(["probe", "live", "--engine", url]) == 0
        assert main(["probe", "ready", "--engine", url, "--model", "m"]) == 0
        assert main(["probe", "ready", "--engine", url, "--model", "other"]) == 1
        assert main(["probe", "startup", "--engine", url, "--model", "m"]) == 0
    assert main(["probe", "live", "--engine", url, "--timeout", "1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "live: no, nothing listens"


@pytest.mark.parametrize("timeout", ["0", "-1"])
def test_no_time_is_no(timeout):
    with server() as url:
        assert main(["probe", "live", "--engine", url, "--timeout", timeout]) == 1

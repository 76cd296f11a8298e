"""A running gateway takes over a changed file, or says why it does not, and drops nothing."""

import json
import signal
import time

import pytest
import yaml
from tests.lab.steady_load import SteadyLoad
from tests.lab.waiting import wait_for
from tests.serving.gateway.conftest import upstream_entry

from tuneline.serving.gateway.app.server import fingerprint
from tuneline.serving.gateway.process import GatewayProcess

ASKED = [{"role": "user", "content": "a b c"}]
QUICK = {"ping_interval_s": 0.2, "ping_timeout_s": 10.0, "stale_after_s": 15.0}


class Reloading:
    """A gateway process over the configuration that `write` wrote last."""

    def __init__(self, folder, *servers):
        self.gateway = GatewayProcess(
            folder,
            upstreams=[upstream_entry(server) for server in servers],
            models=[{"id": "support", "chain": [server.name for server in servers]}],
            settings={"readiness": {**QUICK, "warmup_timeout_s": 10.0}},
        )
        self.path = folder / "gateway.yaml"
        self.document = json.loads(self.path.read_text())

    def write(self, text):
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    def offer(self, **changes):
        """Write the file with changes and ask for a reload."""
        self.write(json.dumps({**self.document, **changes}))
        self.gateway.signal(signal.SIGHUP)

    def ready(self):
        return self.gateway.get("/v1/health/ready").json()

    def settled(self):
        """What the gateway says of the file once it has looked at it."""
        wanted = fingerprint(self.path)
        # On a busy machine a warm-up takes its time.
        wait_for(
            lambda: wanted in (self.ready()["reload"][key] for key in ("taken", "refused")), 60
        )
        return self.ready()["reload"]

    def wait_ready(self):
        wait_for(lambda: self.gateway.get("/v1/health/ready").status_code == 200)

    def log_with(self, words):
        """The log once it holds some words; its lines are written out ten times a second."""
        wait_for(lambda: words in self.gateway.read_log())
        return self.gateway.read_log()

    def ask(self, **fields):
        return self.gateway.chat("support", ASKED, max_tokens=8, **fields)


@pytest.fixture
def reloading(tmp_path, small):
    made = Reloading(tmp_path / "gateway", small)
    with made.gateway:
        made.wait_ready()
        yield made


def other(server, **fields):
    return {
        "upstreams": [upstream_entry(server, **fields)],
        "models": [{"id": "support", "chain": [server.name]}],
    }


def test_requests_go_to_the_new_upstream(reloading, large):
    assert reloading.ask().served_by == "small"
    reloading.offer(**other(large))
    assert reloading.settled()["taken"] == fingerprint(reloading.path)
    assert reloading.ask().served_by == "large"
    # It proved itself before any request came.
    assert any(str(body["messages"][0]["content"]).startswith("warm") for body in large.pings())
    metrics = reloading.gateway.get("/metrics").text
    assert 'tuneline_gateway_reloads_total{outcome="taken"} 1' in metrics


def test_a_candidate_answers_its_keys_from_the_first_request_on(reloading, small, large):
    # Its warm-up takes a second; until then it would be passed over.
    large.answer_delay_s = 0.5
    canary = {"upstream": "large", "share": 0.999999}
    reloading.offer(
        upstreams=[upstream_entry(small), upstream_entry(large)],
        models=[{"id": "support", "chain": ["small"], "canary": canary}],
    )
    assert reloading.settled()["taken"] == fingerprint(reloading.path)
    assert {reloading.ask().served_by for _ in range(3)} == {"large"}


def test_a_stream_finishes_on_the_upstream_that_began_it(reloading, small, large):
    small.words, small.token_delay_s = 20, 0.1
    with reloading.gateway.stream("support", ASKED, max_tokens=20) as (_, chunks):
        next(chunks)
        reloading.offer(**other(large))
        assert reloading.settled()["retiring"] == 1
        assert reloading.ask().served_by == "large"
        rest = [
            choice["delta"].get("content") or ""
            for chunk in chunks
            for choice in chunk.get("choices", [])
        ]
    assert "small-19" in "".join(rest)
    wait_for(lambda: reloading.ready()["reload"]["retiring"] == 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("upstreams: [", "gateway.yaml"),
        ("port: many", "`port`"),
    ],
)
def test_a_wrong_file_is_refused_and_the_old_one_stays(reloading, text, why):
    taken = reloading.ready()["reload"]["taken"]
    reloading.write(text)
    reloading.gateway.signal(signal.SIGHUP)
    assert reloading.settled() == {
        "taken": taken,
        "refused": fingerprint(reloading.path),
        "retiring": 0,
    }
    assert reloading.ask().served_by == "small"
    log = reloading.log_with("the configuration stays as it was")
    assert why in log
    assert "Traceback" not in log


def test_an_upstream_that_does_not_answer_is_not_switched_to(reloading, large):
    large.mode = "error"
    reloading.offer(**other(large))
    assert reloading.settled()["refused"] == fingerprint(reloading.path)
    assert reloading.log_with("while the gateway is ready as it is")
    assert reloading.ask().served_by == "small"
    large.mode = "ok"
    reloading.gateway.signal(signal.SIGHUP)
    wait_for(lambda: reloading.ready()["reload"]["refused"] is None)
    assert reloading.ask().served_by == "large"


def test_a_key_that_is_bound_at_the_start_is_refused(reloading, tmp_path):
    reloading.offer(ledger={"path": str(tmp_path / "other.sqlite")})
    assert reloading.settled()["refused"]
    assert reloading.log_with("`ledger` can't change while the gateway runs")
    reloading.offer(max_in_flight=1)
    assert reloading.settled()["refused"] is None


def test_an_unchanged_upstream_keeps_its_proof(reloading, small):
    wait_for(lambda: reloading.ready()["upstreams"] == {"small": "ready"})
    warmed = sum("warm" in str(body) for body in small.pings())
    reloading.offer(max_in_flight=7)
    assert reloading.settled()["refused"] is None
    assert reloading.ready()["upstreams"] == {"small": "ready"}
    assert sum("warm" in str(body) for body in small.pings()) == warmed


def test_what_is_released_but_not_served_shows(reloading, small):
    models = [{"id": "support", "chain": ["small"], "released": "b"}]
    reloading.offer(upstreams=[upstream_entry(small, version="a")], models=models)
    reloading.settled()
    assert reloading.ready()["behind"] == {"support": "b"}
    behind = 'tuneline_gateway_release_behind{model="support"}'
    assert f"{behind} 1" in reloading.gateway.get("/metrics").text
    reloading.offer(upstreams=[upstream_entry(small, version="b")], models=models)
    reloading.settled()
    assert reloading.ready()["behind"] == {}
    assert f"{behind} 0" in reloading.gateway.get("/metrics").text


def test_a_switch_under_load_drops_no_request(reloading, small, large):
    """50 requests a second, two switches, the old engine stopped after each."""
    small.answer_delay_s = large.answer_delay_s = 0.2
    gateway = reloading.gateway
    with SteadyLoad(gateway.base_url, gateway.keys["trial"], "support", 50) as load:
        time.sleep(1)
        for new, old in ((large, small), (small, large)):
            new.start()
            reloading.offer(**other(new))
            assert reloading.settled()["refused"] is None
            wait_for(lambda: reloading.ready()["reload"]["retiring"] == 0)
            old.stop()
            time.sleep(1)
    small.start()
    large.start()
    assert len(load.answers) > 60
    assert {answer.status for answer in load.answers} == {200}
    assert {answer.attempts for answer in load.answers} == {"small", "large"}


def test_watching_waits_for_the_file_and_follows_it(tmp_path, small, large):
    made = Reloading(tmp_path / "gateway", small)
    made.path.unlink()
    made.gateway = WatchingProcess(made.gateway)
    made.gateway.launch()
    wait_for(lambda: "waiting for" in made.gateway.read_log())
    made.write(yaml.safe_dump({**made.document, "upstreams": [], "models": []}))
    wait_for(lambda: made.gateway.waiting_for() is None)
    try:
        assert made.ready()["message"] == "no model is served yet"
        assert made.gateway.get("/v1/health/live").status_code == 200
        assert made.ask().status == 404
        made.write(json.dumps({**made.document, **other(large)}))
        made.settled()
        wait_for(lambda: made.gateway.get("/v1/health/ready").status_code == 200)
        assert made.ask().served_by == "large"
    finally:
        made.gateway.stop()


class WatchingProcess(GatewayProcess):
    """The same gateway, started with `--watch`."""

    def __init__(self, of):
        self.__dict__.update(of.__dict__)
        self._command = [*of._command, "--watch"]


def test_a_canary_answers_its_keys_and_both_arms_are_counted(reloading, small, large):
    # A ping that fails first would have it passed over.
    canary = {"upstream": "large", "share": 0.999999}
    reloading.offer(
        upstreams=[upstream_entry(small), upstream_entry(large, ping=False)],
        models=[{"id": "support", "chain": ["small"], "canary": canary}],
    )
    assert reloading.settled()["refused"] is None
    assert reloading.ask().served_by == "large"
    large.mode = "error"
    left = reloading.ask()
    assert (left.served_by, left.fallback_reason) == ("small", "upstream_5xx")
    arms = reloading.ready()["canary"]["large"]
    assert arms["candidate"]["requests"] == sum(arms["candidate"]["seconds"]) == 2
    assert arms["candidate"]["hits"]["fallbacks"] == 1
    assert arms["released"]["requests"] == 0


@pytest.mark.parametrize(
    ("own", "served_by"), [({"min_mean_logprob": -1.0}, "large"), (None, "small")]
)
def test_a_candidate_has_limits_of_its_own(reloading, small, large, own, served_by):
    """Its answers are less sure than the limit of the chain allows, and surer than its own."""
    large.logprob = -0.5
    canary = {"upstream": "large", "share": 0.999999, "low_confidence": own}
    model = {"id": "support", "chain": ["small", "again"], "canary": canary}
    reloading.offer(
        upstreams=[*map(upstream_entry, (small, large)), upstream_entry(small) | {"name": "again"}],
        models=[{**model, "low_confidence": {"min_mean_logprob": -0.2}}],
    )
    assert reloading.settled()["refused"] is None
    assert reloading.ask().served_by == served_by
    arms = reloading.ready()["canary"]["large"]
    assert arms["candidate"]["hits"]["answers of low confidence"] == (own is None)

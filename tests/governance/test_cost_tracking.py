"""cost_tracking: a ledger that agrees with its witnesses passes, each way to be wrong is caught."""

import sqlite3
from contextlib import closing

import pytest
from tests.lab.runs import broken, value

from tuneline.governance import cost_tracking
from tuneline.governance.cost_tracking import REQUESTS
from tuneline.governance.gateway.billing import Traffic
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.gateway.process import GatewayProcess


@pytest.fixture
def calm_alone(monkeypatch):
    """Leave traffic that goes wrong out, which has faults of its own below."""
    monkeypatch.setattr(Traffic, "run", lambda self: [])


def test_real_requests_are_reconciled_and_priced(served_lab):
    lab = served_lab(governance={"machine_cost_per_hour": 0.36, "currency": "EUR"})
    evidence = lab.execute("cost_tracking")
    assert broken(evidence) == set()
    assert evidence.verdict == "pass"
    # A client that left after three pieces is billed what it got, and little is left unbilled.
    assert value(evidence, "aborted_tokens_below_received") == 0
    # The dead upstream is known to be dead and passed over; both that answered are billed.
    assert value(evidence, "fallbacks_attempts") == 6
    assert value(evidence, "killed_requests_lost") <= 1
    assert (
        "8 requests of 2 keys: every token of requests that ended is counted the same"
        in evidence.summary
    )
    # 0.36 an hour at 200 tokens a second: 0.0001 a second, 0.0005 for 1,000 tokens.
    assert value(evidence, "cost_per_1000_tokens") == pytest.approx(0.0005)
    usage = lab.document("cost_tracking", "usage.json")
    assert {row["key"]: row["requests"] for row in usage["by_key"]} == REQUESTS
    tokens = sum(row["completion_tokens"] for row in usage["by_key"])
    # The gateway's own ping is in the upstream's totals, but on nobody's bill.
    assert usage["upstream"]["completion_tokens"] >= tokens > 0
    cost = sum(value(evidence, f"cost_of_{key}") for key in REQUESTS)
    assert cost == pytest.approx(tokens * 5e-7)
    assert value(evidence, "cost_per_request") == pytest.approx(cost / 8)


_ONE = "request_id = (SELECT max(request_id) FROM usage WHERE key = 'team-a')"
_COUNTS = {"requests", "keys_that_differ_from_clients", "completion_tokens_off_engine"}
_COLUMNS = (
    "attempt, time, kind, key, user_id, model, upstream, model_served, prompt_tokens, "
    "cached_tokens, completion_tokens, estimated, cost, currency, latency_ms, ttft_ms, "
    "mean_logprob, status, served, fallback_reason"
)


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        pytest.param(f"DELETE FROM usage WHERE {_ONE}", _COUNTS, id="a request is lost"),
        pytest.param(
            f"INSERT INTO usage (request_id, {_COLUMNS}) "
            f"SELECT 'again', {_COLUMNS} FROM usage WHERE {_ONE}",
            _COUNTS,
            id="a request is doubled",
        ),
        pytest.param(
            f"UPDATE usage SET completion_tokens = completion_tokens + 1 WHERE {_ONE}",
            {"keys_that_differ_from_clients", "completion_tokens_off_engine"},
            id="a token too many",
        ),
        pytest.param(
            f"UPDATE usage SET key = 'team-b' WHERE {_ONE}",
            {"keys_that_differ_from_clients"},
            id="the other key is billed",
        ),
        pytest.param(
            f"UPDATE usage SET estimated = 1 WHERE {_ONE}",
            {"estimated_attempts", "completion_tokens_off_engine"},
            id="a count is a guess",
        ),
    ],
)
def test_a_ledger_that_was_tampered_with_fails(served_lab, calm_alone, monkeypatch, fault, names):
    class Tampered(GatewayProcess):
        def __exit__(self, *error):
            super().__exit__(*error)
            with closing(sqlite3.connect(self.ledger)) as ledger, ledger:
                assert ledger.execute(fault).rowcount == 1

    monkeypatch.setattr(cost_tracking, "GatewayProcess", Tampered)
    evidence = served_lab().execute("cost_tracking")
    assert evidence.verdict == "fail"
    # Prompts that the engine had cached are not computed again, so it may count none of them.
    assert broken(evidence) - {"prompt_tokens_off_engine"} == names
    assert "the ledger does not add up" in evidence.summary
    assert "counted the same" not in evidence.summary


def test_tokens_that_passed_the_gateway_by_fail(served_lab, calm_alone, monkeypatch):
    """Ledger and clients agree; only the engine knows of one request more."""

    class Bypassed(LlamaServer):
        def client(self, **options):
            client = super().client(**options)
            if getattr(self, "asked", False):
                client.chat([{"role": "user", "content": "aside"}], max_tokens=4)
            self.asked = True
            return client

    monkeypatch.setattr("tuneline.serving.engines.llama_cpp.engine.LlamaServer", Bypassed)
    evidence = served_lab().execute("cost_tracking")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"completion_tokens_off_engine", "prompt_tokens_off_engine"}


# Faults that a ledger of its own can have, as triggers in its database.
_TRIGGERS = """
CREATE TRIGGER forgets_what_was_streamed AFTER INSERT ON usage
WHEN NEW.status = 'client_aborted' AND NEW.ttft_ms IS NOT NULL
BEGIN UPDATE usage SET completion_tokens = 0 WHERE request_id = NEW.request_id; END;
CREATE TRIGGER bills_a_stream_twice AFTER INSERT ON usage
WHEN NEW.status = 'ok' AND NEW.ttft_ms IS NOT NULL
BEGIN UPDATE usage SET completion_tokens = 2 * completion_tokens
WHERE request_id = NEW.request_id; END;
CREATE TRIGGER drops_attempts_that_were_left AFTER INSERT ON usage
WHEN NEW.status = 'low_confidence'
BEGIN DELETE FROM usage WHERE request_id = NEW.request_id AND attempt = NEW.attempt; END;
"""


def test_a_ledger_that_fails_on_traffic_that_goes_wrong_is_caught(served_lab, monkeypatch):
    class Faulty(GatewayProcess):
        def start(self):
            super().start()
            with closing(sqlite3.connect(self.ledger)) as ledger, ledger:
                ledger.executescript(_TRIGGERS.replace("CREATE TRIGGER", _ONCE))

        def restart(self):
            with closing(sqlite3.connect(self.ledger)) as ledger, ledger:
                ledger.execute("UPDATE usage SET cost = 0 WHERE key = 'team-a'")
            super().restart()

    monkeypatch.setattr(cost_tracking, "GatewayProcess", Faulty)
    evidence = served_lab().execute("cost_tracking")
    assert evidence.verdict == "fail"
    assert {
        "streams_tokens_off_clients",
        "streams_tokens_off_engine",
        "aborted_tokens_below_received",
        "fallbacks_attempts",
        "fallbacks_tokens_off_engine",
        "killed_settled_rows_changed",
    } <= broken(evidence)
    calm = {"requests", "keys_that_differ_from_clients", "completion_tokens_off_engine"}
    assert not calm & broken(evidence)


_ONCE = "CREATE TRIGGER IF NOT EXISTS"

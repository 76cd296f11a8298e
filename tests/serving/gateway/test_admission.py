"""Rights, rates and budgets of keys, in a gateway over real sockets."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.accounts.keys import KeyLimits, add_key, revoke_key
from tuneline.serving.gateway.request import CHAT, parse_request

from .conftest import ask, upstream_entry

# The servers answer five words to a prompt of three.
TOKENS = 8


class Client:
    """A client of a gateway with a key of its own."""

    def __init__(self, gateway, key):
        self._url = f"{gateway.url}/v1"
        self._headers = {"authorization": f"Bearer {key}"}

    def chat(self, **fields):
        return httpx.post(
            f"{self._url}/chat/completions", json=ask(**fields), headers=self._headers, timeout=20
        )

    def models(self):
        answer = httpx.get(f"{self._url}/models", headers=self._headers)
        return [entry["id"] for entry in answer.json()["data"]]


@pytest.fixture
def limited(start, tmp_path):
    """Starts a gateway with a key of some limits; returns it with a client that has the key."""

    def run(*servers, models=(), config=None, **limits):
        path = tmp_path / "keys.json"
        key = add_key(path, "alice", models=models, limits=KeyLimits(**limits))
        gateway = start(*servers, **(config or {}))
        gateway.wait_ready()
        return gateway, Client(gateway, key)

    return run


def refusal(answer, code):
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"], int(answer.headers["retry-after"])


def test_a_key_asks_for_its_models_alone(limited, small):
    gateway, alice = limited(small, models=["billing"])
    asked = len(small.requests())
    answer = alice.chat()
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "model_not_allowed"
    assert len(small.requests()) == asked
    assert alice.models() == []
    # Another key of the same gateway may.
    assert gateway.chat().status_code == 200
    assert gateway.client.get("/v1/models").json()["data"][0]["id"] == "support"


def test_a_key_with_the_right_is_served(limited, small):
    _, alice = limited(small, models=["support"])
    assert alice.chat().status_code == 200
    assert alice.models() == ["support"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_spent_budget_of_tokens_never_reaches_an_upstream(limited, small, stream):
    gateway, alice = limited(small, tokens_per_day=2 * TOKENS)
    for _ in range(2):
        assert alice.chat(stream=stream, max_tokens=5).status_code == 200
    wait_for(lambda: gateway.runtime.admission._book.view.sums)
    wait_for(lambda: alice.chat().json()["error"]["code"] == "insufficient_quota")
    asked = len(small.requests())
    answer = alice.chat(stream=stream)
    message, wait = refusal(answer, "insufficient_quota")
    assert "16 tokens" in message
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert abs((midnight - now).total_seconds() - wait) < 60
    assert answer.headers["x-should-retry"] == "false"
    assert len(small.requests()) == asked
    # Others go on, and nothing was billed for the refusal.
    assert gateway.chat().status_code == 200
    assert sum(row["key"] == "alice" for row in gateway.rows(3)) == 2
    assert 'tuneline_gateway_refusals_total{limit="tokens_per_day"}' in metrics(gateway)


def test_a_spent_budget_of_money(limited, small):
    # 3 prompt tokens at 1 and 5 completion tokens at 2 for a thousand.
    gateway, alice = limited(small, cost_per_month=0.013)
    assert alice.chat().status_code == 200
    wait_for(lambda: alice.chat().json()["error"]["code"] == "insufficient_quota")
    message, wait = refusal(alice.chat(), "insufficient_quota")
    assert "0.013 in money" in message
    assert 0 < wait <= 31 * 86_400
    assert sum(row["key"] == "alice" for row in gateway.rows(1)) == 1


def test_requests_under_way_can_not_all_pass_through_the_rest(limited, small):
    small.answer_delay_s = 0.5
    gateway, alice = limited(small, tokens_per_day=100)
    start = threading.Barrier(8)

    def one():
        start.wait()
        return alice.chat(max_tokens=60)

    with ThreadPoolExecutor(8) as pool:
        answers = [f.result() for f in [pool.submit(one) for _ in range(8)]]
    served = [a for a in answers if a.status_code == 200]
    # A claim is 60 tokens and some of the prompt: the second fills the hundred.
    assert len(served) == 2
    refused = next(a for a in answers if a.status_code != 200)
    assert refusal(refused, "budget_claimed")[1] == 1
    # What they really took is known once they have ended, and leaves room.
    assert alice.chat(max_tokens=60).status_code == 200
    assert len(gateway.rows(3)) == 3


@pytest.mark.parametrize(
    ("absurd", "status"), [(10**18, 200), (10**400, 400), (-5, 400), (True, 400), ("many", 400)]
)
def test_an_absurd_number_of_tokens_is_no_fault_of_the_gateway(limited, small, absurd, status):
    gateway, alice = limited(small, tokens_per_day=10_000, cost_per_day=1.0)
    assert alice.chat(max_completion_tokens=absurd).status_code == status
    assert alice.chat(n=absurd).status_code == 400
    assert gateway.chat().status_code == 200


@pytest.fixture
def hanging(small):
    """Sends requests that the upstream does not answer until it is stopped."""
    with ThreadPoolExecutor(8) as pool:

        def ask_all(client, count, **fields):
            small.mode = "hang"
            asked = len(small.requests())
            waiting = [pool.submit(client.chat, **fields) for _ in range(count)]
            wait_for(lambda: len(small.requests()) == asked + count)
            return waiting

        yield ask_all
        small.stop()


@pytest.mark.parametrize(
    ("config", "limits", "passes"),
    [
        # Half of the places where there is another key; the key's own number goes before it.
        ({"max_in_flight": 4}, {}, 2),
        ({"max_in_flight": 4}, {"requests_at_once": 1}, 1),
        ({"max_in_flight": 4}, {"requests_at_once": 3}, 3),
    ],
)
def test_one_key_leaves_places_to_others(limited, small, hanging, config, limits, passes):
    gateway, alice = limited(upstream_entry(small, ping=False), config=config, **limits)
    hanging(alice, passes)
    message, _ = refusal(alice.chat(), "too_many_requests")
    assert f"may have {passes} requests under way" in message
    hanging(Client(gateway, gateway.key), 1)
    assert 'refusals_total{limit="requests_at_once"} 1' in metrics(gateway)
    small.stop()
    wait_for(lambda: gateway.runtime.in_flight == 0)
    assert alice.chat().status_code == 502


def test_requests_under_way_have_a_bound_of_memory(limited, small, hanging):
    config = {"max_in_flight_bytes": 2 << 20}
    gateway, alice = limited(upstream_entry(small, ping=False), config=config)
    large = {"messages": [{"role": "user", "content": "a" * 400_000}]}
    # Twice its text, and half of what all may hold.
    hanging(alice, 1, **large)
    assert refusal(alice.chat(**large), "too_many_requests")
    other = Client(gateway, gateway.key)
    hanging(other, 1, **large)
    hanging(alice, 1)
    small.stop()
    wait_for(lambda: gateway.runtime.in_flight == 0)
    assert alice.chat(**large).status_code == 502


@pytest.mark.parametrize(
    "repeated", [b"[],", b'{"a":1},', b"1.5,", b'"ab",', b'{"a":1.5,"b":"cd"},', b"aaaa"]
)
def test_the_memory_of_a_body_is_counted(repeated):
    filled = repeated * 20_000
    value = b"[%b1]" % filled if b"," in filled else b'"%b\\ud83d\\ude00"' % filled
    raw = b'{"model": "m", "messages": [{"role": "user"}], "metadata": {"x": %b}}' % value
    tracemalloc.start()
    request = parse_request(CHAT, raw, max_depth=64, max_values=10**6)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.85 * taken < request.memory < 5 * taken


def test_a_failed_request_gives_its_claim_back(limited, small):
    _, alice = limited(small, tokens_per_day=70)
    small.mode = "error"
    for _ in range(3):
        assert alice.chat(max_tokens=60).status_code == 502
    small.mode = "ok"
    assert alice.chat(max_tokens=60).status_code == 200


def test_an_answer_that_nobody_counted_yet_holds_its_claim(limited, small):
    small.sends_usage = False
    gateway, alice = limited(small, tokens_per_day=1000)
    assert alice.chat(max_tokens=100).status_code == 200
    under_way = gateway.runtime.admission._under_way
    period = f"{datetime.now(UTC):%Y-%m-%d}"
    wait_for(lambda: gateway.runtime.ledger.written == gateway.runtime.ledger.taken)
    gateway.runtime.admission._book.look()
    assert alice.chat(max_tokens=100).status_code == 200
    assert under_way.of(period, "alice").tokens >= 100
    (first, _) = gateway.rows(2)
    assert first["estimated"] == 1


def test_a_rate_of_requests(limited, small):
    gateway, alice = limited(small, requests_per_minute=2)
    assert [alice.chat().status_code for _ in range(2)] == [200, 200]
    message, wait = refusal(alice.chat(), "rate_limit_exceeded")
    assert "2 requests per minute" in message
    assert 0 < wait <= 60
    assert gateway.chat().status_code == 200
    assert 'refusals_total{limit="requests_per_minute"} 1' in metrics(gateway)


def test_a_rate_of_tokens_counts_what_was_taken(limited, small):
    _, alice = limited(small, tokens_per_minute=20)
    # Claimed 5 and a few of the prompt, taken 8.
    assert [alice.chat(max_tokens=5).status_code for _ in range(3)] == [200, 200, 200]
    message, wait = refusal(alice.chat(max_tokens=5), "rate_limit_exceeded")
    assert "20 tokens per minute" in message
    assert 0 < wait <= 60


def test_a_revoked_key_is_refused_within_a_second(limited, small, tmp_path):
    gateway, alice = limited(small)
    assert alice.chat().status_code == 200
    revoke_key(tmp_path / "keys.json", "alice")
    gateway.follow_keys()
    assert alice.chat().status_code == 401
    assert gateway.chat().status_code == 200


def test_a_key_that_is_revoked_while_its_body_arrives_is_refused(limited, small, tmp_path):
    gateway, alice = limited(small)
    admit = gateway.runtime.admission.admit

    def late(call):
        revoke_key(tmp_path / "keys.json", "alice")
        # Looking up any key follows the file.
        gateway.follow_keys()
        assert gateway.runtime.keys.name_of("") is None
        assert gateway.runtime.keys.grant_of("alice") is None
        return admit(call)

    gateway.runtime.admission.admit = late
    asked = len(small.requests())
    assert alice.chat().status_code == 401
    assert len(small.requests()) == asked


def test_limits_change_while_it_runs(limited, small, tmp_path):
    gateway, alice = limited(small)
    assert alice.chat().status_code == 200
    path = tmp_path / "keys.json"
    text = path.read_text()
    changed = text.replace('"name": "alice",', '"name": "alice", "limits": {"tokens_per_day": 1},')
    path.write_text(changed)
    gateway.follow_keys()
    wait_for(lambda: alice.chat().status_code == 429)


def test_alarms_at_80_and_100_percent_come_once_each(limited, small, caplog):
    gateway, alice = limited(small, tokens_per_day=20)
    for words in (2, 7):
        # 3 + 2 tokens are a quarter of the budget; 3 + 7 more are three quarters.
        small.words = words
        assert alice.chat(max_tokens=7).status_code == 200
    settled(gateway)
    assert told(caplog) == []
    small.words = 1
    assert alice.chat(max_tokens=1).status_code == 200
    settled(gateway)
    assert [text[:45] for text in told(caplog)] == ["budget: key alice has spent 80 % of tokens_pe"]
    # 19 of 20 are spent, so one more request passes and is the last.
    assert alice.chat(max_tokens=1).status_code == 200
    settled(gateway)
    gateway.runtime.admission._book.look()
    assert ["80 %" in told(caplog)[0], "100 %" in told(caplog)[1]] == [True, True]
    assert len(told(caplog)) == 2
    assert alice.chat(max_tokens=1).status_code == 429


def test_the_last_alarm(limited, small, caplog):
    gateway, alice = limited(small, tokens_per_day=TOKENS)
    assert alice.chat(max_tokens=5).status_code == 200
    settled(gateway)
    gateway.runtime.admission._book.look()
    (text,) = told(caplog)
    assert "100 % of tokens_per_day" in text
    line = 'budget_alarms_total{budget="tokens_per_day",percent="100"} 1'
    assert line in metrics(gateway)


def test_a_new_day_has_a_new_budget(limited, small):
    gateway, alice = limited(small, tokens_per_day=TOKENS, tokens_per_month=10 * TOKENS)
    admission = gateway.runtime.admission
    book = admission._book
    assert alice.chat(max_tokens=5).status_code == 200
    wait_for(lambda: alice.chat().json()["error"]["code"] == "insufficient_quota")
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    clock = [midnight.timestamp() - 1]
    admission._clock = book._clock = lambda: clock[0]
    book.look()
    _, wait = refusal(alice.chat(max_tokens=5), "insufficient_quota")
    assert wait == 1
    clock[0] += 1
    # Also before the sums of the new day are read.
    assert alice.chat(max_tokens=5).status_code == 200
    book.look()
    assert alice.chat(max_tokens=5).status_code in (200, 429)


def test_the_month_goes_on_over_midnight(limited, small):
    gateway, alice = limited(small, tokens_per_month=TOKENS)
    admission = gateway.runtime.admission
    assert alice.chat(max_tokens=5).status_code == 200
    settled(gateway)
    now = datetime.now(UTC)
    next_month = (now.replace(day=28) + timedelta(days=4)).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    clock = [next_month.timestamp() - 1]
    admission._clock = admission._book._clock = lambda: clock[0]
    admission._book.look()
    assert refusal(alice.chat(), "insufficient_quota")[1] == 1
    clock[0] += 1
    admission._book.look()
    assert alice.chat(max_tokens=5).status_code == 200


@pytest.mark.parametrize(
    ("how", "kept"), [("hash", "u-71d4f55f72fa128d"), ("plain", "ann@example.com"), ("none", "")]
)
def test_what_is_kept_of_the_user(limited, small, tmp_path, how, kept):
    ledger = {"path": "usage.db", "flush_interval_s": 0.02, "users": how}
    gateway, alice = limited(small, config={"ledger": ledger})
    assert alice.chat(user="ann@example.com").status_code == 200
    assert alice.chat().status_code == 200
    first, second = gateway.rows(2)
    assert (first["user_id"], second["user_id"]) == (kept, "")
    assert (b"ann@example.com" in (tmp_path / "usage.db").read_bytes()) <= (how == "plain")


def test_a_ledger_that_can_not_be_read_leaves_the_last_sums_in_force(limited, small, tmp_path):
    gateway, alice = limited(small, tokens_per_day=TOKENS)
    assert alice.chat(max_tokens=5).status_code == 200
    settled(gateway)
    moved = tmp_path / "moved.db"
    (tmp_path / "usage.db").rename(moved)
    failures = "tuneline_gateway_budget_read_failures_total 0"
    wait_for(lambda: failures not in metrics(gateway) and "read_failures_total" in metrics(gateway))
    assert refusal(alice.chat(), "insufficient_quota")
    moved.rename(tmp_path / "usage.db")


def settled(gateway):
    """Wait until the sums have everything, and read them."""
    ledger, book = gateway.runtime.ledger, gateway.runtime.admission._book
    wait_for(lambda: ledger.taken == ledger.written)
    wait_for(lambda: book.view.written >= ledger.taken - 1 or book.look())
    book.look()


def told(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("budget:")]


def metrics(gateway):
    return gateway.client.get("/metrics").text

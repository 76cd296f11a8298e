"""Keys: their file, rights, rates and budgets, the places that they hold; over real sockets."""

import hashlib
import json
import stat
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.lab.waiting import wait_for

from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.serving.gateway.accounts.admission import Minute, RateEntry, whole_seconds
from tuneline.serving.gateway.accounts.keys import (
    KeyLimits,
    KeyRing,
    add_key,
    new_key,
    parse_limits,
    read_keys,
    revoke_key,
)
from tuneline.serving.gateway.request import CHAT, parse_request

from .conftest import upstream_entry

# The servers answer five words to a prompt of three.
TOKENS = 8


@pytest.fixture
def path(tmp_path):
    return tmp_path / "conf" / "keys.json"


def test_the_file_is_private_and_holds_no_key(path):
    alice, bob = add_key(path, "alice"), add_key(path, "bob", logged=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert alice.removeprefix("tl-") not in text
    assert hashlib.sha256(alice.encode()).hexdigest() in text
    assert [record.name for record in read_keys(path)] == ["alice", "bob"]
    ring = KeyRing(path)
    assert (ring.name_of(alice), ring.name_of(bob)) == ("alice", "bob")
    assert (ring.is_logged("alice"), ring.is_logged("bob")) == (True, False)
    for wrong in ("", "tl-", alice[:-1], alice + "x", alice.upper(), read_keys(path)[0].sha256):
        assert ring.name_of(wrong) is None
    with pytest.raises(UserError, match="alice exists"):
        add_key(path, "alice")
    for name in ("", "_gateway", "a b", "a\nb", "x" * 65):
        with pytest.raises(UserError, match="cannot name an API key"):
            new_key(name)


def test_a_broken_file_leaves_the_known_keys_in_force(path):
    alice = add_key(path, "alice")
    now = [0.0]
    ring = KeyRing(path, clock=lambda: now[0])
    for now[0], text, name in (
        (1.0, "{", "alice"),
        # Looked at once a second.
        (1.9, '{"keys": []}', "alice"),
        (2.0, '{"keys": []}', None),
    ):
        path.write_text(text)
        assert ring.name_of(alice) == name


def test_two_at_once_lose_none(path):
    code = (
        "import sys; from pathlib import Path\n"
        "from tuneline.serving.gateway.accounts.keys import add_key\n"
        "for i in range(10): add_key(Path(sys.argv[1]), f'{sys.argv[2]}-{i}')"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [process.wait(30) for process in running] == [0, 0]
    assert len(read_keys(path)) == 20


SHA = "0" * 64


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not JSON"),
        ("[]", "must be"),
        ('{"keys": {}}', "must be"),
        ('{"keys": [{"sha256": "00"}]}', r"keys\[0\]\.name"),
        ('{"keys": [{"name": "a", "sha256": "tl-plain-key"}]}', r"keys\[0\]\.sha256"),
        (json.dumps({"keys": [{"name": "a", "sha256": SHA}] * 2}), "same name"),
        (None, "keys create"),
        *(
            (f'{{"keys": [{{"name": "a", "sha256": "{SHA}", "{field}": {value}}}]}}', word)
            for field, value, word in (
                ("log", '"no"', r"keys\[0\]\.log must be true or false"),
                ("models", "[]", r"keys\[0\]\.models must be a list"),
                ("models", '"support"', r"keys\[0\]\.models must be a list"),
                ("models", "[1]", r"keys\[0\]\.models must be a list"),
            )
        ),
    ],
)
def test_a_wrong_file_is_refused_without_quoting_it(path, text, word):
    path.parent.mkdir()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=word) as caught:
        KeyRing(path)
    assert "tl-plain-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ([], "must be an object"),
        ({"tokens_per_week": 5}, "tokens_per_week is unknown"),
        ({"tokens_per_day": 0}, "tokens_per_day must be a whole number above 0"),
        ({"tokens_per_day": 1.5}, "tokens_per_day must be a whole number"),
        ({"requests_per_minute": True}, "requests_per_minute must be a whole number"),
        ({"cost_per_day": float("nan")}, "cost_per_day must be a number"),
        ({"cost_per_day": "5"}, "cost_per_day must be a number"),
    ],
)
def test_wrong_limits_are_refused(path, stated, words):
    with pytest.raises(UserError, match=words):
        parse_limits(stated, "here")
    path.parent.mkdir()
    path.write_text(json.dumps({"keys": [{"name": "a", "sha256": SHA, "limits": stated}]}))
    with pytest.raises(UserError, match=rf"keys\[0\]\.limits.*{words.split()[-1]}"):
        read_keys(path)


def test_the_commands_make_list_and_revoke_keys(path, capsys, monkeypatch):
    command = ["keys", "create", "alice", "--keys", str(path), "--model", "support", "--no-log"]
    command += ["--tokens-per-day", "1000", "--cost-per-month", "2.5", "--requests-per-minute", "3"]
    assert main(command) == 0
    # Shown once.
    assert capsys.readouterr().out.strip() not in path.read_text()
    grant = KeyRing(path).grant_of("alice")
    assert (grant.allows("support"), grant.allows("other"), grant.log) == (True, False, False)
    assert grant.limits == KeyLimits(requests_per_minute=3, tokens_per_day=1000, cost_per_month=2.5)
    monkeypatch.setenv("TUNELINE_KEYS", str(path))
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(word in listed for word in ("models=support", "tokens_per_day=1000", "not logged"))
    assert main(["keys", "list", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["keys"]
    assert record["limits"]["cost_per_month"] == 2.5
    assert "sha256" not in record
    assert main(["keys", "revoke", "alice"]) == 0
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    assert "revoked=" in capsys.readouterr().out
    # It opens nothing, and its name stays taken.
    assert KeyRing(path).grant_of("alice") is None
    for change, name, words in (
        (add_key, "alice", "alice exists"),
        (revoke_key, "alice", "was revoked at"),
        (revoke_key, "carol", "no key is named carol"),
    ):
        with pytest.raises(UserError, match=words):
            change(path, name)
    with pytest.raises(UserError, match="no such keys file"):
        revoke_key(path.with_name("none.json"), "alice")


def test_the_window_of_a_minute_slides():
    minute = Minute()
    for at in (0.0, 10.0):
        assert minute.wait_for_request(2, at) == 0
        minute.add(RateEntry(at, 5))
    waits = [minute.wait_for_request(2, at) for at in (20.0, 59.9, 60.0)]
    assert waits == [40.0, pytest.approx(0.1), 0]
    assert [whole_seconds(wait) for wait in (0.0, 0.2, 1.0, 1.01)] == [1, 1, 1, 2]


def test_tokens_count_as_claimed_and_then_as_taken():
    minute = Minute()
    first = RateEntry(0.0, 100)
    minute.add(first)
    assert minute.wait_for_tokens(100, 1.0) == 59.0
    minute.change(first, 30)
    assert minute.wait_for_tokens(100, 1.0) == 0
    minute.add(RateEntry(30.0, 80))
    assert minute.wait_for_tokens(100, 31.0) == 29.0
    # What has left the window changes it no more.
    assert minute.wait_for_tokens(100, 61.0) == 0
    minute.change(first, 10_000)
    assert minute.wait_for_tokens(100, 61.0) == 0


@given(st.lists(st.floats(0.01, 40), min_size=1, max_size=60), st.integers(1, 5))
def test_never_more_than_the_limit_in_any_minute(pauses, limit):
    minute, now, passed = Minute(), 0.0, []
    for pause in pauses:
        now += pause
        if minute.wait_for_request(limit, now) == 0:
            minute.add(RateEntry(now, 1))
            passed.append(now)
    for at in passed:
        assert sum(at - 60 < other <= at for other in passed) <= limit


# Here 8.717… + 52.382… is a hair less than 61.1.
@example([(1.1, 1), (1.1, 9), (6.5175572249545795, 50)])
@given(st.lists(st.tuples(st.floats(0.01, 40), st.integers(0, 50)), min_size=1, max_size=40))
def test_the_stated_wait_is_long_enough(requests):
    minute, now = Minute(), 0.0
    for pause, tokens in requests:
        now += pause
        minute.add(RateEntry(now, tokens))
    if wait := minute.wait_for_tokens(60, now):
        assert minute.wait_for_tokens(60, now + wait) == 0


@pytest.fixture
def limited(start, tmp_path):
    """Starts a gateway with a key of some limits; returns it with a client that has the key."""

    def run(*servers, models=(), config=None, **limits):
        key = add_key(tmp_path / "keys.json", "alice", models=models, limits=KeyLimits(**limits))
        gateway = start(*servers, **(config or {}))
        gateway.wait_ready()
        return gateway, gateway.with_key(key)

    return run


def refusal(answer, code):
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"], int(answer.headers["retry-after"])


def settled(gateway):
    """Wait until the sums have everything, and read them."""
    ledger, book = gateway.runtime.ledger, gateway.runtime.admission._book
    wait_for(lambda: ledger.taken == ledger.written)
    wait_for(lambda: book.view.written >= ledger.taken - 1 or book.look())
    book.look()


def test_a_key_asks_for_its_models_alone(limited, small):
    gateway, alice = limited(small, models=["billing"])
    asked = len(small.requests())
    answer = alice.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")
    assert alice.models() == []
    assert len(small.requests()) == asked
    # Another key of the same gateway may.
    assert gateway.chat().status_code == 200
    assert gateway.models() == ["support"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("limits", "served", "said"),
    [
        ({"tokens_per_day": 2 * TOKENS}, 2, "16 tokens"),
        # 3 prompt tokens at 1 and 5 completion tokens at 2 for a thousand.
        ({"cost_per_month": 0.013}, 1, "0.013 in money"),
    ],
)
def test_a_spent_budget_never_reaches_an_upstream(limited, small, limits, served, said, stream):
    gateway, alice = limited(small, models=["support"], **limits)
    for _ in range(served):
        assert alice.chat(stream=stream, max_tokens=5).status_code == 200
    settled(gateway)
    asked = len(small.requests())
    answer = alice.chat(stream=stream)
    message, wait = refusal(answer, "insufficient_quota")
    assert said in message
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    if "tokens_per_day" in limits:
        assert abs((midnight - now).total_seconds() - wait) < 60
    assert 0 < wait <= 31 * 86_400
    assert answer.headers["x-should-retry"] == "false"
    assert len(small.requests()) == asked
    # Others go on, and nothing was billed for the refusal.
    assert gateway.chat().status_code == 200
    assert sum(row["key"] == "alice" for row in gateway.rows(served + 1)) == served
    assert f'tuneline_gateway_refusals_total{{limit="{next(iter(limits))}"}} 1' in gateway.metrics


def test_requests_under_way_can_not_all_pass_through_the_rest(limited, small):
    small.answer_delay_s = 0.5
    gateway, alice = limited(small, tokens_per_day=100)
    start = threading.Barrier(8)

    def one(_):
        start.wait()
        return alice.chat(max_tokens=60)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    # A claim is 60 tokens and some of the prompt: the second fills the hundred.
    assert sum(answer.status_code == 200 for answer in answers) == 2
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


# Half of the places where there is another key; the key's own number goes before it.
@pytest.mark.parametrize(
    ("limits", "passes"), [({}, 2), ({"requests_at_once": 1}, 1), ({"requests_at_once": 3}, 3)]
)
def test_one_key_leaves_places_to_others(limited, small, hanging, limits, passes):
    gateway, alice = limited(
        upstream_entry(small, ping=False), config={"max_in_flight": 4}, **limits
    )
    hanging(alice, passes)
    message, _ = refusal(alice.chat(), "too_many_requests")
    assert f"may have {passes} requests under way" in message
    hanging(gateway, 1)
    assert 'refusals_total{limit="requests_at_once"} 1' in gateway.metrics
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
    hanging(gateway, 1, **large)
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


def test_a_claim_is_given_back_by_a_failure_and_held_until_tokens_are_counted(limited, small):
    gateway, alice = limited(small, tokens_per_day=70)
    small.mode = "error"
    for _ in range(3):
        assert alice.chat(max_tokens=60).status_code == 502
    small.mode, small.sends_usage = "ok", False
    assert alice.chat(max_tokens=10).status_code == 200
    wait_for(lambda: gateway.runtime.ledger.written == gateway.runtime.ledger.taken)
    gateway.runtime.admission._book.look()
    assert alice.chat(max_tokens=40).status_code == 200
    under_way = gateway.runtime.admission._under_way
    assert under_way.of(f"{datetime.now(UTC):%Y-%m-%d}", "alice").tokens >= 40
    assert [row["estimated"] for row in gateway.rows(5)] == [0, 0, 0, 1, 1]


# Claimed 5 tokens and a few of the prompt, taken 8.
@pytest.mark.parametrize(
    ("limits", "passes", "said"),
    [
        ({"requests_per_minute": 2}, 2, "2 requests per minute"),
        ({"tokens_per_minute": 20}, 3, "20 tokens per minute"),
    ],
)
def test_a_rate(limited, small, limits, passes, said):
    gateway, alice = limited(small, **limits)
    assert [alice.chat(max_tokens=5).status_code for _ in range(passes)] == [200] * passes
    message, wait = refusal(alice.chat(max_tokens=5), "rate_limit_exceeded")
    assert said in message
    assert 0 < wait <= 60
    assert gateway.chat().status_code == 200
    assert f'refusals_total{{limit="{next(iter(limits))}"}} 1' in gateway.metrics


def test_changes_of_the_keys_file_hold_within_a_second(limited, small, tmp_path):
    """A new key, other limits, and a key that is revoked, also while its body arrives."""
    gateway, alice = limited(small)
    assert alice.chat().status_code == 200
    path = tmp_path / "keys.json"
    bob = gateway.with_key(add_key(path, "bob"))
    gateway.follow_keys()
    assert bob.models() == ["support"]
    changed = '"name": "alice", "limits": {"tokens_per_day": 1},'
    path.write_text(path.read_text().replace('"name": "alice",', changed))
    gateway.follow_keys()
    wait_for(lambda: alice.chat().status_code == 429)
    revoke_key(path, "alice")
    gateway.follow_keys()
    assert alice.chat().status_code == 401
    admit, asked = gateway.runtime.admission.admit, len(small.requests())

    def late(call):
        revoke_key(path, "bob")
        # Looking up any key follows the file.
        gateway.follow_keys()
        assert gateway.runtime.keys.name_of("") is None
        assert gateway.runtime.keys.grant_of("bob") is None
        return admit(call)

    gateway.runtime.admission.admit = late
    assert bob.chat().status_code == 401
    assert len(small.requests()) == asked


def test_alarms_at_80_and_100_percent_come_once_each(limited, small, caplog):
    gateway, alice = limited(small, tokens_per_day=20)

    def alarms() -> list[str]:
        settled(gateway)
        said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("budget:")]
        return [text.split(" in ")[0] for text in said]

    # 3 + 2 tokens are a quarter of the budget; 3 + 7 more are three quarters.
    for words in (2, 7):
        small.words = words
        assert alice.chat(max_tokens=7).status_code == 200
    assert alarms() == []
    small.words = 1
    first = "budget: key alice has spent 80 % of tokens_per_day"
    assert alice.chat(max_tokens=1).status_code == 200
    assert alarms() == [first]
    # 19 of 20 are spent, so one more request passes and is the last.
    assert alice.chat(max_tokens=1).status_code == 200
    assert alarms() == [first, first.replace("80", "100")]
    gateway.runtime.admission._book.look()
    assert len(alarms()) == 2
    assert alice.chat(max_tokens=1).status_code == 429
    alarm = 'budget_alarms_total{budget="tokens_per_day",percent="100"} 1'
    assert alarm in gateway.metrics


@pytest.mark.parametrize("period", ["day", "month"])
def test_a_new_period_has_a_new_budget(limited, small, period):
    more = {"tokens_per_month": 10 * TOKENS} if period == "day" else {}
    gateway, alice = limited(small, **{f"tokens_per_{period}": TOKENS, **more})
    admission = gateway.runtime.admission
    assert alice.chat(max_tokens=5).status_code == 200
    settled(gateway)
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    end = end + timedelta(days=1) if period == "day" else end.replace(day=28) + timedelta(days=4)
    end = end if period == "day" else end.replace(day=1)
    clock = [end.timestamp() - 1]
    admission._clock = admission._book._clock = lambda: clock[0]
    admission._book.look()
    assert refusal(alice.chat(max_tokens=5), "insufficient_quota")[1] == 1
    clock[0] += 1
    # Also before the sums of the new period are read.
    assert alice.chat(max_tokens=5).status_code == 200


@pytest.mark.parametrize(
    ("how", "kept"), [("hash", "u-71d4f55f72fa128d"), ("plain", "ann@example.com"), ("none", "")]
)
def test_what_is_kept_of_the_user(limited, small, tmp_path, how, kept):
    ledger = {"path": "usage.db", "flush_interval_s": 0.02, "users": how}
    gateway, alice = limited(small, config={"ledger": ledger})
    assert alice.chat(user="ann@example.com").status_code == 200
    assert alice.chat().status_code == 200
    assert [row["user_id"] for row in gateway.rows(2)] == [kept, ""]
    assert (b"ann@example.com" in (tmp_path / "usage.db").read_bytes()) <= (how == "plain")


def test_a_ledger_that_can_not_be_read_leaves_the_last_sums_in_force(limited, small, tmp_path):
    gateway, alice = limited(small, tokens_per_day=TOKENS)
    assert alice.chat(max_tokens=5).status_code == 200
    settled(gateway)
    moved = tmp_path / "moved.db"
    (tmp_path / "usage.db").rename(moved)
    wait_for(lambda: "tuneline_gateway_budget_read_failures_total 0" not in gateway.metrics)
    assert refusal(alice.chat(), "insufficient_quota")
    moved.rename(tmp_path / "usage.db")

"""A released model is asked as it was measured, whatever a request leaves out."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.lab.releases import opened, release
from tests.lab.waiting import wait_for

from tuneline.artifacts.request_log import days, read_day
from tuneline.serving.following.release import upstream_of
from tuneline.serving.gateway.accounts.keys import KeyLimits, add_key
from tuneline.store import open_store

from .conftest import counts, upstream_entry

SYSTEM = "Answer with one of: track, refund."
TEMPLATE = {"enable_thinking": False}
MEASURED = {"temperature": 0, "stop": ["END"], "chat_template_kwargs": TEMPLATE}
HEAD, QUESTION = {"role": "system", "content": SYSTEM}, {"role": "user", "content": "a b c"}
ADDED = {"messages": [HEAD, QUESTION], **MEASURED}


@pytest.fixture
def entry(tmp_path, small):
    """Makes the gateway's entry of a release on the recording upstream."""
    store = open_store((tmp_path / "store").as_uri())

    def make(version="1", system=SYSTEM, defaults=MEASURED, server=small):
        stated = {"dataset": {"system": system}, "defaults": defaults} if defaults else {}
        release(store, {"model.gguf": b"weights"}, version=version, **stated)
        return upstream_of(opened(store), 0, server.base_url) | upstream_entry(server)

    return make


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({}, ADDED),
        ({"temperature": None, "stop": None}, ADDED),
        ({"stream": True}, ADDED),
        # What a request names stays, an empty system turn and another role's too.
        ({"temperature": 0.7, "stop": "x"}, {**ADDED, "temperature": 0.7, "stop": "x"}),
        *(
            ({"messages": turns, "temperature": 1}, {**ADDED, "messages": turns, "temperature": 1})
            for turns in (
                [{"role": "system", "content": "Be short."}, QUESTION],
                [{"role": "system", "content": ""}, QUESTION],
                [QUESTION, {"role": "developer", "content": "Be short."}, QUESTION],
            )
        ),
        ({"chat_template_kwargs": {"a": 1}}, {**ADDED, "chat_template_kwargs": {"a": 1}}),
        # Several answers are drawn.
        ({"n": 2}, {name: value for name, value in ADDED.items() if name != "temperature"}),
    ],
)
def test_what_a_request_does_not_name_is_added(start, small, entry, fields, seen):
    gateway = start({**entry(), "fields": ["chat_template_kwargs"]})
    assert gateway.chat(**fields).status_code == 200
    (body,) = small.requests()
    assert {name: body.get(name) for name in seen} == seen
    assert ("temperature" in body) is ("temperature" in seen)


def test_a_text_is_continued_without_turns_and_template(start, small, entry):
    gateway = start(entry())
    assert gateway.post("completions", prompt="a b").status_code == 200
    (body,) = small.requests()
    assert body == {"model": "small-model", "prompt": "a b", "temperature": 0, "stop": ["END"]}


def test_rows_without_a_common_system_turn_and_older_releases_add_none(start, small, entry):
    gateway = start(entry(system=None))
    assert gateway.chat().status_code == 200
    older = start(entry("0", defaults=None))
    assert older.chat().status_code == 200
    first, second = small.requests()
    assert (first["messages"], first["temperature"]) == ([QUESTION], 0)
    assert second == {"model": "small-model", "messages": [QUESTION]}


def test_each_of_a_chain_is_asked_as_it_was_measured(calm, small, large, entry):
    """The release, the one before with another system turn, and a foreign model."""
    before = entry("0", "Be kind.", {"temperature": 0.5}, large) | {"name": "before"}
    foreign = upstream_entry(large, name="foreign")
    gateway = calm(entry(), before, foreign)
    small.mode = large.mode = "error"
    top_k = {"chat_template_kwargs": {"x": 1}}
    assert gateway.chat(**top_k).status_code == 400  # nobody takes it from clients
    assert gateway.chat().status_code == 502
    (ours,), (theirs, last) = small.requests(), large.requests()
    assert ADDED.items() <= ours.items()
    kind = {"role": "system", "content": "Be kind."}
    assert (theirs["messages"], theirs["temperature"]) == ([kind, QUESTION], 0.5)
    assert theirs.keys() == {"model", "messages", "temperature"}
    assert last == {"model": "large-model", "messages": [QUESTION]}


def test_a_request_is_counted_and_logged_as_it_was_sent(start, small, entry, tmp_path):
    store = open_store((tmp_path / "log").as_uri())
    section = {"store": store.uri, "spool": "spool", "flush_interval_s": 0.05, "part_seconds": 0.2}
    gateway = start(entry(), production_log=section)
    small.sends_usage = False
    assert gateway.chat().status_code == 200
    small.mode = "bad_request"
    assert gateway.chat().status_code == 400
    small.mode, small.sends_usage = "ok", True
    # 3 tokens for the answer, 4 a turn, a token for 4 bytes of the two turns (34 and 5).
    asked, refused = gateway.rows(2)
    assert counts(asked) == (3 + 4 + 9 + 4 + 2, 10, 1)
    assert counts(refused)[2] == 0
    gateway.stop()
    rows = [
        row for day in days(store, "support") for row in read_day(store, "support", day).to_pylist()
    ]
    assert [row["status"] for row in rows] == ["ok", "client_error"]
    assert [row["messages"] for row in rows] == [[HEAD, QUESTION]] * 2


def test_a_claim_on_a_budget_has_what_is_added(start, small, entry, tmp_path):
    """A prompt of 1,000 tokens, of which the client sends nine."""
    limits = KeyLimits(tokens_per_day=1_000)
    key = add_key(tmp_path / "keys.json", "alice", limits=limits)
    gateway = start(entry(system="word " * 800))
    gateway.wait_ready()
    alice = gateway.with_key(key)
    small.answer_delay_s = 1.0
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(alice.chat, max_tokens=5)
        wait_for(small.requests)
        assert alice.chat(max_tokens=5).json()["error"]["code"] == "budget_claimed"
        assert first.result().status_code == 200

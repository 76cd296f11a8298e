"""Budgets over gateways as processes: killed, restarted, and several on one PostgreSQL server."""

import json
import math
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from tests.lab.postgres import PostgresServer, why_not
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.accounts.keys import KeyLimits, add_key, revoke_key
from tuneline.serving.gateway.ledger.database import SPENDING, UsageRow, open_writer, reading
from tuneline.serving.gateway.ledger.reports import (
    costs,
    rows_between,
    totals_by_upstream,
    usage_by_key,
)
from tuneline.serving.gateway.ledger.writer import Ledger
from tuneline.serving.gateway.process import GatewayProcess

from .conftest import upstream_entry
from .test_usage import ROW, Ended

# Longer than a gateway takes to hear of what others have written, also on a busy machine.
_HEARD_S = 3.0

INCLUDE = Path(__file__).parents[3] / "include"
PROMPT = [{"role": "user", "content": "a b c"}]
# Three tokens of the prompt and five of the answer.
TOKENS = 8


@pytest.fixture(autouse=True)
def _library(monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(INCLUDE), os.environ.get("PYTHONPATH", "")])
    )


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    if reason := why_not():
        pytest.skip(reason)
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture
def database(request) -> str:
    postgres = request.getfixturevalue("postgres")
    name = "".join(c if c.isalnum() else "_" for c in request.node.name.lower())[:60]
    return postgres.create(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request, tmp_path) -> str:
    """The URL of an empty ledger."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/usage.db"
    return request.getfixturevalue("database")


def gateway(folder, small, ledger=None, keys=None, **limits) -> GatewayProcess:
    """A gateway that is not started yet, with a key `alice` of some limits."""
    settings = {}
    if ledger:
        settings["ledger"] = {"url": ledger, "flush_interval_s": 0.05}
    made = GatewayProcess(
        folder,
        upstreams=[upstream_entry(small)],
        models=[{"id": "support", "chain": ["small"]}],
        settings=settings,
    )
    path = folder / "keys.json"
    if keys:
        # A replica has the keys of the first.
        path.write_text(keys.read_text())
    else:
        made.keys["alice"] = add_key(path, "alice", limits=KeyLimits(**limits))
    return made


def ask(process, key="alice", **fields):
    return process.chat("support", PROMPT, max_tokens=5, key=key, extra=fields or None)


def code(answer):
    return answer.body.get("error", {}).get("code")


def until_spent(*processes) -> int:
    """Ask one after the other until the budget is spent; return how many were answered."""
    served = 0

    def ask_all() -> bool:
        nonlocal served
        answers = [ask(process) for process in processes]
        served += sum(answer.ok for answer in answers)
        return all(code(answer) == "insufficient_quota" for answer in answers)

    wait_for(ask_all)
    return served


def test_a_killed_gateway_knows_what_was_spent(tmp_path, small):
    process = gateway(tmp_path / "g", small, tokens_per_day=5 * TOKENS)
    with process:
        served = [ask(process) for _ in range(3)]
        assert all(answer.ok for answer in served)
        wait_for(lambda: len(rows_between(process.ledger)) == 3)
        process.restart()
        assert until_spent(process) == 2
        asked = len(small.requests())
        assert code(ask(process)) == "insufficient_quota"
        assert len(small.requests()) == asked
        process.restart()
        # From its first request on: the sums are read before it listens.
        assert code(ask(process)) == "insufficient_quota"
    assert len(rows_between(process.ledger)) == 5
    assert sums(process.ledger) == {"alice": 5 * TOKENS}


def test_a_budget_of_money_is_in_the_currency_of_the_reloaded_file(tmp_path, small):
    # A gateway that starts before the first release hears only then in which currency it bills.
    process = gateway(tmp_path / "g", small, cost_per_day=0.025)
    path = tmp_path / "g" / "gateway.yaml"
    with process:
        path.write_text(json.dumps({**json.loads(path.read_text()), "currency": "EUR"}))
        process.signal(signal.SIGHUP)
        wait_for(lambda: "loaded, models" in process.read_log())
        # 0.003 for the prompt and 0.010 for the answer.
        assert until_spent(process) == 2
    assert {row.currency for row in rows_between(process.ledger)} == {"EUR"}


ODD_COUNTS = [2**63, 2**64 - 1, 2**53 + 1, -5_000_000, True, "5", 1.5]


def test_usage_that_nobody_can_count_is_estimated_and_stops_nothing(tmp_path, small, ledger):
    process = gateway(tmp_path / "g", small, ledger=ledger, tokens_per_day=10_000)
    odd = [{name: count} for count in ODD_COUNTS for name in ("prompt_tokens", "completion_tokens")]
    with process:
        for small.false_usage in odd:
            assert ask(process).ok
            assert '"finish_reason": "stop"' in streamed(process)
        small.false_usage = {}
        assert ask(process).ok
        wait_for(lambda: len(rows_between(ledger)) == 2 * len(odd) + 1)
        assert process.get("/v1/health/ready").status_code == 200
    rows = rows_between(ledger)
    assert [row.estimated for row in rows] == [True] * (2 * len(odd)) + [False]
    # Estimates of the same prompt and answer.
    assert all(5 <= row.prompt_tokens + row.completion_tokens < 50 for row in rows)
    billed = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    assert sums(ledger) == {"alice": billed}


def streamed(process) -> str:
    with process.stream("support", PROMPT, max_tokens=5, key="alice") as (_, chunks):
        return json.dumps(list(chunks))


def test_a_row_that_no_database_takes_stops_no_other(ledger, caplog):
    rows = [replace(ROW, request_id=f"r{number}") for number in range(20)]
    rows[7] = replace(rows[7], prompt_tokens=2**63)
    written = []
    writer = Ledger(ledger, queue_limit=100, flush_interval_s=0.01, on_written=written.extend)
    for row in rows:
        writer.put(Ended(row))
    writer.start()
    wait_for(lambda: writer.written == 20)
    assert writer.error is None
    assert writer.close() == []
    assert written == [row for row in rows if row is not rows[7]]
    assert {row.request_id for row in rows_between(ledger)} == {row.request_id for row in written}
    # Whoever reconciles finds it in the log.
    assert '"request_id": "r7"' in caplog.text


def test_a_kill_under_load_loses_a_second_at_most(tmp_path, small):
    process = gateway(tmp_path / "g", small, tokens_per_month=1_000_000)
    ended: list[tuple[float, str]] = []
    with process:
        stop = threading.Event()

        def load():
            while not stop.is_set():
                answer = ask(process)
                if answer.ok:
                    ended.append((datetime.now().timestamp(), answer.request_id))

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        wait_for(lambda: len(ended) > 100)
        process.kill()
        killed = datetime.now().timestamp()
        stop.set()
        for client in clients:
            client.join()
        process.start()
        rows = {row.request_id: row for row in rows_between(process.ledger)}
        lost = [at for at, request in ended if request not in rows]
        assert all(at > killed - 1.0 for at in lost)
        billed = sum(row.prompt_tokens + row.completion_tokens for row in rows.values())
        assert sums(process.ledger) == {"alice": billed}


def sums(ledger) -> dict[str, int]:
    """The tokens of each key in the month, which have to be those of the day and of the rows."""
    found: dict[str, set[int]] = {}
    with reading(ledger) as connection:
        for row in connection.execute(SPENDING.select()):
            found.setdefault(row.key, set()).add(row.tokens)
    return {key: only(tokens) for key, tokens in found.items()}


def only(values):
    (value,) = values
    return value


def test_a_revoked_key_in_a_running_process(tmp_path, small):
    process = gateway(tmp_path / "g", small)
    with process:
        assert ask(process).ok
        revoke_key(tmp_path / "g" / "keys.json", "alice")
        wait_for(lambda: ask(process).status == 401)
        assert ask(process, key="trial").ok


def test_two_replicas_share_a_budget(tmp_path, small, database):
    first = gateway(tmp_path / "a", small, ledger=database, tokens_per_day=10 * TOKENS)
    second = gateway(tmp_path / "b", small, ledger=database, keys=tmp_path / "a" / "keys.json")
    second.keys = first.keys
    with ExitStack() as stack:
        stack.enter_context(first)
        stack.enter_context(second)
        served = 0
        for number in range(9):
            served += ask((first, second)[number % 2]).ok
            # Each sees what the other has written, half a second later at most.
            wait_for(lambda done=served: len(rows_between(database)) == done)
        assert served == 9
        # Each knows what the other has served half a second later; then nobody goes over.
        time.sleep(_HEARD_S)
        assert ask(second).ok
        time.sleep(_HEARD_S)
        asked = len(small.requests())
        assert [code(ask(process)) for process in (first, second)] == ["insufficient_quota"] * 2
        assert len(small.requests()) == asked
    assert sums(database) == {"alice": 10 * TOKENS}


def test_replicas_that_write_at_once_lose_nothing(tmp_path, small, database):
    first = gateway(tmp_path / "a", small, ledger=database, cost_per_month=1000.0)
    second = gateway(tmp_path / "b", small, ledger=database, keys=tmp_path / "a" / "keys.json")
    second.keys = first.keys
    answered = []
    # Both start together on an empty database, and make the tables.
    with ExitStack() as stack:
        starting = [threading.Thread(target=p.start) for p in (first, second)]
        for thread in starting:
            thread.start()
        for process, thread in zip((first, second), starting, strict=True):
            thread.join()
            stack.callback(process.stop)

        def load(process, key):
            answered.extend(ask(process, key=key).request_id for _ in range(25))

        work = [(p, k) for p in (first, second) for k in ("alice", "trial") if k in p.keys]
        clients = [threading.Thread(target=load, args=some) for some in work]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        wait_for(lambda: len(rows_between(database)) >= len(answered))
    assert len(answered) == 25 * len(work)
    assert {row.request_id for row in rows_between(database)} == set(answered)
    assert sum(sums(database).values()) == len(answered) * TOKENS


def test_a_killed_replica_on_postgresql(tmp_path, small, database):
    process = gateway(tmp_path / "a", small, ledger=database, tokens_per_day=2 * TOKENS)
    with process:
        assert until_spent(process) == 2
        process.restart()
        assert code(ask(process)) == "insufficient_quota"


def test_a_server_that_is_away_for_a_while_costs_no_row(tmp_path, small, postgres, database):
    process = gateway(tmp_path / "a", small, ledger=database)
    with process:
        assert ask(process).ok
        wait_for(lambda: len(rows_between(database)) == 1)
        postgres.stop()
        try:
            assert ask(process).ok
            wait_for(lambda: process.get("/v1/health/ready").status_code == 503)
        finally:
            postgres.start()
        wait_for(lambda: process.get("/v1/health/ready").status_code == 200, 30)
        assert ask(process).ok
        wait_for(lambda: len(rows_between(database)) == 3)


def test_both_databases_give_the_same_sums(tmp_path, database):
    rows = [
        ROW,
        UsageRow(**{**vars(ROW), "attempt": 2, "served": False, "upstream": "large"}),
        UsageRow(**{**vars(ROW), "request_id": "r2", "time": 90_000.0, "key": "bob", "cost": 2.0}),
        UsageRow(**{**vars(ROW), "request_id": "p", "kind": "ping", "key": "_gateway"}),
        UsageRow(**{**vars(ROW), "request_id": "i", "kind": "imported", "user_id": "u-1"}),
        UsageRow(**{**vars(ROW), "request_id": "r3", "mean_logprob": float("-inf")}),
        UsageRow(**{**vars(ROW), "request_id": "r4", "mean_logprob": math.nan, "user_id": "u\0-1"}),
    ]
    places = (tmp_path / "usage.db", database)
    found = []
    for place in places:
        writer = open_writer(place)
        assert writer.insert(rows[:4]) == 4
        # Some of a batch were written before: only the others count.
        assert writer.insert(rows) == 3
        writer.close()
        with reading(place) as connection:
            spent = sorted(map(tuple, connection.execute(SPENDING.select())))
        by = [costs(place, kind) for kind in ("key", "user", "model", "day")]
        odd = {(row.mean_logprob, row.user_id) for row in rows_between(place)}
        found.append([usage_by_key(place), totals_by_upstream(place), by, spent, odd])
    assert found[0] == found[1]
    _, _, (_, by_user, _, by_day), spent, odd = found[0]
    # No number and no text that one of the databases would refuse the row for.
    assert odd == {(None, ""), (None, "u-1")}
    assert [group.name for group in by_day] == ["1970-01-01", "1970-01-02"]
    assert {group.name: group.requests for group in by_user} == {"": 3, "u-1": 2}
    assert ("1970-01", "alice", "USD", 120, 2.0) in spent
    assert all(row[1] in ("alice", "bob") for row in spent)


def test_a_database_with_other_tables(postgres, database):
    name = database.split("?")[0].rsplit("/", 1)[1]
    postgres.run_sql("CREATE TABLE theirs (x int)", name)
    open_writer(database).close()
    postgres.run_sql("UPDATE ledger_version SET version = 1", name)
    with pytest.raises(Exception, match="not a usage ledger of version"):
        open_writer(database)


def test_a_sqlite_ledger_by_url(tmp_path, small):
    ledger = f"sqlite:///{tmp_path}/by-url.db"
    process = gateway(tmp_path / "g", small, ledger=ledger)
    with process:
        assert ask(process).ok
        wait_for(lambda: len(rows_between(ledger)) == 1)
    with closing(sqlite3.connect(tmp_path / "by-url.db")) as db:
        assert db.execute("SELECT count(*) FROM usage WHERE kind = 'request'").fetchone() == (1,)

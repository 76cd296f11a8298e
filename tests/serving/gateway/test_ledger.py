"""The ledger: its writer, its two databases, sums and reports, prices, and gateways over it."""

import csv
import io
import json
import math
import signal
import sqlite3
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError
from sqlalchemy import create_engine
from tests.lab.logged import ROW
from tests.lab.waiting import wait_for
from tokenizers import Tokenizer, models, pre_tokenizers

from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.serving.gateway.accounts.keys import KeyLimits, add_key
from tuneline.serving.gateway.chain.upstream import TokenCounter, message_texts
from tuneline.serving.gateway.ledger.database import (
    SPENDING,
    UsageRow,
    open_writer,
    reading,
    url_of,
)
from tuneline.serving.gateway.ledger.reports import (
    ApiPrice,
    break_even,
    costs,
    rows_between,
    totals_by_upstream,
    usage_by_key,
)
from tuneline.serving.gateway.ledger.writer import BatchWriter, Ledger, UnfitItem
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.serving.gateway.upstream_config import PriceConfig

from .conftest import upstream_entry


@pytest.fixture
def database(request) -> str:
    postgres = request.getfixturevalue("postgres")
    name = "".join(c if c.isalnum() else "_" for c in request.node.name.lower())[:60]
    return postgres.create(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request, tmp_path) -> str:
    """The URL of an empty ledger."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/usage.db"
    return request.getfixturevalue("database")


def insert(place, *rows) -> int:
    writer = open_writer(place)
    try:
        return writer.insert(rows)
    finally:
        writer.close()


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


class Disk:
    def __init__(self, unfit=()):
        self.full, self.lines, self.unfit = False, [], set(unfit)

    def write(self, batch: list[int]) -> None:
        if self.unfit & set(batch):
            raise UnfitItem("a number that no column holds")
        if self.full:
            raise OSError("No space left on device")
        self.lines.extend(batch)


@pytest.mark.parametrize("unfit", [set(), {0}, {2499}, {5, 6, 1700}])
def test_items_are_written_in_order_without_those_that_are_unfit(unfit):
    disk = Disk(unfit)
    writer = BatchWriter("test", disk.write, limit=10, interval_s=0.01)
    for i in range(2500):
        writer.put(i)
    writer.start()
    assert writer.close(5) == []
    assert disk.lines == [i for i in range(2500) if i not in unfit]


def test_a_failed_batch_stays_until_the_disk_is_free_or_is_handed_back(monkeypatch):
    monkeypatch.setattr("tuneline.serving.gateway.ledger.writer._RETRY_AFTER_S", 0.02)
    disk = Disk()
    disk.full = True
    writer = BatchWriter("test", disk.write, limit=2, interval_s=0.01)
    writer.put(1)
    # One that was never started hands all back.
    assert not writer.full
    assert writer.close(0) == [1]
    writer = BatchWriter("test", disk.write, limit=2, interval_s=0.01)
    writer.start()
    writer.put(1)
    writer.put(2)
    assert writer.full
    wait_for(lambda: writer.error)
    assert "No space" in writer.error
    disk.full = False
    wait_for(lambda: writer.error is None)
    disk.full = True
    writer.put(3)
    assert writer.close(5) == [3]
    assert disk.lines == [1, 2]


@dataclass
class Ended:
    row: UsageRow


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


def test_usage_and_totals_in_a_window(ledger):
    """Requests once, tokens of every attempt, pings apart; a batch written twice counts once."""
    rows = [
        replace(ROW, status="low_confidence", served=False),
        replace(ROW, attempt=2, upstream="large", cost=2.0, fallback_reason="low_confidence"),
        replace(ROW, request_id="r2", key="bob", estimated=True, cost=0.25, cached_tokens=0),
        replace(ROW, request_id="p1", key="_gateway", kind="ping", completion_tokens=1),
        replace(ROW, request_id="r3", key="carol", time=2000.0),
    ]
    assert insert(ledger, *rows[:4]) == 4
    # Some of a batch were written before: only the others count.
    assert insert(ledger, *rows) == 1
    alice, bob, carol = usage_by_key(ledger)
    assert (alice.key, alice.requests, alice.attempts) == ("alice", 1, 2)
    assert (alice.prompt_tokens, alice.completion_tokens) == (20, 40)
    assert (alice.cost, alice.currency) == (2.5, "USD")
    assert (bob.key, bob.requests, bob.estimated_attempts, bob.cost) == ("bob", 1, 1, 0.25)
    large, small = totals_by_upstream(ledger)
    assert (large.upstream, small.upstream, small.model_served) == ("large", "small", "m")
    assert (small.attempts, small.own_attempts, small.estimated_attempts) == (4, 1, 1)
    assert (small.prompt_tokens, small.cached_tokens, small.completion_tokens) == (30, 12, 41)
    assert (small.estimated_prompt_tokens, small.estimated_completion_tokens) == (10, 20)
    at_2000 = datetime.fromtimestamp(2000, UTC)
    assert usage_by_key(ledger, since=at_2000) == [carol]
    assert usage_by_key(ledger, until=at_2000) == [alice, bob]
    assert usage_by_key(ledger, since=datetime.fromtimestamp(2001, UTC)) == []
    with pytest.raises(UserError, match="time zone"):
        usage_by_key(ledger, since=datetime(2026, 1, 1))
    assert sums(ledger) == {"alice": 60, "bob": 30, "carol": 30}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_no_odd_number_and_no_nul_costs_a_row(ledger, odd):
    assert insert(ledger, replace(ROW, mean_logprob=odd, user_id="u\0-1")) == 1
    (row,) = rows_between(ledger)
    assert (row.mean_logprob, row.user_id) == (None, "u-1")
    assert sums(ledger) == {"alice": 30}


def test_what_is_no_ledger(tmp_path, postgres):
    with pytest.raises(UserError, match="no such usage ledger"):
        usage_by_key(tmp_path / "missing.db")
    (tmp_path / "text.db").write_text("hello " * 200)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE usage (x)")
    other.close()
    for use in (usage_by_key, open_writer):
        with pytest.raises(UserError, match=r"text\.db"):
            use(tmp_path / "text.db")
        with pytest.raises(UserError, match="not a usage ledger"):
            use(tmp_path / "other.db")
    with pytest.raises(UserError, match="cannot be opened"):
        open_writer(tmp_path)
    # A PostgreSQL database may have other tables, and a ledger of another version is none.
    database = postgres.create("theirs")
    postgres.run_sql("CREATE TABLE theirs (x int)", "theirs")
    open_writer(database).close()
    postgres.run_sql("UPDATE ledger_version SET version = 1", "theirs")
    with pytest.raises(UserError, match="not a usage ledger of version"):
        open_writer(database)


def test_a_ledger_of_the_version_before_gains_its_columns(ledger):
    insert(ledger, ROW)
    engine = create_engine(url_of(ledger))
    with engine.begin() as connection:
        for change in (
            "ALTER TABLE usage DROP COLUMN model_version",
            "ALTER TABLE usage DROP COLUMN weights_sha256",
            "UPDATE ledger_version SET version = 2",
        ):
            connection.exec_driver_sql(change)
    engine.dispose()
    with pytest.raises(UserError, match="or start a gateway on it, which adds what one of version"):
        usage_by_key(ledger)
    new = replace(ROW, request_id="r2", model_version="7", weights_sha256="a" * 64)
    assert [insert(ledger, ROW, new), insert(ledger, new)] == [1, 0]
    assert rows_between(ledger) == [ROW, new]
    assert sums(ledger) == {"alice": 60}


# 2026-11-26, half a second before midnight, UTC.
LATE = datetime(2026, 11, 26, 23, 59, 59, 500_000, UTC).timestamp()


@pytest.fixture
def spent(ledger):
    """Two requests on two days, one of which fell back, one imported row, and a ping."""
    row = replace(ROW, time=LATE, prompt_tokens=100, completion_tokens=10, user_id="u-1")
    insert(
        ledger,
        replace(row, served=False, cost=0.25),
        replace(row, attempt=2, cost=1.0),
        replace(row, request_id="r2", time=LATE + 1, key="bob", user_id="", cost=0.5),
        replace(row, request_id="i1", kind="imported", key="=team", model="other", cost=3.0),
        replace(row, request_id="p1", kind="ping", key="_gateway", cost=9.0),
    )
    return ledger


def test_groups_their_order_and_a_window(spent):
    for by, expected in {
        "key": {"=team": (1, 3.0), "alice": (1, 1.25), "bob": (1, 0.5)},
        "user": {"u-1": (2, 4.25), "": (1, 0.5)},
        "model": {"other": (1, 3.0), "support": (2, 1.75)},
        "day": {"2026-11-26": (2, 4.25), "2026-11-27": (1, 0.5)},
    }.items():
        groups = costs(spent, by)
        assert {g.name: (g.requests, g.cost) for g in groups} == expected
        assert [g.name for g in groups] == list(expected)
    midnight = datetime(2026, 11, 27, tzinfo=UTC)
    assert [g.name for g in costs(spent, "key", since=midnight)] == ["bob"]
    assert [g.name for g in costs(spent, "key", until=midnight)] == ["=team", "alice"]


def test_an_api_would_bill_the_served_answers_alone(spent):
    groups = costs(spent, "key")
    price = ApiPrice(1000.0, 10_000.0)
    # A hundred prompt tokens and ten of the answer, whatever was tried before.
    assert [price.of(group) for group in groups] == pytest.approx([0.2, 0.2, 0.2])
    found = break_even(spent, groups, price, hourly_cost=2.0)
    assert (found.cost, found.api_cost) == (4.75, pytest.approx(0.6))
    # Three requests cost 0.6 there: from ten in an hour on, 2.0 is the better price.
    assert found.from_requests_per_hour == pytest.approx(10.0)
    assert found.requests_per_hour == 3.0
    without = break_even(spent, groups, ApiPrice(0, 0), hourly_cost=2.0)
    assert without.from_requests_per_hour is None
    with pytest.raises(UserError, match="no requests in that window"):
        break_even(spent, [], ApiPrice(1, 1), hourly_cost=None)
    insert(spent, replace(ROW, request_id="e", currency="EUR"))
    with pytest.raises(UserError, match="EUR, USD"):
        break_even(spent, costs(spent, "key"), ApiPrice(1, 1), hourly_cost=None)


def test_the_command_prints_a_table_csv_and_json(spent, capsys, monkeypatch):
    command = ["costs", "--by", "key", "--ledger", spent, "--against", "1000,10000"]
    assert main([*command, "--hourly-cost", "2"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["key", "requests", "attempts"]
    assert table[4].split() == ["total", "3", "4", "400", "40", "4.750000", "USD", "0.600000"]
    assert "cheaper from 10.0 such requests an hour; there were 3.0" in table[5]
    assert main([*command, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    # A spreadsheet must not run the name of a key.
    assert [row["key"] for row in rows] == ["'=team", "alice", "bob"]
    assert float(rows[1]["cost"]) == 1.25
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["by"], document["rows"][0]["key"]) == ("key", "=team")
    assert document["against"]["api_cost"] == pytest.approx(0.6)
    # The ledger of the environment, and days as times.
    monkeypatch.setenv("TUNELINE_LEDGER", spent)
    assert main(["costs", "--by", "day", "--since", "2026-11-27", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("2026-11-27,1,1,100,10,0.5,USD")
    assert main(["costs", "--by", "day", "--until", "2026-11-27T00:00:00+00:00", "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    "wrong", ["--against 1", "--against 1,-2", "--against a,b", "--since yesterday", "--csv --json"]
)
def test_wrong_arguments(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["costs", "--by", "key", "--ledger", str(tmp_path / "u.db"), *wrong.split()])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_ledger_that_is_missing_or_away_is_said_without_a_password(tmp_path, capsys):
    assert main(["costs", "--by", "key", "--ledger", str(tmp_path / "none.db")]) == 2
    assert "no such usage ledger" in capsys.readouterr().err
    for url in ("mysql://me:sk-secret@h/db", "postgresql://me:sk-secret@h:x/db"):
        with pytest.raises(UserError) as caught:
            url_of(url)
        assert "sk-secret" not in str(caught.value)
    gone = "postgresql://me:sk-secret@127.0.0.1:9/db"
    # A server that is away may come back.
    assert main(["costs", "--by", "key", "--ledger", gone]) == 75
    said = capsys.readouterr().err
    assert "cannot be read" in said
    assert "sk-secret" not in said
    assert main(["costs", "--by", "key", "--ledger", "x.db", "--hourly-cost", "1"]) == 2


LISTED, HOURLY = ("per_1k_prompt", "per_1k_completion"), ("hourly_cost",)
SPEEDS = ("completion_tokens_per_second", "prompt_tokens_per_second")


@pytest.mark.parametrize(
    ("fields", "prompt", "completion", "cost"),
    [
        (dict(zip(LISTED, (0.5, 1.5), strict=True)), 2000, 1000, 2.5),
        # 3.60 an hour is 0.001 a second; at 100 tokens a second 1,000 tokens take 10 s.
        ({"hourly_cost": 3.6, SPEEDS[0]: 100}, 5000, 1000, 0.01),
        ({"hourly_cost": 3.6, SPEEDS[0]: 100, SPEEDS[1]: 1000}, 1000, 1000, 0.011),
        *(
            (dict.fromkeys(names, 1), 0, 0, None)
            for names in ((), LISTED[:1], HOURLY, LISTED + HOURLY, LISTED + SPEEDS[1:])
        ),
    ],
)
def test_prices(fields, prompt, completion, cost):
    if cost is None:
        with pytest.raises(ValidationError, match="give either"):
            PriceConfig(**fields)
    else:
        rates = PriceConfig(**fields).rates()
        assert rates.cost(prompt, completion) == pytest.approx(cost)


def test_tokens_are_counted_by_a_tokenizer_chunks_or_bytes(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "world": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        TokenCounter(path)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        TokenCounter(path)
    tokenizer.save(str(path))
    exact, guess = TokenCounter(path), TokenCounter(None)
    assert [exact.text(t, chunks=99) for t in ("hello world hello", "", "hello \ud800")] == [
        3,
        0,
        2,
    ]
    assert exact.messages([{"role": "user", "content": "hello world"}]) == 3 + 4 + 2
    assert [guess.text("x" * 9), guess.text("x" * 9, chunks=5), guess.text("")] == [3, 5, 0]
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, "b"]
    given = [{"content": "a"}, {"content": parts}, {"content": None}, "a"]
    assert [message_texts(one) for one in given] == [["a"], ["a"], [], []]


PROMPT = [{"role": "user", "content": "a b c"}]
# Three tokens of the prompt and five of the answer.
TOKENS = 8
# Longer than a gateway takes to hear of what others have written, also on a busy machine.
_HEARD_S = 3.0


def gateway(folder, small, ledger=None, keys=None, **limits) -> GatewayProcess:
    """A gateway that is not started yet, with a key `alice` of some limits."""
    made = GatewayProcess(
        folder,
        upstreams=[upstream_entry(small)],
        models=[{"id": "support", "chain": ["small"]}],
        settings={"ledger": {"url": ledger, "flush_interval_s": 0.05}} if ledger else {},
    )
    path = folder / "keys.json"
    if keys:
        # A replica has the keys of the first.
        path.write_text((keys / "keys.json").read_text())
    else:
        made.keys["alice"] = add_key(path, "alice", limits=KeyLimits(**limits))
    return made


def ask(process, key="alice"):
    return process.ask("support", PROMPT, max_tokens=5, key=key)


def code(answer):
    return answer.body.get("error", {}).get("code")


def until_spent(process) -> int:
    """Ask until the budget is spent; return how many were answered."""
    answers = []
    wait_for(lambda: answers.append(ask(process)) or code(answers[-1]) == "insufficient_quota")
    return sum(answer.ok for answer in answers)


def test_a_killed_gateway_knows_what_was_spent(tmp_path, small, ledger):
    with gateway(tmp_path / "g", small, ledger, tokens_per_day=5 * TOKENS) as process:
        assert all(ask(process).ok for _ in range(3))
        wait_for(lambda: len(rows_between(ledger)) == 3)
        process.restart()
        assert until_spent(process) == 2
        asked = len(small.requests())
        assert code(ask(process)) == "insufficient_quota"
        assert len(small.requests()) == asked
        process.restart()
        # From its first request on: the sums are read before it listens.
        assert code(ask(process)) == "insufficient_quota"
    assert len(rows_between(ledger)) == 5
    assert sums(ledger) == {"alice": 5 * TOKENS}


def test_a_budget_of_money_is_in_the_currency_of_the_reloaded_file(tmp_path, small):
    # A gateway that starts before the first release hears only then in which currency it bills.
    path = tmp_path / "g" / "gateway.yaml"
    with gateway(tmp_path / "g", small, cost_per_day=0.025) as process:
        path.write_text(json.dumps({**json.loads(path.read_text()), "currency": "EUR"}))
        process.signal(signal.SIGHUP)
        wait_for(lambda: "loaded, models" in process.read_log())
        # 0.003 for the prompt and 0.010 for the answer.
        assert until_spent(process) == 2
    assert {row.currency for row in rows_between(process.ledger)} == {"EUR"}


ODD_COUNTS = [2**63, 2**64 - 1, 2**53 + 1, -5_000_000, True, "5", 1.5]


def test_usage_that_nobody_can_count_is_estimated_and_stops_nothing(tmp_path, small, ledger):
    odd = [{name: count} for count in ODD_COUNTS for name in ("prompt_tokens", "completion_tokens")]
    with gateway(tmp_path / "g", small, ledger, tokens_per_day=10_000) as process:
        for small.false_usage in odd:
            assert ask(process).ok
            with process.stream("support", PROMPT, max_tokens=5, key="alice") as (_, chunks):
                assert '"finish_reason": "stop"' in json.dumps(list(chunks))
        small.false_usage = {}
        assert ask(process).ok
        wait_for(lambda: len(rows_between(ledger)) == 2 * len(odd) + 1)
        assert process.get("/v1/health/ready").status_code == 200
    rows = rows_between(ledger)
    assert [row.estimated for row in rows] == [True] * (2 * len(odd)) + [False]
    # Estimates of the same prompt and answer.
    assert all(5 <= row.prompt_tokens + row.completion_tokens < 50 for row in rows)
    assert sums(ledger) == {"alice": sum(r.prompt_tokens + r.completion_tokens for r in rows)}


@pytest.fixture
def replicas(tmp_path, small, database):
    """Two gateways over one database, which start together and make the tables."""
    first = gateway(tmp_path / "a", small, database, tokens_per_day=10 * TOKENS)
    second = gateway(tmp_path / "b", small, database, keys=tmp_path / "a")
    second.keys = first.keys
    with ExitStack() as stack:
        starting = [threading.Thread(target=process.start) for process in (first, second)]
        for thread in starting:
            thread.start()
        for process, thread in zip((first, second), starting, strict=True):
            thread.join()
            stack.callback(process.stop)
        yield first, second


def test_two_replicas_share_a_budget(replicas, small, database):
    served = 0
    for number in range(9):
        served += ask(replicas[number % 2]).ok
        # Each sees what the other has written, half a second later at most.
        wait_for(lambda done=served: len(rows_between(database)) == done)
    assert served == 9
    # Each knows what the other has served half a second later; then nobody goes over.
    time.sleep(_HEARD_S)
    assert ask(replicas[1]).ok
    time.sleep(_HEARD_S)
    asked = len(small.requests())
    assert [code(ask(process)) for process in replicas] == ["insufficient_quota"] * 2
    assert len(small.requests()) == asked
    assert sums(database) == {"alice": 10 * TOKENS}


def test_replicas_that_write_at_once_lose_nothing(replicas, database):
    answered = []

    def load(process):
        answered.extend(ask(process, key="trial").request_id for _ in range(25))

    clients = [threading.Thread(target=load, args=(one,)) for one in replicas * 2]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    wait_for(lambda: len(rows_between(database)) >= len(answered))
    assert len(answered) == 100
    assert {row.request_id for row in rows_between(database)} == set(answered)
    assert sums(database) == {"trial": 100 * TOKENS}


def test_a_server_that_is_away_for_a_while_costs_no_row(tmp_path, small, postgres, database):
    with gateway(tmp_path / "a", small, database) as process:
        assert ask(process).ok
        wait_for(lambda: len(rows_between(database)) == 1)
        postgres.stop()
        try:
            assert ask(process).ok
            wait_for(lambda: process.get("/v1/health/ready").status_code == 503)
        finally:
            postgres.start()
        wait_for(lambda: process.get("/v1/health/ready").status_code == 200)
        assert ask(process).ok
        wait_for(lambda: len(rows_between(database)) == 3)

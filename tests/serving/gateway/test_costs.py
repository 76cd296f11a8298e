import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.serving.gateway.ledger.database import open_writer, url_of
from tuneline.serving.gateway.ledger.reports import ApiPrice, break_even, costs

from .test_usage import ROW

# 2026-11-26, half a second before midnight, UTC.
LATE = datetime(2026, 11, 26, 23, 59, 59, 500_000, UTC).timestamp()


@pytest.fixture
def ledger(tmp_path):
    """Two requests on two days, one of which fell back, one imported row, and a ping."""
    path = tmp_path / "usage.db"
    row = replace(ROW, time=LATE, prompt_tokens=100, completion_tokens=10, user_id="u-1")
    writer = open_writer(path)
    writer.insert(
        [
            replace(row, served=False, cost=0.25),
            replace(row, attempt=2, cost=1.0),
            replace(row, request_id="r2", time=LATE + 1, key="bob", user_id="", cost=0.5),
            replace(row, request_id="i1", kind="imported", key="=team", model="other", cost=3.0),
            replace(row, request_id="p1", kind="ping", key="_gateway", cost=9.0),
        ]
    )
    writer.close()
    return path


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("key", {"=team": (1, 3.0), "alice": (1, 1.25), "bob": (1, 0.5)}),
        ("user", {"u-1": (2, 4.25), "": (1, 0.5)}),
        ("model", {"other": (1, 3.0), "support": (2, 1.75)}),
        ("day", {"2026-11-26": (2, 4.25), "2026-11-27": (1, 0.5)}),
    ],
)
def test_groups_and_their_order(ledger, by, expected):
    groups = costs(ledger, by)
    assert {g.name: (g.requests, g.cost) for g in groups} == expected
    assert [g.name for g in groups] == list(expected)


def test_a_window(ledger):
    midnight = datetime(2026, 11, 27, tzinfo=UTC)
    assert [g.name for g in costs(ledger, "key", since=midnight)] == ["bob"]
    assert [g.name for g in costs(ledger, "key", until=midnight)] == ["=team", "alice"]


def test_an_api_would_bill_the_served_answers_alone(ledger):
    groups = costs(ledger, "key")
    price = ApiPrice(1000.0, 10_000.0)
    # A hundred prompt tokens and ten of the answer, whatever was tried before.
    assert [price.of(group) for group in groups] == pytest.approx([0.2, 0.2, 0.2])
    found = break_even(ledger, groups, price, hourly_cost=2.0)
    assert (found.cost, found.api_cost) == (4.75, pytest.approx(0.6))
    # Three requests cost 0.6 there: from ten in an hour on, 2.0 is the better price.
    assert found.from_requests_per_hour == pytest.approx(10.0)
    assert found.requests_per_hour == 3.0
    without = break_even(ledger, groups, ApiPrice(0, 0), hourly_cost=2.0)
    assert without.from_requests_per_hour is None


def test_no_comparison_over_two_currencies_or_nothing(ledger):
    writer = open_writer(ledger)
    writer.insert([replace(ROW, request_id="e", currency="EUR")])
    writer.close()
    with pytest.raises(UserError, match="EUR, USD"):
        break_even(ledger, costs(ledger, "key"), ApiPrice(1, 1), hourly_cost=None)
    with pytest.raises(UserError, match="no requests in that window"):
        break_even(ledger, [], ApiPrice(1, 1), hourly_cost=None)


def test_the_command_prints_a_table_csv_and_json(ledger, capsys):
    command = ["costs", "--by", "key", "--ledger", str(ledger), "--against", "1000,10000"]
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
    assert document["by"] == "key"
    assert document["rows"][0]["key"] == "=team"
    assert document["against"]["api_cost"] == pytest.approx(0.6)


def test_the_ledger_of_the_environment_and_days_as_times(ledger, capsys, monkeypatch):
    monkeypatch.setenv("TUNELINE_LEDGER", str(ledger))
    assert main(["costs", "--by", "day", "--since", "2026-11-27", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("2026-11-27,1,1,100,10,0.5,USD")
    assert main(["costs", "--by", "day", "--until", "2026-11-27T00:00:00+00:00", "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ["--against", "1"],
        ["--against", "1,-2"],
        ["--against", "a,b"],
        ["--since", "yesterday"],
        ["--csv", "--json"],
        ["--by", "colour"],
    ],
)
def test_wrong_arguments(ledger, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["costs", "--by", "key", "--ledger", str(ledger), *wrong])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_no_ledger_is_told_without_a_password(tmp_path, capsys):
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

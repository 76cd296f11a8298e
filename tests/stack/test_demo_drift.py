"""`make demo-drift`: its week of requests, its clock, and the whole story."""

import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from tests.lab.commands import call

from tuneline.artifacts.releases import current_release
from tuneline.data.sample import SUPPORT, WEEK
from tuneline.errors import UserError
from tuneline.governance.production.curated_days import open_day
from tuneline.governance.production.drift_look import read_look
from tuneline.governance.production.reviewed import reviewed_rows
from tuneline.machine.checkout import project_root
from tuneline.stack import airflow, clock, serving
from tuneline.stack.airflow import client_of
from tuneline.stack.demo_drift import demo_drift, intent_of, read_week
from tuneline.stack.lifecycle import image_map
from tuneline.store import open_store

MODEL, ROOT = "support-intents", project_root()
LINE = {"day": 1, "messages": [{"role": "user", "content": "Hi"}]}


def test_the_week_that_ships_has_a_new_kind_from_the_fourth_day_on():
    week = read_week(WEEK)
    kinds = {day: Counter(r.kind for r in requests) for day, requests in week.items()}
    assert [sum(kinds[day].values()) for day in sorted(kinds)] == [32, 32, 32, 80, 80, 80]
    assert [kinds[day]["subscription"] for day in sorted(kinds)] == [0, 0, 0, 56, 56, 56]
    known = SUPPORT.read_text(errors="replace")
    # Nothing was trained on or held out, and nobody asks twice.
    asked = [r.messages[-1]["content"] for requests in week.values() for r in requests]
    assert len({*asked}) == len(asked)
    assert not [prompt for prompt in asked if json.dumps(prompt)[1:-1] in known]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1: expected `day` and `messages`"),
        ([json.dumps(LINE), json.dumps({"day": 2})], "line 2: expected"),
        ([json.dumps({**LINE, "messages": []})], "line 1: expected"),
        ([json.dumps({**LINE, "day": 3})], r"without a gap, not \[3\]"),
        ([], "without a gap"),
    ],
)
def test_a_week_that_cannot_be_played_is_refused(tmp_path, lines, said):
    (tmp_path / "week.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=said):
        read_week(tmp_path / "week.jsonl")


def test_what_an_answer_says():
    assert intent_of('{"intent": "track", "reply": "We look."}') == "track"
    for other in (" track ", "track"):
        assert intent_of(other) == "track"
    assert intent_of("[1]") == "[1]"


def test_the_clock_is_moved_by_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(clock.time, "sleep", lambda _: None)
    assert clock.environment() == {}
    file = tmp_path / "clock"
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
    monkeypatch.setenv("LD_PRELOAD", "libfaketime.so")
    assert clock.environment().keys() >= {"FAKETIME_TIMESTAMP_FILE", "LD_PRELOAD"}
    file.write_text("-86400\n")
    # This process does not feel the clock: it is a day behind in the file alone.
    clock.move_to(datetime.now(UTC) + timedelta(hours=1))
    assert float(file.read_text()) == pytest.approx(-86400 + 3600, abs=5)
    clock.move_to(None)
    assert file.read_text() == "+0\n"


def test_services_and_pods_have_the_clock(layout, tmp_path, monkeypatch):
    monkeypatch.delenv("FAKETIME_TIMESTAMP_FILE", raising=False)
    airflow.prepare(layout)
    leeway = "AIRFLOW__API_AUTH__JWT_LEEWAY"
    assert leeway not in airflow.environment(layout)
    assert "production_log" in serving.gateway_settings(layout)
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(tmp_path / "clock"))
    assert int(airflow.environment(layout)[leeway]) > 86400
    assert image_map(layout)["env"]["FAKETIME_TIMESTAMP_FILE"] == str(tmp_path / "clock")
    # Days that last minutes have their requests in the store in seconds.
    assert serving.gateway_settings(layout)["production_log"]["part_seconds"] < 10


def test_it_plays_only_with_a_clock_and_empties_only_its_own_home(layout, tmp_path, monkeypatch):
    monkeypatch.delenv("FAKETIME_TIMESTAMP_FILE", raising=False)
    with pytest.raises(UserError, match="start it with `make demo-drift`"):
        demo_drift(layout, "", "", print)
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(tmp_path / "clock"))
    layout.make_home()
    (layout.home / "mine").touch()
    with pytest.raises(UserError, match="must be named drift-demo"):
        demo_drift(layout, "", "", print)
    assert (layout.home / "mine").exists()


@pytest.fixture(scope="module")
def played(tmp_path_factory, make_commands):
    """The story as it ships: its last day, what it said, its store and its Airflow."""
    last_day = (datetime.now(UTC) - timedelta(hours=7)).date()
    made = make_commands(tmp_path_factory.mktemp("drift") / "home")
    done = call(str(ROOT / "scripts" / "demo_drift.sh"), **made.env)
    made.env["TUNELINE_HOME"] += "/drift-demo"
    yield last_day, done, made.layout()
    made.run("down")


@pytest.mark.stack
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_story_is_played_and_ends_with_a_release_or_the_reason_against_it(played):
    today, done, layout = played
    said = done.stdout
    assert done.returncode in (0, 1), said[-3000:] + done.stderr[-3000:]
    store = open_store(layout.store)
    days = [today - timedelta(days=n) for n in range(6, 0, -1)]
    looks = [read_look(store, MODEL, day) for day in days[:4]]
    assert [look.drifted for look in looks] == [False, False, False, True], looks
    for day, requests in zip(days, (32, 32, 32, 80), strict=False):
        evidence = open_day(store, MODEL, day).evidence
        # The ledger counts the requests of the clock's day as well.
        assert (evidence.requests_in, evidence.verdict) == (requests, "pass")
    client = client_of(layout)
    (backfill,) = client.backfills(f"production_logs__{MODEL}")
    assert date.fromisoformat(backfill["from_date"][:10]) == days[3]
    assert len(reviewed_rows(store, MODEL).between(days[3], days[3])) >= 40
    for command in ("tuneline logs review", "tuneline logs label"):
        assert f"$ {command}" in said
    assert "of a new kind 0\n" in said
    retrained = f"drift__{days[3]}__{MODEL}"
    version = current_release(store, MODEL).version
    if done.returncode:
        assert version == f"first__{MODEL}"
        assert f"{retrained} was not released: " in said
        return
    assert version == retrained
    assert f"released and served: {MODEL} {version}" in said
    assert read_look(store, MODEL, days[5]).version == version

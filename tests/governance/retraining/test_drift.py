"""One drift starts one retraining: the decision after a look at production."""

from datetime import date, timedelta

import pytest

from tuneline.governance.retraining.drift import (
    Look,
    Retraining,
    decide,
    last_retraining,
    note_retraining,
)
from tuneline.store import open_store

DAY = date(2026, 3, 20)


def look(day=DAY, since=DAY - timedelta(days=1), drifted=True):
    return Look(drifted, day, since if drifted else None, "novelty 0.2", "s3://r", "v1")


def retrained(days_ago, version="v1"):
    return Retraining(DAY - timedelta(days=days_ago), "drift__x", version)


def decided(found, last=None, **settings):
    usual = {"retrain": True, "window_days": 7, "cool_down_days": 7}
    return decide(found, last, **{**usual, **settings})


@pytest.mark.parametrize(
    ("found", "settings", "days", "why"),
    [
        (look(drifted=False), {}, "", "nothing is started"),
        (look(), {}, "2026-03-19..2026-03-20", "drift since 2026-03-19"),
        (look(since=DAY - timedelta(days=40)), {}, "2026-03-14..2026-03-20", "are backfilled"),
        (look(), {"retrain": False}, "", "the model's file says so"),
    ],
)
def test_what_a_look_starts(found, settings, days, why):
    decision = decided(found, **settings)
    assert (decision.act, decision.days) == (bool(days), days)
    assert why in decision.why


@pytest.mark.parametrize(("days_ago", "acts"), [(0, False), (1, False), (7, False), (8, True)])
def test_one_drift_starts_one_retraining(days_ago, acts):
    decision = decided(look(), last=retrained(days_ago))
    assert decision.act is acts
    assert acts or "cool-down lasts until" in decision.why


def test_a_drift_that_lasts_longer_than_the_cool_down_is_the_same_drift():
    lasting = look(since=DAY - timedelta(days=30))
    same = decided(lasting, last=retrained(25))
    assert not same.act
    assert "the same drift" in same.why
    assert decided(lasting, last=retrained(25, version="v0")).act
    assert decided(look(), last=retrained(25)).act


def test_the_store_remembers_the_last_retraining(tmp_path):
    store = open_store(tmp_path.as_uri())
    assert last_retraining(store, "faq") is None
    for day in (DAY - timedelta(days=30), DAY):
        note_retraining(store, "faq", look(day), f"drift__{day}")
    assert last_retraining(store, "faq") == Retraining(DAY, f"drift__{DAY}", "v1")
    assert last_retraining(store, "other") is None

"""How a canary stands: from the lines that follower, people and later releases leave."""

from datetime import UTC, datetime, timedelta

import pytest
from tests.lab.canaries import ASKED, release

from tuneline.config.release_canary import ReleaseCanaryConfig
from tuneline.errors import UserError
from tuneline.governance.release.canary import CanaryLog
from tuneline.governance.release.canary_outcome import (
    canary_state,
    is_awaited,
    told_of,
    why_none,
    withdrawal,
)
from tuneline.governance.release.rollback import roll_back

ASKS = ReleaseCanaryConfig(share=0.1)


@pytest.fixture
def store(any_store):
    release(any_store, "m", "a")
    release(any_store, "m", "b", settings=ASKED)
    return any_store


def state(store, version="b"):
    found = canary_state(store, "m", version)
    return found.outcome, found.told


def test_it_is_due_then_under_way_then_promoted(store):
    log = CanaryLog(store)
    assert state(store) == ("due", "no follower has begun the canary of m b yet")
    log.started("m", "b", 0.1)
    assert told_of(store, "m", "b") == state(store)[1]
    # A run that is not released yet has no canary, whatever else is.
    assert told_of(store, "m", "c") is None
    assert state(store)[0] == "under_way"
    assert "m b answers 10% of the keys since 20" in state(store)[1]
    began = canary_state(store, "m", "b").began
    assert abs((datetime.now(UTC) - began).total_seconds()) < 60
    log.promoted("m", "b", 0.1, "as good after 400 answers")
    assert state(store) == (
        "promoted", "m b has come through its canary: as good after 400 answers"
    )  # fmt: skip
    # It stays promoted, whatever is released later.
    release(store, "m", "c")
    assert state(store)[0] == "promoted"


def test_a_withdrawn_one_says_why_and_what_serves(store):
    log = CanaryLog(store)
    log.started("m", "b", 0.1)
    log.withdrawn("m", "b", 0.1, "more errors than the release after 90 answers")
    told = "m b was withdrawn: more errors than the release after 90 answers; a serves now"
    assert state(store) == ("withdrawn", told)
    assert withdrawal(store, "m", "b") == "more errors than the release after 90 answers"
    assert withdrawal(store, "m", "a") is None


def test_a_withdrawal_goes_back_past_a_version_that_was_not_proven_either(store):
    log = CanaryLog(store)
    log.started("m", "b", 0.1)
    release(store, "m", "c", settings=ASKED)
    log.started("m", "c", 0.1)
    log.withdrawn("m", "c", 0.1, "more errors")
    assert state(store, "c") == ("withdrawn", "m c was withdrawn: more errors; a serves now")


def test_a_withdrawal_that_is_half_recorded_is_one(store):
    """The pointer moves before the outcome is written; a follower may die in between."""
    CanaryLog(store).started("m", "b", 0.1)
    roll_back(store, "m", None, by="canary", reason="b: more errors")
    assert state(store) == ("withdrawn", "m b was withdrawn: more errors; a serves now")


def test_a_person_or_a_later_release_leaves_it_undecided(store):
    CanaryLog(store).started("m", "b", 0.1)
    roll_back(store, "m", None, by="bob", reason="too slow")
    told = "the canary of m b was not decided: bob rolled back to a: too slow"
    assert state(store) == ("left", told)
    release(store, "m", "c")
    told = "the canary of m b was not decided: c was released over it"
    assert state(store) == ("left", told)


def test_none_is_to_come_without_a_share_or_a_version_before(store, any_store):
    assert "asks for no canary" in why_none(store, "m", "b", ReleaseCanaryConfig())
    assert why_none(store, "m", "b", ASKS) is None
    release(any_store, "first", "a")
    assert "is the first release" in why_none(store, "first", "a", ASKS)


def test_a_model_without_a_release_is_an_error(any_store):
    with pytest.raises(UserError, match="has no release of m"):
        canary_state(any_store, "m", "a")


def test_a_run_waits_for_it_until_its_time_is_over(store):
    now, log = datetime.now(UTC), CanaryLog(store)
    hour = timedelta(hours=1)
    # It has to begin within one hour, and is over after six; half an hour more is waited.
    assert is_awaited(store, "m", "b", now)
    assert not is_awaited(store, "m", "b", now + 2 * hour)
    log.started("m", "b", 0.1)
    assert is_awaited(store, "m", "b", now + 2 * hour)
    assert not is_awaited(store, "m", "b", now + 7 * hour)
    log.promoted("m", "b", 0.1, "as good")
    assert not is_awaited(store, "m", "b", now)
    # One that asks for none is not waited for, whatever the follower does.
    release(store, "m", "c")
    assert not is_awaited(store, "m", "c", now)

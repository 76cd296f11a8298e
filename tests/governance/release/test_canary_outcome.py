"""How a canary stands: from the lines that follower, people and later releases leave."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from tests.lab.canaries import ASKED, release
from tests.lab.dying_store import DyingStore, Killed

from tuneline.artifacts.release_log import Withdrawn, read_log
from tuneline.artifacts.releases import read_release
from tuneline.config.governance import ReleaseCanaryConfig
from tuneline.errors import UserError
from tuneline.governance.release.canary import (
    CanaryLog,
    canary_state,
    is_awaited,
    told_of,
    why_none,
)
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.governance.release.rollback import roll_back
from tuneline.governance.release.verify import verify

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
    assert read_release(store, "m").version == "a"


def test_a_withdrawal_goes_back_past_a_version_that_was_not_proven_either(store):
    log = CanaryLog(store)
    log.started("m", "b", 0.1)
    release(store, "m", "c", settings=ASKED)
    log.started("m", "c", 0.1)
    log.withdrawn("m", "c", 0.1, "more errors")
    assert state(store, "c") == ("withdrawn", "m c was withdrawn: more errors; a serves now")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_withdrawal_that_is_killed_anywhere_leaves_nothing_to_release_again(store, moment):
    """And the next follower completes it, whether it still knows the canary or not."""
    for number in range(1, 6):
        name = f"m{number}"
        release(store, name, "a")
        release(store, name, "b", settings=ASKED)
        CanaryLog(store).started(name, "b", 0.1)
        dying = DyingStore(store, number, moment, only_writes=True)
        with pytest.raises(Killed) if number < 5 else nullcontext():
            CanaryLog(dying).withdrawn(name, "b", 0.1, "more errors")
        if read_release(store, name).version == "a":
            with pytest.raises(UserError, match="b was withdrawn at"):
                roll_back(store, name, "b", by="bob", reason="try again")
        CanaryLog(store).go_back(name)
        if (number, moment) == (1, "before"):
            # Nothing was written, so it is still to be decided.
            assert canary_state(store, name, "b").outcome == "under_way"
        else:
            assert canary_state(store, name, "b").outcome == "withdrawn"
            assert read_release(store, name).version == "a"
        CanaryLog(store).withdrawn(name, "b", 0.1, "more errors")
        assert state_of_lines(store, name) == ["released", "canary", "canary", "withdrawn"]
        for version in "ab":
            assert verify(store.uri_of(f"models/{name}/{version}/manifest.json")) == []


def state_of_lines(store, name):
    return [line.event.event for line in read_log(store, name, "b").lines()]


def test_a_version_that_a_canary_has_withdrawn_is_gone_back_past(store):
    log = CanaryLog(store)
    log.started("m", "b", 0.1)
    # Its withdrawal broke off, and another version was released over it.
    record(read_pointer(store, "m"), "b", "unused", [Withdrawn(by="canary", reason="errors")])
    release(store, "m", "c", settings=ASKED)
    log.withdrawn("m", "c", 0.1, "more errors")
    assert read_release(store, "m").version == "a"


def test_a_person_or_a_later_release_leaves_it_undecided(store):
    CanaryLog(store).started("m", "b", 0.1)
    roll_back(store, "m", None, by="bob", reason="too slow")
    told = "the canary of m b was not decided: bob rolled back to a: too slow"
    assert state(store) == ("left", told)
    release(store, "m", "c")
    told = "the canary of m b was not decided: c was released over it"
    assert state(store) == ("left", told)


def test_none_is_to_come_without_a_share_or_a_version_before(store):
    assert "asks for no canary" in why_none(store, "m", "b", ReleaseCanaryConfig())
    assert why_none(store, "m", "b", ASKS) is None
    release(store, "first", "a")
    assert "is the first release" in why_none(store, "first", "a", ASKS)
    with pytest.raises(UserError, match="has no release of nobody"):
        canary_state(store, "nobody", "a")


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

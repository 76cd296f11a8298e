import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuneline.serving.gateway.accounts.admission import Minute, RateEntry, whole_seconds


def test_the_window_slides():
    minute = Minute()
    for at in (0.0, 10.0):
        assert minute.wait_for_request(2, at) == 0
        minute.add(RateEntry(at, 5))
    assert minute.wait_for_request(2, 20.0) == 40.0
    assert minute.wait_for_request(2, 59.9) == pytest.approx(0.1)
    assert minute.wait_for_request(2, 60.0) == 0


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


def test_retry_after_is_never_nothing():
    assert [whole_seconds(wait) for wait in (0.0, 0.2, 1.0, 1.01)] == [1, 1, 1, 2]

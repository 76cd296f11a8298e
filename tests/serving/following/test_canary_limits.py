"""A candidate is judged by its own threshold, unless that would make it look better."""

import pytest
from tests.serving.following.test_chain import calibration

from tuneline.config.governance import FallbackConfig
from tuneline.serving.following.chain import ChainSettings, candidate_limits
from tuneline.serving.following.gateway_file import CanaryEntry, ServedEntry, gateway_document
from tuneline.serving.gateway.config import GatewayConfig

EIGHT = FallbackConfig(stream_window_tokens=8)
RELEASED = ChainSettings(EIGHT, calibration(-0.4, -0.7))
SETTINGS = {"keys_file": "/k.json", "ledger": {"path": "/u.sqlite"}}


def candidate(whole=-0.9, stream=-1.2, *, tokens=8, cost=0.1, window=8):
    found = calibration(whole, stream, tokens).model_copy(update={"false_alarm_share": cost})
    return ChainSettings(FallbackConfig(stream_window_tokens=window), found)


def test_another_scale_is_judged_by_its_own_threshold():
    assert candidate_limits(RELEASED, candidate()) == {
        "min_mean_logprob": -0.9,
        "stream_window_tokens": 8,
        "stream_min_mean_logprob": -1.2,
    }


@pytest.mark.parametrize(
    "looser",
    [
        # Fewer right answers are to be sent on, so the threshold lies lower.
        candidate(cost=0.01),
        candidate(cost=0.2),
        # No threshold at all, none for streams, or one for another beginning.
        candidate(whole=None),
        candidate(stream=None),
        candidate(window=0),
        candidate(tokens=4, window=4),
        ChainSettings(EIGHT, None),
    ],
)
def test_a_candidate_gets_no_better_by_what_it_ships(looser):
    assert candidate_limits(RELEASED, looser) is None


def test_where_the_release_is_not_judged_the_candidate_is_not_either():
    assert candidate_limits(ChainSettings(EIGHT, None), candidate()) is None


def served(limits, *, chain=("a-1", "a-0"), **owner):
    def entry(name):
        return {"name": name, "base_url": "http://127.0.0.1:4711/v1", "model": "a"}

    tried = CanaryEntry(entry("a-2"), 0.1, limits)
    model = ServedEntry("a", "2", tuple(map(entry, chain)), RELEASED, tried)
    owned = {"models": [{"id": "a", **owner}]} if owner else {}
    document = gateway_document({**SETTINGS, **owned}, [model], [], [])
    return GatewayConfig.model_validate(document).models[-1]


def test_each_engine_of_the_chain_has_the_limits_of_its_release():
    model = served(candidate_limits(RELEASED, candidate()))
    found = {name: model.limits_of(name).min_mean_logprob for name in ("a-2", "a-1", "a-0")}
    assert found == {"a-2": -0.9, "a-1": -0.4, "a-0": -0.4}
    # One threshold for both.
    assert served(None).limits_of("a-2").min_mean_logprob == -0.4


def test_limits_of_the_owner_and_a_chain_that_is_not_judged_hold_for_both():
    own = candidate_limits(RELEASED, candidate())
    low = {"min_mean_logprob": -2.0}
    assert served(own, low_confidence=low).limits_of("a-2").min_mean_logprob == -2.0
    alone = served(own, chain=("a-1",))
    assert alone.limits_of("a-1") is alone.limits_of("a-2") is None

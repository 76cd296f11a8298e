"""Cost tracking: a ledger that agrees passes, each way to be wrong is caught."""

import pytest

from tuneline.evidence import conclude
from tuneline.governance.cost_tracking import reconcile
from tuneline.serving.gateway.usage import KeyUsage, UpstreamTotals

TOLD = {"a": (100, 10), "b": (50, 5)}


def _keys(a=(100, 10), b=(50, 5)):
    return [
        KeyUsage(name, 1, 1, prompt, completion, 0, 0.0, "USD")
        for name, (prompt, completion) in (("a", a), ("b", b))
    ]


def _totals(prompt=150, cached=30, completion=15, estimated=0):
    return UpstreamTotals("p", "m", 2, prompt, cached, completion, estimated, 0, 0, 0, 0.0, "USD")


def test_a_ledger_that_agrees_passes():
    assert conclude(reconcile(TOLD, _keys(), _totals(), 120, 15)) == "pass"


@pytest.mark.parametrize(
    ("keys", "totals", "prompt", "completion", "broken"),
    [
        (_keys(a=(50, 5), b=(100, 10)), _totals(), 120, 15, "keys_that_differ_from_clients"),
        (_keys()[:1], _totals(), 120, 15, "keys_that_differ_from_clients"),
        (_keys(), _totals(), 120, 16, "completion_tokens_off_engine"),
        (_keys(), _totals(), 150, 15, "prompt_tokens_off_engine"),
        (_keys(), _totals(estimated=1), 120, 15, "estimated_attempts"),
    ],
)
def test_each_way_to_be_wrong_is_caught(keys, totals, prompt, completion, broken):
    checks = reconcile(TOLD, keys, totals, prompt, completion)
    assert conclude(checks) == "fail"
    assert [m.name for m in checks if not m.ok] == [broken]

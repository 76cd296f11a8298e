"""Fallback: faults that reach the second model pass, those that do not are caught."""

from dataclasses import replace

import pytest

from tuneline.evidence import conclude
from tuneline.governance.fallback import FaultReport, judge, summarise
from tuneline.serving.gateway.process import Answer

CALM = FaultReport("none", 4, 4, 0, [])
KILLED = FaultReport("killed", 4, 4, 4, ["connect_error"])


def test_everything_answered_by_the_second_model_passes():
    assert conclude(judge([CALM, KILLED])) == "pass"


@pytest.mark.parametrize(
    "reports",
    [
        [CALM, replace(KILLED, answered=3, by_fallback=3)],
        [CALM, replace(KILLED, by_fallback=2)],
        [CALM, replace(KILLED, reasons=[])],
        [replace(CALM, by_fallback=4), KILLED],
    ],
)
def test_unanswered_unexplained_or_needless_fallbacks_fail(reports):
    assert conclude(judge(reports)) == "fail"


def test_answers_are_counted_by_who_gave_them():
    answers = [
        Answer(200, {}, "fallback", "connect_error", 0.1),
        Answer(200, {}, "primary", None, 0.1),
        Answer(503, {}, None, None, 0.1),
    ]
    assert summarise("killed", answers) == FaultReport("killed", 3, 2, 1, ["connect_error"])

import json

import pytest

from tuneline.errors import UserError
from tuneline.harness.answers import choose_task

SENTENCES = [
    f"The {word} trail is closed today, so take the path by water {n}."
    for n, word in enumerate(("fern", "mill", "moor", "cliff", "peat", "dune"))
]


def call(order):
    return f"<tool_call>{json.dumps({'name': 'find', 'arguments': {'order': order}})}</tool_call>"


@pytest.mark.parametrize(
    ("expected", "metric", "why"),
    [
        ([call(n) for n in range(4)] + ["Which order?"], "tool_calls", "4 of 5"),
        (["She ate 3.\n#### 12", "#### 7", "9"], "number", "a number"),
        (["billing", "login"] * 5 + ["shipping"] * 4, "exact", "3 different texts"),
        ([s for s in SENTENCES[:2] for _ in range(4)], "exact", "2 different texts"),
        (["Paris", "Rome", "Oslo", "Port Louis"], "exact", "three words"),
        ([f'{{"text": "{s}"}}' for s in SENTENCES], "exact", "JSON"),
        (SENTENCES, "chrf", "free text of 13 words"),
    ],
)
def test_auto_reads_the_expected_answers(expected, metric, why):
    task = choose_task("auto", "intent", expected)
    assert task.metric == metric
    assert why in task.why


def test_labels_are_those_of_closed_answers_only():
    closed = choose_task("auto", None, ["billing", "login"] * 5)
    assert closed.labels == ("billing", "login")
    assert closed.right_anywhere("It is about Billing.", "billing")
    assert not closed.right_anywhere("Billing or login.", "billing")
    assert not closed.right("It is about billing.", "billing")
    assert choose_task("auto", None, SENTENCES).labels == ()
    both = choose_task("exact", None, ["refund", "no refund"] * 4)
    assert both.label("there is no refund", anywhere=True) == "no refund"


def test_a_metric_that_the_answers_do_not_bear_is_refused():
    with pytest.raises(UserError, match=r"number, but 1 of 2 expected answers hold no number"):
        choose_task("number", None, ["3", "three"])
    with pytest.raises(UserError, match=r"none of the 6 expected answers calls a tool"):
        choose_task("tool_calls", None, SENTENCES)
    with pytest.raises(UserError, match=r"macro_f1, but 6 of 6 .* no field 'intent'"):
        choose_task("macro_f1", "intent", SENTENCES)

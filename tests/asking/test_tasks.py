"""The metric of a task, the score of an answer, and how scores compare."""

import json
import random
import warnings

import pytest
from sklearn.metrics import f1_score

from tuneline.asking.answer_values import find_object, structure_of
from tuneline.asking.tasks import Task, choose_task, compare, judge, not_worse, rows_needed
from tuneline.errors import UserError
from tuneline.statistics import Interval, mean_difference, mean_interval, paired, wilson

EXPECTED = '{"intent": "billing", "reply": "We look at it."}'


def test_only_a_whole_json_object_is_an_answer():
    task = Task("json_field", "intent")
    assert task.right(' {"intent": "billing"}\n', EXPECTED)
    assert not task.right('Sure! {"intent": "billing"}', EXPECTED)
    assert not task.right('["billing"]', EXPECTED)
    assert not task.right('{"intent": "bill', EXPECTED)


def test_an_object_is_found_in_prose_and_fences():
    text = 'Here {is} it:\n```json\n{"intent": "login"}\n```'
    assert find_object(text) == {"intent": "login"}
    assert find_object("none {here") is None


def test_field_metric_compares_the_field_alone():
    task = Task("json_field", "intent")
    assert task.right('{"reply": "other words", "intent": "billing"}', EXPECTED)
    assert not task.right('{"intent": "login"}', EXPECTED)
    assert not task.right('{"reply": "no intent"}', EXPECTED)
    prose = 'The answer is {"intent": "billing"}'
    assert not task.right(prose, EXPECTED)
    assert task.right_anywhere(prose, EXPECTED)


def test_exact_metric_ignores_spacing_and_key_order():
    task = Task("exact")
    assert task.right('{"reply":"We look at it.","intent":"billing"}', EXPECTED)
    assert task.right("two  words\n", "two words")
    assert not task.right("two word", "two words")


def test_auto_takes_the_field_only_where_every_answer_has_it():
    assert choose_task("auto", "intent", [EXPECTED]) == Task("json_field", "intent")
    assert choose_task("auto", "intent", [EXPECTED, "plain"]).metric == "exact"
    assert choose_task("auto", None, [EXPECTED]).metric == "exact"
    with pytest.raises(UserError, match=r"1 of 2 expected answers have no field 'intent'"):
        choose_task("json_field", "intent", [EXPECTED, "plain"])
    with pytest.raises(UserError, match="label_field"):
        choose_task("json_field", None, [EXPECTED])


def test_scores_refuse_answers_that_are_missing():
    with pytest.raises(ValueError, match="longer"):
        judge(Task("exact"), ["a"], ["a", "b"])


def test_structure_keeps_the_label_and_drops_prose():
    one = structure_of('{"intent": "billing", "reply": "Yes.", "score": 3}', "intent")
    same = structure_of('{"score": 3, "intent": "billing", "reply": "No!"}', "intent")
    other = structure_of('{"intent": "login", "reply": "Yes.", "score": 3}', "intent")
    assert one == same
    assert one != other
    assert structure_of("prose", "intent") != structure_of("Prose", "intent")


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


LABELS = ("billing", "login", "shipping")
F1 = Task("macro_f1", labels=LABELS)


def noisy(wanted, share, seed):
    draw = random.Random(seed)
    return [label if draw.random() < share else draw.choice(LABELS) for label in wanted]


@pytest.fixture(scope="module")
def wanted():
    draw = random.Random(1)
    return draw.choices(LABELS, weights=(8, 3, 1), k=150)


def test_macro_f1_is_that_of_scikit_learn(wanted):
    named = noisy(wanted, 0.7, 2)
    named[3] = "something else"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = f1_score(wanted, named, labels=LABELS, average="macro")
    found = judge(F1, named, wanted).interval
    assert found.value == pytest.approx(theirs)
    assert found.lower < theirs < found.upper


def test_macro_f1_sees_the_rare_label_that_accuracy_hides(wanted):
    # One model never names the rare label; the other errs as often, but on the common one.
    ignoring = ["billing" if label == "shipping" else label for label in wanted]
    rare = wanted.count("shipping")
    common = iter(range(rare))
    erring = ["login" if w == "billing" and next(common, None) is not None else w for w in wanted]
    first, second = judge(F1, ignoring, wanted), judge(F1, erring, wanted)
    assert sum(first.scores) == sum(second.scores)
    found = compare(first, second)
    assert found.difference.value > 0.2
    assert found.difference.lower > 0
    assert not_worse(second, first, 0.05).decision == "worse"
    assert not_worse(first, second, 0.05).decision == "not worse"


def test_no_interval_has_a_width_of_zero():
    right = judge(F1, list(LABELS), list(LABELS))
    assert right.interval.lower < 0.7
    assert compare(right, right).difference.lower < -0.2
    assert mean_difference([0.4] * 20, [0.4] * 20).lower < -0.05
    assert mean_interval([0.4] * 20).lower < 0.39


def test_on_shares_the_bootstrap_agrees_with_the_intervals_for_shares():
    draw = random.Random(3)
    a = [draw.random() < 0.35 for _ in range(90)]
    b = [draw.random() < 0.6 for _ in range(90)]
    exact = paired(a, b).difference
    found = mean_difference(list(map(float, a)), list(map(float, b)))
    assert found.value == pytest.approx(exact.value)
    assert found.lower == pytest.approx(exact.lower, abs=0.015)
    assert found.upper == pytest.approx(exact.upper, abs=0.015)
    one, alone = mean_interval(list(map(float, a))), wilson(sum(a), 90)
    assert one.lower == pytest.approx(alone.lower, abs=0.02)
    assert one.upper == pytest.approx(alone.upper, abs=0.02)


def test_the_interval_of_graded_scores_holds_what_it_should():
    draw = random.Random(5)
    held = 0
    for _ in range(200):
        first = [draw.betavariate(1, 2) for _ in range(40)]
        second = [draw.betavariate(0.5, 0.5) for _ in range(40)]
        found = mean_difference(first, second)
        held += found.lower <= 1 / 6 <= found.upper
    # 95 % of 200 with three standard errors; the added rows make it a little more.
    assert held >= 181


def test_graded_scores_against_a_margin():
    task = Task("chrf")
    expected = [f"Fog lifts after ten at gate {n} of the moor." for n in range(120)]
    worse = [text.replace("lifts after ten", "is gone") for text in expected]
    good, bad = judge(task, expected, expected), judge(task, worse, expected)
    assert not_worse(good, good, 0.05).decision == "not worse"
    assert not_worse(good, bad, 0.05).decision == "worse"
    few = not_worse(
        good.rows([True] * 20 + [False] * 100), good.rows([True] * 20 + [False] * 100), 0.02
    )
    assert few.decision == "undecided"
    assert few.rows_needed == 98


def test_rows_needed_have_the_power_that_they_claim():
    # 20 rows: 6 gained, 2 lost.
    first = [False] * 6 + [True] * 2 + [False] * 6 + [True] * 6
    second = [True] * 6 + [False] * 2 + [False] * 6 + [True] * 6
    difference = paired(first, second).difference
    needed = rows_needed(difference, 20, 0.0)
    draw = random.Random(7)
    shown = 0
    for _ in range(300):
        kinds = draw.choices(("gained", "lost", "same"), weights=(6, 2, 12), k=needed)
        one = [kind == "lost" for kind in kinds]
        two = [kind == "gained" for kind in kinds]
        shown += paired(one, two).difference.lower > 0
    assert 0.65 < shown / 300 < 0.95
    assert rows_needed(Interval(0.0, -0.1, 0.1, 0.05), 50, 0.0) is None
